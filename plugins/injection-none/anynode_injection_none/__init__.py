"""Injection that writes nothing: the instance asks DHCP and the metadata service."""

from __future__ import annotations

from appliance.hookspecs import NoSettings, PluginContext, hookimpl
from appliance.model import InjectionRequest, InjectionResult

api_versions = frozenset({1})


class NoInjection:
    """Leaves the instance as its image is."""

    @hookimpl
    def injection_inject(self, request: InjectionRequest) -> InjectionResult:
        """Write nothing and say so."""
        return InjectionResult(
            summary="Nothing was injected; the instance asks the metadata service."
        )

    @hookimpl
    def injection_remove(self, directory: str) -> None:
        """Remove nothing."""


def create(settings: NoSettings, context: PluginContext) -> NoInjection:
    """Return the plugin."""
    return NoInjection()
