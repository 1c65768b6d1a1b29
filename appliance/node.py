"""The process that runs roles: what they are given, how they start, and how they end.

A process has one node, or several on one store and bus: a sandbox pretends to be many machines.
"""

from __future__ import annotations

import fcntl
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from appliance.bus import Bus
from appliance.bus.local import LocalBus
from appliance.config import Config, without_password
from appliance.errors import AnynodeError, ConfigError
from appliance.files import write_whole
from appliance.hooks import Observers, RoleMaker
from appliance.hookspecs import Credentials
from appliance.instance_types import CATALOG, Catalog
from appliance.instance_types import load as load_types
from appliance.lanes import Lanes
from appliance.plugin_loader import PluginLoader, loader_of
from appliance.role import Periodic, Role
from appliance.store import Store, migrations
from appliance.store import setup as store_setup
from appliance.store.nodes import Node as NodeRow
from appliance.world import World

log = logging.getLogger(__name__)

STORE_ROLES = frozenset({"api", "controller", "scheduler", "network"})
"""The roles that reach the store; the others never do."""

WORK_THREADS = 32
"""Instances that are worked on at once; most of them wait for one to shut down."""

START_ORDER = ("network", "scheduler", "controller", "datapath", "compute", "api")
"""The front door opens last, and rules are there before instances."""


@dataclass(frozen=True, kw_only=True)
class NodeParts:
    """What a role is given. ``store`` is there for the roles that reach it and for no others."""

    world: World
    config: Config
    bus: Bus
    store: Store | None
    plugins: PluginLoader
    observers: Observers
    work: Lanes
    node_id: str
    boot_id: str
    types: Catalog = field(default_factory=lambda: CATALOG)

    @property
    def node_name(self) -> str:
        """The node's name."""
        return self.config.node_name

    @property
    def zone(self) -> str:
        """The node's availability zone."""
        return self.config.node.zone

    @property
    def region(self) -> str:
        """The region."""
        return self.config.node.region

    @property
    def state_dir(self) -> Path:
        """The folder of what outlives a reboot."""
        return self.config.state_dir

    @property
    def run_dir(self) -> Path:
        """The folder of what does not outlive a reboot."""
        return self.config.run_dir

    def need_store(self) -> Store:
        """Return the store.

        :raises ConfigError: this role does not reach it.
        """
        if self.store is None:
            raise ConfigError("This role has no store.")
        return self.store

    def plugin(self, group: str, name: str) -> object:
        """Make a plugin that the settings name."""
        return self.plugins.create(group, name)


class Node:
    """A node with its roles, from ``start`` to ``stop``.

    :param beside: the node of this process whose store and bus this one shares. It starts and
        stops with that one, and takes on only roles that do not reach the store.
    :raises ConfigError: another process runs on the same folders, or a setting is wrong.
    """

    def __init__(
        self,
        config: Config,
        world: World | None = None,
        credentials: Callable[[Store], Credentials] | None = None,
        *,
        beside: Node | None = None,
    ) -> None:
        self.config = config
        self.world = world or World()
        if beside:
            _check_roles(config)
        types = config.api.instance_types
        self._types = load_types(Path(types) if types else None)
        _make_folder(config.state_dir)
        _make_folder(config.run_dir)
        self._lock = _lock(config.run_dir / "node.lock")
        self.node_id = _remembered(config.state_dir / "node_id", self.world)
        self.boot_id = _remembered(config.run_dir / "boot_id", self.world)
        self.store: Store = beside.store if beside else _open_store(config, self.world)
        self.store.transaction(lambda tx: store_setup.prepare(tx, config))
        row = NodeRow(
            node_id=self.node_id,
            name=config.node_name,
            zone=config.node.zone,
            roles=config.node.roles,
        )
        self.store.transaction(lambda tx: store_setup.join(tx, row))
        self.bus: LocalBus = beside.bus if beside else _make_bus(config, self.store, self.world)
        self.plugins = loader_of(config, credentials(self.store) if credentials else None)
        self.work = Lanes("work", WORK_THREADS)
        self.observers = Observers(self.plugins.create_all("appliance.observer", config.observers))
        self.roles: dict[str, Role] = {}
        self._stopping = threading.Event()
        self._timers: list[threading.Thread] = []
        self._nodes: list[Node] = [self]
        if beside:
            beside._nodes.append(self)

    def start(self) -> None:
        """Start all roles of the settings and of the nodes beside this one, the front door last.

        :raises AnynodeError: a role could not start; what had started is stopped again.
        """
        order = {name: place for place, name in enumerate(START_ORDER)}
        all_roles = sorted(
            ((node, name) for node in self._nodes for name in node.config.node.roles),
            key=lambda pair: order.get(pair[1], len(order)),
        )
        try:
            for node, name in all_roles:
                node.roles[name] = node._make_role(name)
                self.bus.serve(node.roles[name])
            for node, name in all_roles:
                log.info("starting role %s", name)
                node.roles[name].start()
            self.bus.start()
        except BaseException:
            self.stop()
            raise
        for node in self._nodes:
            for role in node.roles.values():
                for periodic in role.periodic:
                    node._repeat(periodic)
            log.info("node %s is up with %s", node.config.node_name, ", ".join(node.roles))

    @property
    def port(self) -> int:
        """The TCP port of the API once it has started; 0 without one."""
        return self.roles["api"].port() if "api" in self.roles else 0

    def _make_role(self, name: str) -> Role:
        parts = NodeParts(
            world=self.world,
            config=self.config,
            bus=self.bus,
            store=self.store if name in STORE_ROLES else None,
            plugins=self.plugins,
            observers=self.observers,
            work=self.work,
            node_id=self.node_id,
            boot_id=self.boot_id,
            types=self._types,
        )
        return RoleMaker(name, self.plugins.create(RoleMaker.group, name)).create(parts)

    def _repeat(self, periodic: Periodic) -> None:
        def loop() -> None:
            while not self._stopping.wait(periodic.every_s):
                try:
                    periodic.run()
                except AnynodeError as error:
                    log.warning("%s: %s", periodic.name, error)
                except Exception:
                    log.exception("%s failed; it is tried again", periodic.name)

        thread = threading.Thread(target=loop, name=periodic.name, daemon=True)
        self._timers.append(thread)
        thread.start()

    def _stop_roles(self) -> None:
        for name in reversed([name for name in self.roles if name != "api"]):
            self._stop_role(self.roles[name])
        self.roles.clear()

    def _stop_role(self, role: Role) -> None:
        try:
            role.stop()
        except Exception:
            log.exception("role %s did not stop cleanly", role.name)

    def stop(self, deadline_s: float = 30.0) -> None:
        """Stop the roles, those of the nodes beside too; instances go on. Safe to repeat.

        The front door first, then the work on instances while others still answer it, then the
        messages, and only then what the handlers of messages write to.
        """
        for node in self._nodes:
            node._stopping.set()
        for node in self._nodes:
            for thread in node._timers:
                thread.join(deadline_s)
        if "api" in self.roles:
            self._stop_role(self.roles["api"])
        for node in self._nodes:
            node.work.stop(deadline_s)
        self.bus.stop(deadline_s)
        # At once: each waits a moment for its hypervisor.
        with ThreadPoolExecutor(len(self._nodes), thread_name_prefix="stop") as pool:
            list(pool.map(lambda node: node._stop_roles(), self._nodes))
        self.store.close()
        for node in self._nodes:
            if not node._lock.closed:
                node._lock.close()


def _check_roles(config: Config) -> None:
    """Refuse roles that reach the store: the bus has one of each.

    :raises ConfigError: there are some.
    """
    wrong = STORE_ROLES.intersection(config.node.roles)
    if wrong:
        raise ConfigError(f"A further node of a process cannot be {', '.join(sorted(wrong))}.")


def _open_store(config: Config, world: World) -> Store:
    store = Store(config.store_url, world)
    migrations.upgrade(store)
    return store


def _make_bus(config: Config, store: Store, world: World) -> LocalBus:
    if config.bus.url != "local:":
        shown = without_password(config.bus.url)
        raise ConfigError(f"There is no bus for {shown!r}; there is local:.")
    return LocalBus(store, world, attempts=config.bus.attempts, lanes=config.bus.lanes)


def _make_folder(path: Path) -> None:
    """Make a folder that the hypervisor's user may pass through, and nobody may list."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o711)
    except OSError as error:
        raise ConfigError(
            f"Could not make {path}: {error.strerror}.",
            hint="Run as root, or set node.state_dir and node.run_dir to folders of yours.",
        ) from error


def _lock(path: Path) -> IO[str]:
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ConfigError(
            f"Another node runs on {path.parent}.", hint="`anynode status` shows it."
        ) from error
    return file


def _remembered(path: Path, world: World) -> str:
    """Return the id in a file, making it the first time."""
    if not path.exists():
        write_whole(path, f"{world.ids.uuid()}\n".encode(), mode=0o644)
    found = path.read_text(encoding="ascii").strip()
    if not found:
        raise ConfigError(
            f"The file {path} is empty: this node has lost its id.",
            hint="Write it anew from the store's list of nodes (`anynode status --json`).",
        )
    return found
