"""All settings: one field per setting with its default, unit and meaning.

The table drives the reading of ``anynode.toml``, ``anynode config`` and the reference page.
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta, Struct

from appliance.errors import ConfigError

CONFIG_NAME = "anynode.toml"

_PASSWORD = re.compile(r"^((?:[^:/@]*://)?[^:/@]*):.*@", re.DOTALL)
_SECRET_PARAMETER = re.compile(r"([?&][^=&]*(?:pass|pwd|secret|token)[^=&]*)=[^&]*", re.IGNORECASE)


def without_password(url: str) -> str:
    """Return a URL as it may be shown, whatever is wrong with it."""
    return _SECRET_PARAMETER.sub(r"\1=***", _PASSWORD.sub(r"\1:***@", url))


def _meaning(text: str, **limits: Any) -> Meta:
    return Meta(description=text, **limits)


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of a group of settings."""


class NodeSettings(Section, frozen=True, kw_only=True):
    """The node itself."""

    name: Annotated[str, _meaning("name of the node; empty: the host name")] = ""
    region: Annotated[str, _meaning("EC2 region that the node serves")] = "local-1"
    zone: Annotated[str, _meaning("availability zone that the node is in")] = "local-1a"
    roles: Annotated[tuple[str, ...], _meaning("roles that the node takes on")] = (
        "api",
        "controller",
        "scheduler",
        "network",
        "datapath",
        "compute",
    )
    state_dir: Annotated[str, _meaning("folder of all that must outlive a reboot")] = (
        "/var/lib/anynode"
    )
    run_dir: Annotated[str, _meaning("folder of what must not outlive a reboot")] = "/run/anynode"
    log_file: Annotated[str, _meaning("log file; empty: standard error")] = ""
    log_level: Annotated[str, _meaning("least severe level that is logged")] = "INFO"


class StoreSettings(Section, frozen=True, kw_only=True):
    """Where the cluster's state is."""

    url: Annotated[
        str,
        _meaning(
            "postgresql://user:password@host/database, several hosts with commas between; "
            "empty: SQLite in the state folder"
        ),
    ] = ""
    history_days: Annotated[
        int, _meaning("days after which timelines and decisions are deleted", ge=1)
    ] = 30
    audit_days: Annotated[
        int, _meaning("days after which lines of the audit log are deleted", ge=1)
    ] = 90
    terminated_s: Annotated[
        int, _meaning("seconds for which a terminated instance stays listed", ge=60)
    ] = 3600


class BusSettings(Section, frozen=True, kw_only=True):
    """How roles talk to each other."""

    url: Annotated[
        str, _meaning("local: (one process), or amqp:// or amqps:// URLs with commas between")
    ] = "local:"
    attempts: Annotated[
        int, _meaning("times a message is tried before it is a dead letter", ge=1)
    ] = 5
    lanes: Annotated[int, _meaning("messages that one role works on at once", ge=1)] = 4
    call_deadline_s: Annotated[
        float, _meaning("seconds that a question between roles may take", gt=0)
    ] = 30.0


class ClusterSettings(Section, frozen=True, kw_only=True):
    """The node among others."""

    address: Annotated[
        str, _meaning("address at which other nodes reach this one; empty: found at `join`")
    ] = ""
    port: Annotated[int, _meaning("TCP port of the peer service", ge=1, le=65535)] = 8774
    store_port: Annotated[
        int, _meaning("TCP port of a PostgreSQL that `init` makes", ge=1, le=65535)
    ] = 5432
    bus_port: Annotated[
        int, _meaning("TCP port of a RabbitMQ that `init` makes", ge=1, le=65535)
    ] = 5671
    bus_admin_port: Annotated[
        int, _meaning("TCP port at which that RabbitMQ is administered", ge=1, le=65535)
    ] = 15671


class ApiSettings(Section, frozen=True, kw_only=True):
    """The EC2 front door."""

    address: Annotated[str, _meaning("address that the API listens on")] = "127.0.0.1"
    port: Annotated[int, _meaning("TCP port that the API listens on", ge=0, le=65535)] = 8773
    threads: Annotated[int, _meaning("requests that are served at once", ge=1)] = 8
    auth: Annotated[tuple[str, ...], _meaning("authentication plugins, in order")] = ("accesskey",)
    account_id: Annotated[
        str, _meaning("account number in ARNs and owner ids", pattern=r"^\d{12}$")
    ] = "000000000000"
    instance_types: Annotated[
        str, _meaning("TOML file of instance types; empty: the built-in ones")
    ] = ""


class SchedulerSettings(Section, frozen=True, kw_only=True):
    """Where instances go."""

    driver: Annotated[str, _meaning("scheduler plugin")] = "filter"
    attempts: Annotated[
        int, _meaning("nodes that a launch is tried on before it fails", ge=1, le=10)
    ] = 3


class ControllerSettings(Section, frozen=True, kw_only=True):
    """Watching over what is wanted and what is."""

    node_silence_s: Annotated[
        float, _meaning("seconds of silence after which a node is down", gt=0)
    ] = 30.0
    sweep_every_s: Annotated[float, _meaning("seconds between two sweeps", gt=0)] = 5.0
    progress_s: Annotated[
        float, _meaning("seconds without progress after which work is ordered again", gt=0)
    ] = 60.0
    give_up_s: Annotated[
        float, _meaning("seconds without progress after which a launch is given up", gt=0)
    ] = 600.0


class NetworkSettings(Section, frozen=True, kw_only=True):
    """The default networks, each made when the first node of its zone starts."""

    type: Annotated[
        str,
        _meaning(
            "network plugin of default networks; empty: flatdhcp on a lone node, vxlan in a cluster"
        ),
    ] = ""
    cidr: Annotated[
        str, _meaning("IPv4 range of the first zone's default network; others get one as large")
    ] = "10.64.0.0/24"
    vpc_cidr: Annotated[
        str, _meaning("IPv4 range of the default VPC; empty: the /16 around network.cidr")
    ] = ""
    bridge: Annotated[
        str,
        _meaning(
            "bridge of the first zone's default network; others count up",
            max_length=15,
            pattern=r"^[a-z0-9]+$",
        ),
    ] = "anbr0"
    dns: Annotated[
        tuple[str, ...], _meaning("name servers for instances; none: those of the node")
    ] = ()
    metadata: Annotated[
        bool, _meaning("whether instances find the metadata service at 169.254.169.254")
    ] = True
    mtu: Annotated[
        int,
        _meaning(
            "bytes that a packet between the machines may carry; those of instances, too, less "
            "what a tunnel needs (50 of vxlan)",
            ge=626,
        ),
    ] = 1500
    first_segment: Annotated[
        int, _meaning("lowest number of a network that spans nodes (VNI)", ge=1, le=16777215)
    ] = 10000
    last_segment: Annotated[
        int, _meaning("highest number of a network that spans nodes (VNI)", ge=1, le=16777215)
    ] = 16777215
    address_quarantine_s: Annotated[
        float, _meaning("seconds after which an unconfirmed freed address is issued again", ge=0)
    ] = 600.0


class FirewallSettings(Section, frozen=True, kw_only=True):
    """The node's firewall."""

    driver: Annotated[str, _meaning("firewall plugin")] = "nftables"


class ComputeSettings(Section, frozen=True, kw_only=True):
    """The node's instances."""

    driver: Annotated[str, _meaning("compute plugin")] = "libvirt"
    injection: Annotated[
        tuple[str, ...], _meaning("injection plugins allowed here; the first is the default")
    ] = ("configdrive", "none")
    vcpu_ratio: Annotated[float, _meaning("vcpus offered per CPU of the machine", gt=0)] = 8.0
    memory_ratio: Annotated[float, _meaning("memory offered per memory of the machine", gt=0)] = 1.0
    disk_ratio: Annotated[float, _meaning("disk offered per disk of the machine", gt=0)] = 1.0
    reserved_memory_mib: Annotated[
        int, _meaning("MiB of memory that instances do not get", ge=0)
    ] = 512
    parallel_launches: Annotated[
        int, _meaning("instances that are built or removed at once", ge=1)
    ] = 4
    shutdown_s: Annotated[
        float, _meaning("seconds that an instance may take to shut down before it is forced", ge=0)
    ] = 60.0
    attic_days: Annotated[
        int,
        _meaning(
            "days after which files that were set aside (attic, in the state folder) are deleted; "
            "0: never",
            ge=0,
        ),
    ] = 30
    inventory_every_s: Annotated[
        float, _meaning("seconds between two comparisons with the controller", gt=0)
    ] = 60.0
    retry_s: Annotated[
        float, _meaning("seconds after which work that failed is tried again", gt=0)
    ] = 5.0
    heartbeat_every_s: Annotated[float, _meaning("seconds between two heartbeats", gt=0)] = 5.0


class ImageSettings(Section, frozen=True, kw_only=True):
    """Images on this node."""

    group: Annotated[
        str, _meaning("group of the QEMU user, which reads images; empty: that of the node")
    ] = "kvm"
    folder: Annotated[str, _meaning("folder of the images; empty: in the state folder")] = ""
    cache_mib: Annotated[
        int,
        _meaning(
            "MiB of images fetched from others to keep; beyond, those that no instance of this "
            "node uses go, the one used longest ago first",
            ge=0,
        ),
    ] = 20480
    largest_gib: Annotated[int, _meaning("GiB of virtual size that an image may have", ge=1)] = 2048


class QuotaSettings(Section, frozen=True, kw_only=True):
    """What a new project may use."""

    instances: Annotated[int, _meaning("instances", ge=0)] = 20
    vcpus: Annotated[int, _meaning("vcpus of running instances", ge=0)] = 64
    memory_mib: Annotated[int, _meaning("MiB of memory of running instances", ge=0)] = 131072
    security_groups: Annotated[int, _meaning("security groups", ge=0)] = 100
    rules: Annotated[int, _meaning("rules of one security group and direction", ge=0)] = 200
    key_pairs: Annotated[int, _meaning("key pairs", ge=0)] = 100


class Config(Section, frozen=True, kw_only=True):
    """All settings of a node.

    ``plugins`` maps a group without its ``appliance.`` to a plugin's name to its own settings.
    """

    node: NodeSettings = NodeSettings()
    store: StoreSettings = StoreSettings()
    bus: BusSettings = BusSettings()
    cluster: ClusterSettings = ClusterSettings()
    api: ApiSettings = ApiSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    controller: ControllerSettings = ControllerSettings()
    network: NetworkSettings = NetworkSettings()
    firewall: FirewallSettings = FirewallSettings()
    compute: ComputeSettings = ComputeSettings()
    images: ImageSettings = ImageSettings()
    quota: QuotaSettings = QuotaSettings()
    observers: Annotated[tuple[str, ...], _meaning("observer plugins")] = ()
    plugins: dict[str, dict[str, dict[str, Any]]] = {}

    @property
    def node_name(self) -> str:
        """The node's name, the host's when none is set."""
        return self.node.name or socket.gethostname().split(".")[0]

    @property
    def state_dir(self) -> Path:
        """The folder of what outlives a reboot."""
        return Path(self.node.state_dir)

    @property
    def run_dir(self) -> Path:
        """The folder of what does not outlive a reboot."""
        return Path(self.node.run_dir)

    @property
    def images_dir(self) -> Path:
        """The folder of the image store."""
        return Path(self.images.folder) if self.images.folder else self.state_dir / "images"

    @property
    def store_url(self) -> str:
        """The store's URL."""
        return self.store.url or f"sqlite:///{self.state_dir / 'store.sqlite'}"

    def plugin_settings(self, group: str, name: str) -> Mapping[str, Any]:
        """Return the raw settings of one plugin."""
        return self.plugins.get(group.removeprefix("appliance."), {}).get(name, {})


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting as a page or table shows it."""

    name: str
    type: str
    default: Any
    help: str


def settings_of(struct: type[Struct], prefix: str = "") -> Iterator[Setting]:
    """Yield the settings of a struct and of its sections, in order."""
    hints = get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        hint = hints[field.name]
        if isinstance(hint, type) and issubclass(hint, Section):
            yield from settings_of(hint, f"{prefix}{field.name}.")
            continue
        meaning = next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Meta)), None)
        if meaning is None:
            continue
        base = hint.__origin__
        yield Setting(
            name=prefix + field.name,
            type=getattr(base, "__name__", str(base)),
            default=field.default,
            help=meaning.description or "",
        )


def find_config(explicit: str | None = None) -> Path | None:
    """Return the file that counts: ``--config``, ``$ANYNODE_CONFIG``, ``./var``, ``/etc/anynode``.

    ``None`` when there is none and the defaults hold.

    :raises ConfigError: a file was named and is not there.
    """
    named = explicit or os.environ.get("ANYNODE_CONFIG")
    if named:
        path = Path(named)
        path = path / CONFIG_NAME if path.is_dir() else path
        if not path.is_file():
            raise ConfigError(f"There is no configuration file {path}.")
        return path
    for folder in (Path("var"), Path("/etc/anynode")):
        if (folder / CONFIG_NAME).is_file():
            return folder / CONFIG_NAME
    return None


def load_config(path: Path | None) -> Config:
    """Read a configuration file; the defaults where there is none.

    :raises ConfigError: it cannot be read, is no TOML, or has an unknown or ill-typed setting.
    """
    if path is None:
        return Config()
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Could not read {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}.") from error
    try:
        return msgspec.convert(raw, Config, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"Bad setting in {path}: {error}.", hint="`anynode config` lists all settings."
        ) from error
