"""What a member of a cluster keeps in ``<state_dir>/cluster/``, and how that overlays its settings.

Nobody edits these files. The folder gets its name once all of it is there: a node with it is a
member, one without it a lone node, whatever a join or founding that was broken off has left.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from appliance.config import Config, Section
from appliance.errors import ConfigError
from appliance.files import write_whole

SETTINGS = "settings.json"
"""The file of what the cluster has decided, in a member's folder."""


class MemberSettings(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the cluster has decided for one node; it holds secrets.

    ``address`` is where other nodes reach this one, without the port. ``bus_url`` has the login's
    password in it; ``also_url`` is another broker that is heard, too, while messages move from it
    or to it. ``store_url`` is empty on a hypervisor. That the store or a bus ``is_ours`` means that
    the cluster's own authority vouches for it. ``decided`` maps a section of the settings to what
    holds on all nodes. ``revision`` is that of the members when it was decided.
    """

    node_id: str
    node_name: str
    zone: str
    roles: tuple[str, ...]
    is_control: bool
    address: str
    port: int
    revision: int = 0
    bus_url: str = ""
    bus_is_ours: bool = True
    store_url: str = ""
    store_is_ours: bool = True
    also_url: str = ""
    also_is_ours: bool = True
    decided: dict[str, dict[str, Any]] = {}


def folder_of(state_dir: Path) -> Path:
    """Return the folder of what makes a node a member."""
    return state_dir / "cluster"


def is_member(config: Config) -> bool:
    """Say whether the node is in a cluster.

    A folder that this user may not look into counts as one: then the reader is told.
    """
    try:
        return (folder_of(config.state_dir) / SETTINGS).exists()
    except PermissionError:
        return True


def read(folder: Path) -> MemberSettings:
    """Return what the cluster has decided for the node with this folder.

    :raises ConfigError: there is nothing, or it cannot be read.
    """
    path = folder / SETTINGS
    try:
        return msgspec.json.decode(path.read_bytes(), type=MemberSettings)
    except FileNotFoundError as error:
        raise ConfigError(
            "This node is in no cluster.", hint="`anynode join` or `anynode init` changes that."
        ) from error
    except PermissionError as error:
        raise ConfigError(
            f"This user may not read {path}.", hint="Run the command as root."
        ) from error
    except OSError as error:
        raise ConfigError(f"Could not read {path}: {error.strerror}.") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"The file {path} is damaged.") from error


def write(folder: Path, settings: MemberSettings) -> None:
    """Put the settings in place as a whole."""
    write_whole(folder / SETTINGS, msgspec.json.encode(settings))


def overlay(config: Config) -> Config:
    """Return the settings with what the cluster has decided over them; a lone node's as they are.

    On a hypervisor ``store.url`` is empty whatever the file says: it has no store.

    :raises ConfigError: what the cluster has decided cannot be read, or does not fit.
    """
    if not is_member(config):
        return config
    folder = folder_of(config.state_dir)
    return with_layers(config, layers_of(read(folder), folder))


def layers_of(settings: MemberSettings, folder: Path) -> dict[str, dict[str, Any]]:
    """Return what overlays the settings of the node with this folder, by section."""
    layers = {name: dict(one) for name, one in settings.decided.items()}
    layers.setdefault("node", {}).update(
        name=settings.node_name, zone=settings.zone, roles=settings.roles
    )
    layers.setdefault("cluster", {}).update(address=settings.address, port=settings.port)
    layers.setdefault("store", {}).update(url=_checked_store_url(settings, folder))
    if settings.bus_url:
        layers.setdefault("bus", {}).update(url=settings.bus_url)
    return layers


def _checked_store_url(settings: MemberSettings, folder: Path) -> str:
    """Return the store's URL with what its server is checked against; where that is differs."""
    url = settings.store_url
    if not url or not settings.store_is_ours:
        return url
    return f"{url}{'&' if '?' in url else '?'}sslrootcert={quote(str(folder / 'authority.pem'))}"


def with_layers(config: Config, layers: Mapping[str, Mapping[str, Any]]) -> Config:
    """Return settings with some changed, by section; those that this version lacks are left out.

    :raises ConfigError: a value does not fit.
    """
    changed = {
        name: _with_layer(section, layers[name])
        for name in config.__struct_fields__
        if name in layers and isinstance(section := getattr(config, name), Section)
    }
    return msgspec.structs.replace(config, **changed)


def _with_layer(section: Section, layer: Mapping[str, Any]) -> Section:
    known = {name: value for name, value in layer.items() if name in section.__struct_fields__}
    whole = {**msgspec.to_builtins(section), **known}
    try:
        return msgspec.convert(whole, type(section), strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"What the cluster has decided does not fit: {error}.") from error
