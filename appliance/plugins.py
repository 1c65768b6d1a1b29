"""Finding and loading plugins: by group and short name, one at a time, only what is named."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import msgspec
import pluggy

from appliance.errors import ConfigError, PluginError
from appliance.hookspecs import API_VERSIONS, GROUPS, NoSettings, PluginContext


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A plugin that a distribution offers; nothing of it is imported yet."""

    group: str
    name: str
    module: str
    distribution: str
    version: str

    def load(self) -> ModuleType:
        """Import the plugin's module.

        :raises PluginError: the import fails, or the module lacks ``create`` or ``api_versions``,
            or shares no API version with this release.
        """
        entry = importlib.metadata.EntryPoint(name=self.name, value=self.module, group=self.group)
        try:
            module = entry.load()
        except Exception as error:
            raise PluginError(
                f"Could not import plugin {self.name!r} of {self.group} from {self.distribution}.",
                hint="Run its own tests, or reinstall the distribution.",
            ) from error
        for attribute in ("create", "api_versions"):
            if not hasattr(module, attribute):
                raise PluginError(
                    f"Plugin {self.name!r} of {self.group} has no {attribute!r}.",
                    hint="The page on plugins says what a plugin module must define.",
                )
        check_api_versions(self.name, module.api_versions)
        return module  # type: ignore[no-any-return]


def check_api_versions(name: str, offered: Iterable[int]) -> None:
    """Raise PluginError, with both sets, unless plugin and host share an API version."""
    versions = frozenset(offered)
    if not versions & API_VERSIONS:
        raise PluginError(
            f"Plugin {name!r} speaks API versions {sorted(versions)}, "
            f"this release speaks {sorted(API_VERSIONS)}.",
            hint="Install a release of the plugin that shares one.",
        )


def installed(group: str) -> dict[str, Installed]:
    """Return the plugins of one group by short name.

    :raises PluginError: two distributions offer the same name, or nobody knows the group.
    """
    if group not in GROUPS:
        raise PluginError(f"There is no plugin group {group!r}; there are {', '.join(GROUPS)}.")
    found: dict[str, Installed] = {}
    for entry in importlib.metadata.entry_points(group=group):
        distribution = entry.dist
        plugin = Installed(
            group=group,
            name=entry.name,
            module=entry.value,
            distribution=distribution.name if distribution else "?",
            version=distribution.version if distribution else "?",
        )
        other = found.setdefault(plugin.name, plugin)
        if (other.distribution, other.module) != (plugin.distribution, plugin.module):
            raise PluginError(
                f"Both {other.distribution} and {plugin.distribution} offer {plugin.name!r} "
                f"in {group}.",
                hint="Remove one of the two distributions.",
            )
    return found


def find(group: str, name: str) -> Installed:
    """Return the named plugin.

    :raises PluginError: it is not installed; the message lists those that are.
    """
    choices = installed(group)
    if name not in choices:
        raise PluginError(
            f"No plugin {name!r} in {group}; installed: {', '.join(sorted(choices)) or 'none'}.",
            hint="Correct the setting, or install the distribution that brings it.",
        )
    return choices[name]


def read_settings(module: ModuleType, name: str, raw: Mapping[str, Any]) -> Any:
    """Return the plugin's own settings, checked against its ``Settings``.

    :raises ConfigError: an unknown setting or a value of a wrong type, with the place.
    """
    struct = getattr(module, "Settings", NoSettings)
    try:
        return msgspec.convert(dict(raw), struct)
    except msgspec.ValidationError as error:
        raise ConfigError(f"Bad setting of plugin {name!r}: {error}.") from error


def relay(group: str, members: Mapping[str, object]) -> pluggy.PluginManager:
    """Return a plugin manager for one group with its members registered in order.

    pluggy calls the last registered first, so they are registered in reverse.

    :raises PluginError: a member has a hook that the group does not know (a misspelt name), or
        one with arguments that the contract does not have.
    """
    manager = pluggy.PluginManager("appliance")
    manager.add_hookspecs(GROUPS[group])
    for name, member in reversed(list(members.items())):
        try:
            manager.register(member, name)
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"Plugin {name!r} breaks the contract of {group}: {error}") from error
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"A plugin of {group} has an unknown hook: {error}") from error
    return manager


def create(group: str, name: str, raw: Mapping[str, Any], context: PluginContext) -> object:
    """Load the named plugin and return the object that fills its hooks.

    :raises PluginError: it is missing, does not load, or fails while it is made.
    :raises ConfigError: its settings are wrong.
    """
    module = find(group, name).load()
    settings = read_settings(module, name, raw)
    return module.create(settings, context)
