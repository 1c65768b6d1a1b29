"""What a cluster has decided for all its nodes, and what one of them is entitled to of that."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from appliance.bus.urls import without_login
from appliance.cluster.settings import MemberSettings
from appliance.config import Config
from appliance.errors import ConfigError
from appliance.model import Member
from appliance.seal import Seal
from appliance.store import Transaction, cluster_secrets

NAME = "settings"
"""The name of the sealed secret."""

_FOR_ALL = {"node": ("region",), "api": ("account_id", "auth")}
_WHOLE = ("network", "quota")


class Decided(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What holds for all; it holds the store's password.

    ``bus_urls`` are without a login, with commas between; so are ``also_urls``, those of a broker
    that is heard, too, while messages move from it or to it. For the rest see ``MemberSettings``.
    """

    bus_urls: str
    store_url: str
    bus_is_ours: bool = True
    store_is_ours: bool = True
    layers: dict[str, dict[str, Any]] = {}
    also_urls: str = ""
    also_is_ours: bool = True


def from_config(config: Config, *, bus_is_ours: bool, store_is_ours: bool) -> Decided:
    """Return what a cluster whose first node has these settings begins with."""
    raw = msgspec.to_builtins(config)
    layers = {name: raw[name] for name in _WHOLE}
    for section, names in _FOR_ALL.items():
        layers[section] = {name: raw[section][name] for name in names}
    return Decided(
        bus_urls=without_login(config.bus.url),
        store_url=config.store_url,
        bus_is_ours=bus_is_ours,
        store_is_ours=store_is_ours,
        layers=layers,
    )


def keep(tx: Transaction, seal: Seal, decided: Decided) -> None:
    """Store what was decided."""
    cluster_secrets.put(tx, seal, NAME, msgspec.json.encode(decided))


def get(tx: Transaction, seal: Seal) -> Decided:
    """Return what was decided.

    :raises ConfigError: the store belongs to no cluster, or cannot be opened here.
    """
    found = cluster_secrets.find(tx, seal, NAME)
    if found is None:
        raise ConfigError("This store belongs to no cluster.", hint="`anynode init` makes one.")
    return msgspec.json.decode(found, type=Decided)


def settings_of(
    decided: Decided, member: Member, revision: int, *, is_control: bool, bus_url: str = ""
) -> MemberSettings:
    """Return what one node is told.

    :param is_control: what its certificate says, which decides whether it learns of the store.
    :param bus_url: with its login; empty: the one that it has.
    """
    host, _, port = member.address.rpartition(":")
    return MemberSettings(
        node_id=member.node_id,
        node_name=member.name,
        zone=member.zone,
        roles=member.roles,
        is_control=is_control,
        address=host.strip("[]"),
        port=int(port),
        revision=revision,
        bus_url=bus_url,
        bus_is_ours=decided.bus_is_ours,
        also_is_ours=decided.also_is_ours,
        store_url=decided.store_url if is_control else "",
        store_is_ours=decided.store_is_ours,
        decided=decided.layers,
    )


def joined_address(host: str, port: int) -> str:
    """Return where a peer service is, as members are told of it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
