"""What is on a node, from all there who know something of it: gathered without changing anything.

The store is not asked: a node without its login answers, too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

import msgspec

from appliance.cluster.membership import Membership
from appliance.cluster.peer_messages import PeerMessage
from appliance.compute.record import HELD, REPORT, Held, OwedReport
from appliance.config import Config
from appliance.datapath.record import NETWORK, PORT, NetworkRecord, PortRecord
from appliance.errors import AnynodeError, ConfigError
from appliance.hooks import Compute, Driver, Firewall, Network
from appliance.images.store import ImageStore, StoredFile
from appliance.journal import read_journal
from appliance.model import (
    Finding,
    FirewallState,
    InstanceFact,
    NetworkState,
    Value,
)
from appliance.plugin_loader import quiet_loader_of, used_names

T = TypeVar("T")
D = TypeVar("D", bound=Driver)


class User(Value, frozen=True, kw_only=True):
    """A process that works on the files of a network or an instance, its ``owner``."""

    owner: str
    pid: int
    program: str


class NodeFacts(PeerMessage, frozen=True, kw_only=True):
    """What is on one node. What could not be read is ``None`` or missing, and in ``unread``.

    ``hidden`` names the fakes that keep what they have in the memory of the node's process.
    ``findings`` are what the node finds wrong itself. ``began_at`` and ``ended_at`` are by its
    clock, in seconds since the epoch; ``members_revision`` is that of the list that it goes by.
    There are no secrets in it.
    """

    node_id: str
    began_at: float
    ended_at: float
    held: dict[str, Held] = msgspec.field(default_factory=dict)
    owed: dict[str, OwedReport] = msgspec.field(default_factory=dict)
    ports: dict[str, PortRecord] = msgspec.field(default_factory=dict)
    networks: dict[str, NetworkRecord] = msgspec.field(default_factory=dict)
    hypervisor: dict[str, InstanceFact] | None = None
    network_states: dict[str, NetworkState] = msgspec.field(default_factory=dict)
    firewall: FirewallState | None = None
    directories: frozenset[str] = frozenset()
    partial_files: tuple[str, ...] = ()
    image_files: tuple[StoredFile, ...] = ()
    users: tuple[User, ...] = ()
    unread: dict[str, str] = msgspec.field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    members_revision: int = -1
    findings: tuple[Finding, ...] = ()


def gather_here(config: Config, *, is_asked_inside: bool = False) -> NodeFacts:
    """Look at everything on this node once.

    :param is_asked_inside: the node's process does it itself, beside its own plugins.
    :raises ConfigError: no node was ever set up here.
    """
    began_at, node_id = time.time(), _node_id(config)
    unread: dict[str, str] = {}

    def read(what: str, work: Callable[[], T], otherwise: T) -> T:
        try:
            return work()
        except (AnynodeError, OSError) as error:
            unread[what] = str(error)
            return otherwise

    drivers = Drivers(config, is_asked_inside=is_asked_inside)
    instances = read(
        "the hypervisor",
        lambda: drivers.look(Compute, config.compute.driver, lambda made: made.list()),
        None,
    )
    states = {
        name: state
        for name in used_names(config, Network.group)
        for state in [read(f"network type {name}", _state_of(drivers, name), None)]
        if state is not None
    }
    firewall = read(
        "the firewall",
        lambda: drivers.look(Firewall, config.firewall.driver, lambda made: made.state()),
        None,
    )
    nothing: dict[str, dict[str, bytes]] = {}
    compute = read(
        "the compute journal", lambda: read_journal(config.state_dir / "compute.sqlite"), nothing
    )
    datapath = read(
        "the datapath journal", lambda: read_journal(config.state_dir / "datapath.sqlite"), nothing
    )
    directories = _directories(config.state_dir / "instances")
    return NodeFacts(
        node_id=node_id,
        began_at=began_at,
        held=_decoded(compute.get(HELD), Held),
        owed=_decoded(compute.get(REPORT), OwedReport),
        ports=_decoded(datapath.get(PORT), PortRecord),
        networks=_decoded(datapath.get(NETWORK), NetworkRecord),
        hypervisor=None if instances is None else {fact.instance_id: fact for fact in instances},
        network_states=states,
        firewall=firewall,
        directories=frozenset(path.name for path in directories),
        partial_files=tuple(file for path in directories for file in _partial_files(path)),
        image_files=read("the image store", lambda: _image_files(config), ()),
        users=tuple(_users(config)),
        members_revision=_members_revision(config),
        unread=unread,
        hidden=tuple(drivers.hidden),
        ended_at=time.time(),
    )


def without_secrets(facts: NodeFacts) -> NodeFacts:
    """Return facts without what owners have given to their instances."""
    held = {name: msgspec.structs.replace(one, binding=None) for name, one in facts.held.items()}
    ports = {
        name: msgspec.structs.replace(
            one, metadata=msgspec.structs.replace(one.metadata, user_data_base64="")
        )
        for name, one in facts.ports.items()
    }
    return msgspec.structs.replace(facts, held=held, ports=ports)


def _members_revision(config: Config) -> int:
    member = Membership.of(config.state_dir)
    return member.members.current.revision if member else -1


def _state_of(drivers: Drivers, name: str) -> Callable[[], NetworkState | None]:
    return lambda: drivers.look(Network, name, lambda made: made.list())


def is_running(config: Config) -> bool:
    """Say whether a node's process holds these folders; asks the kernel, not the lock itself."""
    return _holder(config) is not None


def _holder(config: Config) -> int | None:
    """Return the process that holds these folders; 0 for one of another container."""
    try:
        status = (config.run_dir / "node.lock").stat()
    except FileNotFoundError:
        return None
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    wanted = f"{device}:{status.st_ino}"
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        words = line.split()
        if wanted in words and "->" not in line:
            return int(words[4])
    return None


def _node_id(config: Config) -> str:
    try:
        return (config.state_dir / "node_id").read_text(encoding="ascii").strip()
    except OSError as error:
        raise ConfigError(
            f"Could not read {config.state_dir / 'node_id'}: {error.strerror}.",
            hint="Run it on a node, as root.",
        ) from error


def _decoded(bodies: Mapping[str, bytes] | None, form: type[T]) -> dict[str, T]:
    return {key: msgspec.json.decode(body, type=form) for key, body in (bodies or {}).items()}


def _directories(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _partial_files(folder: Path) -> list[str]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []  # the instance went meanwhile
    return [str(folder / name) for name in names if fnmatch(name, ".*.partial")]


def _image_files(config: Config) -> tuple[StoredFile, ...]:
    if not config.images_dir.is_dir():
        return ()
    return ImageStore(config.images_dir, group=config.images.group).list()


def command_lines() -> dict[int, list[str]]:
    """Return what runs on this machine, as ``ps`` shows it to all."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").strip("\0").split("\0")
        except OSError:
            continue
        if words[0]:
            found[int(path.parent.name)] = words
    return found


def _users(config: Config) -> Iterator[User]:
    """Yield the processes that use the folder of a network or an instance of this node."""
    networks = str(config.run_dir / "plugins" / "network-")
    instances = str(config.state_dir / "instances") + "/"
    for pid, words in command_lines().items():
        line = " ".join(words)
        owners = _names_after(line, networks, "subnet-") | _names_after(line, instances, "i-")
        for owner in sorted(owners):
            yield User(owner=owner, pid=pid, program=words[0])


def _names_after(line: str, folder: str, prefix: str) -> set[str]:
    """Return the ids below a folder that a command line names."""
    found = set()
    for part in line.split(folder)[1:]:
        words = part.replace(",", "/").replace(" ", "/").replace(".", "/").split("/")
        found |= {word for word in words[:3] if word.startswith(prefix)}
    return found


class Drivers:
    """The plugins of a node, made so that they only look."""

    def __init__(self, config: Config, *, is_asked_inside: bool = False) -> None:
        self.hidden: list[str] = []
        self._config = config
        self._is_asked_inside = is_asked_inside
        self._loader = quiet_loader_of(config)

    def make(self, driver: type[D], name: str) -> D:
        """Make one plugin."""
        return driver(name, self._loader.create(driver.group, name))

    def look(self, driver: type[D], name: str, ask: Callable[[D], T]) -> T | None:
        """Return what a plugin has.

        ``None`` when it is a fake whose ``is_in_memory`` says that only the plugin that works for
        the node can see it; it is then one of ``hidden``.
        """
        plugin = self._loader.create(driver.group, name)
        is_elsewhere = _holder(self._config) not in (None, os.getpid())
        if getattr(plugin, "is_in_memory", False) and (is_elsewhere or self._is_asked_inside):
            self.hidden.append(f"{driver.group.removeprefix('appliance.')} {name}")
            return None
        return ask(driver(name, plugin))

    def compute(self) -> Compute:
        """Return the hypervisor."""
        return self.make(Compute, self._config.compute.driver)

    def network(self, name: str) -> Network:
        """Return the driver of a network type."""
        return self.make(Network, name)

    def firewall(self) -> Firewall:
        """Return the firewall."""
        return self.make(Firewall, self._config.firewall.driver)
