"""Firewall plugin ``nftables``: renders policies to sets and a few chains, one transaction each."""

from __future__ import annotations

from anynode_firewall_nftables.driver import NftablesFirewall
from appliance.hookspecs import NoSettings, PluginContext

api_versions = frozenset({1})


def create(settings: NoSettings, context: PluginContext) -> object:
    """Return the driver; it touches the kernel only when a hook is called."""
    return NftablesFirewall(context.state_dir)
