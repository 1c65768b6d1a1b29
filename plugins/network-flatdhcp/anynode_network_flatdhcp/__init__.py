"""Network type ``flatdhcp``: one bridge per network, with DHCP, DNS and a way out on each node."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from appliance.datapath import nat
from appliance.datapath.bridged import BridgedNetworks
from appliance.hookspecs import PluginContext

api_versions = frozenset({1})


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the ``flatdhcp`` network plugin."""

    dhcp_user: Annotated[
        str,
        Meta(
            pattern=r"\A[a-z_][a-z0-9_-]{0,31}\Z",
            description="User as which dnsmasq runs once it has its sockets.",
        ),
    ] = "dnsmasq"


def create(settings: Settings, context: PluginContext) -> object:
    """Return the driver; nothing on the node is touched yet."""
    return BridgedNetworks(
        context, type_name="flatdhcp", nat_table=nat.TABLE, dhcp_user=settings.dhcp_user
    )
