"""Network type ``vxlan``: one network on many nodes, through tunnels that flood nothing."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from anynode_network_vxlan.driver import Vxlan
from anynode_network_vxlan.tunnels import OVERHEAD
from appliance.hookspecs import PluginContext

api_versions = frozenset({1})
spans_nodes = True
overhead_bytes = OVERHEAD


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the ``vxlan`` network plugin."""

    dhcp_user: Annotated[
        str,
        Meta(
            pattern=r"\A[a-z_][a-z0-9_-]{0,31}\Z",
            description="User as which dnsmasq runs once it has its sockets.",
        ),
    ] = "dnsmasq"
    address: Annotated[
        str,
        Meta(description="IPv4 address of this end of tunnels; empty: that of cluster.address."),
    ] = ""


def create(settings: Settings, context: PluginContext) -> object:
    """Return the driver; nothing on the node is touched yet."""
    return Vxlan(
        context,
        dhcp_user=settings.dhcp_user,
        local_address=settings.address or context.node_address,
    )
