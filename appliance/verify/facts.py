"""What is on a node, from all who know something of it: gathered without changing anything."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from appliance.compute.record import HELD, REPORT, Held, OwedReport
from appliance.config import Config
from appliance.datapath.record import NETWORK, PORT, NetworkRecord, PortRecord
from appliance.errors import AnynodeError, ConfigError
from appliance.hooks import Compute, Driver, Firewall, Network
from appliance.images.store import ImageStore, StoredFile
from appliance.journal import read_journal
from appliance.model import (
    FirewallState,
    InstanceFact,
    NetworkSpec,
    NetworkState,
    RemotePort,
)
from appliance.plugin_loader import quiet_loader_of, used_names
from appliance.store import Store, Transaction, reach, sqlite_path
from appliance.store import facts as store_facts
from appliance.store.facts import StoreFacts
from appliance.world import World

T = TypeVar("T")
D = TypeVar("D", bound=Driver)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that is known. What could not be read is ``None`` or missing, and in ``unread``.

    ``hidden`` names the fakes that keep what they have in the memory of the node's process.
    ``elsewhere`` are, for each network of this node that spans nodes, its ports on others, by the
    store.
    """

    now: float
    node_id: str
    is_running: bool
    store: StoreFacts
    held: Mapping[str, Held] = field(default_factory=dict)
    owed: Mapping[str, OwedReport] = field(default_factory=dict)
    ports: Mapping[str, PortRecord] = field(default_factory=dict)
    networks: Mapping[str, NetworkRecord] = field(default_factory=dict)
    hypervisor: Mapping[str, InstanceFact] | None = None
    network_states: Mapping[str, NetworkState] = field(default_factory=dict)
    elsewhere: Mapping[str, tuple[RemotePort, ...]] = field(default_factory=dict)
    firewall: FirewallState | None = None
    directories: frozenset[str] = frozenset()
    partial_files: tuple[Path, ...] = ()
    image_files: tuple[StoredFile, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()


def gather(config: Config) -> Facts:
    """Look at everything once.

    What may lag behind is read first and the store last, so that an instance that comes or goes
    meanwhile is judged by the newest word on it.

    :raises ConfigError: no node was ever set up here.
    """
    node_id = _node_id(config)
    unread: dict[str, str] = {}

    def read(what: str, work: Callable[[], T], otherwise: T) -> T:
        try:
            return work()
        except (AnynodeError, OSError) as error:
            unread[what] = str(error)
            return otherwise

    drivers = Drivers(config)
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
    known_networks = _decoded(datapath.get(NETWORK), NetworkRecord)
    spanning = [
        record.network
        for record in known_networks.values()
        if record.network.segment and record.network.type in states
    ]
    store, elsewhere = read_store(
        config, lambda tx: (store_facts.read(tx), _elsewhere(tx, spanning, node_id))
    )
    return Facts(
        node_id=node_id,
        is_running=is_running(config),
        held=_decoded(compute.get(HELD), Held),
        owed=_decoded(compute.get(REPORT), OwedReport),
        ports=_decoded(datapath.get(PORT), PortRecord),
        networks=known_networks,
        hypervisor=None if instances is None else {fact.instance_id: fact for fact in instances},
        network_states=states,
        elsewhere=elsewhere,
        firewall=firewall,
        directories=frozenset(path.name for path in directories),
        partial_files=tuple(file for path in directories for file in path.glob(".*.partial")),
        image_files=read("the image store", lambda: _image_files(config), ()),
        unread=unread,
        hidden=tuple(drivers.hidden),
        store=store,
        now=time.time(),
    )


def _elsewhere(
    tx: Transaction, networks: Iterable[NetworkSpec], node_id: str
) -> dict[str, tuple[RemotePort, ...]]:
    return {one.network_id: reach.whole(tx, one.network_id, 0, node_id).remotes for one in networks}


def _state_of(drivers: Drivers, name: str) -> Callable[[], NetworkState | None]:
    return lambda: drivers.look(Network, name, lambda made: made.list())


def read_store(config: Config, work: Callable[..., T]) -> T:
    """Read the store of a node, whether the node runs or not.

    :raises ConfigError: there is no store.
    """
    store = open_store(config)
    try:
        return store.read(work)
    finally:
        store.close()


def open_store(config: Config) -> Store:
    """Open the store of a node; never makes one.

    :raises ConfigError: there is no store.
    """
    path = sqlite_path(config.store_url)
    if path and not path.exists():
        raise ConfigError(f"There is no store {path}.", hint="`anynode run` makes one.")
    return Store(config.store_url, World())


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


def _image_files(config: Config) -> tuple[StoredFile, ...]:
    if not config.images_dir.is_dir():
        return ()
    return ImageStore(config.images_dir, group=config.images.group).list()


class Drivers:
    """The plugins of a node, made so that they only look."""

    def __init__(self, config: Config) -> None:
        self.hidden: list[str] = []
        self._config = config
        self._loader = quiet_loader_of(config)

    def make(self, driver: type[D], name: str) -> D:
        """Make one plugin."""
        return driver(name, self._loader.create(driver.group, name))

    def look(self, driver: type[D], name: str, ask: Callable[[D], T]) -> T | None:
        """Return what a plugin has.

        ``None`` when it is a fake whose ``is_in_memory`` says that only the node's process can see
        it; it is then one of ``hidden``.
        """
        plugin = self._loader.create(driver.group, name)
        is_hidden = getattr(plugin, "is_in_memory", False)
        if is_hidden and _holder(self._config) not in (None, os.getpid()):
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
