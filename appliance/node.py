"""The process that runs roles: what they are given, how they start, and how they end.

A process has one node, or several on one store and bus: a sandbox pretends to be many machines.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from appliance import node_folders
from appliance.bus import Bus
from appliance.bus.local import LocalBus
from appliance.config import Config, without_password
from appliance.ending import Countdown, end_threads
from appliance.errors import ConfigError
from appliance.hooks import Observers, RoleMaker
from appliance.hookspecs import Credentials
from appliance.instance_types import CATALOG, Catalog
from appliance.instance_types import load as load_types
from appliance.lanes import Lanes
from appliance.plugin_loader import PluginLoader, loader_of
from appliance.role import Periodic, Role
from appliance.rounds import Rounds
from appliance.store import Store, migrations
from appliance.store import setup as store_setup
from appliance.store.nodes import Node as NodeRow
from appliance.world import World

log = logging.getLogger(__name__)

STORE_ROLES = frozenset({"api", "controller", "scheduler", "network"})
"""The roles that reach the store; the others never do."""

WORK_THREADS = 32
"""Instances that are worked on at once; most of them wait for one to shut down."""

STOP_S = 20.0
"""Seconds that a stop may take in all; what goes on then is named and left."""

_ROUND_S = 5.0
"""Seconds that a round of periodic work has to end; it begins anew at the next start anyway."""

_PART_S = 1.0
"""Seconds that each part of a stop has, whatever those before it took."""

START_ORDER = ("network", "scheduler", "controller", "datapath", "compute", "proxy", "api")
"""The front door opens last, and rules are there before instances."""

FRONT_DOORS = ("api", "proxy")
"""The roles that take calls from outside; they stop first."""

WORKING_ROLE = "compute"
"""The role that works on instances, in the lanes of the node."""

LOCAL_BUS = "local:"


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

    It opens a store when one of its roles reaches it, and none otherwise.

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
        node_folders.make_folder(config.state_dir)
        node_folders.make_folder(config.run_dir)
        self._lock = node_folders.lock(config.run_dir)
        self.node_id = node_folders.remembered_id(config.state_dir / "node_id", self.world)
        self.boot_id = node_folders.remembered_id(config.run_dir / "boot_id", self.world)
        self._store: Store | None = beside._store if beside else self._open_store()
        if self._store:
            self._enlist(self._store)
        self._bus: Bus = beside._bus if beside else _make_bus(config, self._store, self.world)
        made = credentials(self._store) if credentials and self._store else None
        self.plugins = loader_of(config, made)
        self.work = Lanes("work", WORK_THREADS)
        self.observers = Observers(self.plugins.create_all("appliance.observer", config.observers))
        self.roles: dict[str, Role] = {}
        self._rounds: dict[str, Rounds] = {}
        self._changing = threading.RLock()
        self._nodes: list[Node] = [self]
        if beside:
            beside._nodes.append(self)

    @property
    def store(self) -> Store:
        """The store.

        :raises ConfigError: none of this node's roles reaches it.
        """
        if self._store is None:
            raise ConfigError("None of the roles of this node reaches the store.")
        return self._store

    @property
    def bus(self) -> Bus:
        """The bus."""
        return self._bus

    def _open_store(self) -> Store | None:
        if not STORE_ROLES.intersection(self.config.node.roles):
            return None
        store = Store(self.config.store_url, self.world)
        migrations.upgrade(store)
        return store

    def _enlist(self, store: Store) -> None:
        """Make the node known, and the networks of its zone."""
        row = NodeRow(
            node_id=self.node_id,
            name=self.config.node_name,
            zone=self.config.node.zone,
            roles=self.config.node.roles,
        )
        store.transaction(lambda tx: store_setup.prepare(tx, self.config))
        store.transaction(lambda tx: store_setup.join(tx, row))

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
                self._bus.serve(node.roles[name])
            for node, name in all_roles:
                log.info("starting role %s", name)
                node.roles[name].start()
            self._bus.start()
        except BaseException:
            self.stop()
            raise
        for node in self._nodes:
            for name in node.roles:
                node._begin_rounds(name)
            log.info("node %s is up with %s", node.config.node_name, ", ".join(node.roles))

    @property
    def port(self) -> int:
        """The TCP port that EC2 is on once the node has started; 0 without one."""
        return next((self.roles[name].port() for name in FRONT_DOORS if name in self.roles), 0)

    def start_role(self, name: str) -> None:
        """Start one more role while the node runs; nothing when it has it already.

        :raises AnynodeError: it could not start; nothing is left of it.
        """
        with self._changing:
            if name in self.roles:
                return
            log.info("starting role %s", name)
            role = self._make_role(name)
            try:
                role.start()
                self._bus.serve(role)
            except BaseException:
                self._bus.retire(role.topic, _PART_S)
                self._stop_role(role)
                raise
            self.roles[name] = role
            self._begin_rounds(name)

    def stop_role(self, name: str, deadline_s: float = STOP_S) -> None:
        """Stop one role while the node runs; nothing when it does not have it.

        What others have sent it waits for whoever serves its topic next.
        """
        with self._changing:
            role = self.roles.get(name)
            if role is None:
                return
            log.info("stopping role %s", name)
            countdown = Countdown(deadline_s)
            rounds = self._rounds.pop(name, Rounds())
            rounds.end()
            if name in FRONT_DOORS:
                _at_once([lambda: self._stop_role(role)], countdown)
            self._bus.retire(role.topic, countdown.left_s(_PART_S))
            if name == WORKING_ROLE:
                self.work.stop(countdown.left_s(_PART_S))
                self.work = Lanes("work", WORK_THREADS)
            end_threads(rounds.threads, min(countdown.left_s(_PART_S), _ROUND_S))
            _at_once([lambda: self._stop_role(role)], countdown)
            del self.roles[name]

    def _make_role(self, name: str) -> Role:
        parts = NodeParts(
            world=self.world,
            config=self.config,
            bus=self._bus,
            store=self._store if name in STORE_ROLES else None,
            plugins=self.plugins,
            observers=self.observers,
            work=self.work,
            node_id=self.node_id,
            boot_id=self.boot_id,
            types=self._types,
        )
        return RoleMaker(name, self.plugins.create(RoleMaker.group, name)).create(parts)

    def _begin_rounds(self, name: str) -> None:
        for periodic in self.roles[name].periodic:
            self._repeat(periodic, name)

    def _repeat(self, periodic: Periodic, role: str = "") -> None:
        self._rounds.setdefault(role, Rounds()).begin(periodic)

    def _stop_roles(self) -> None:
        for name in reversed([name for name in self.roles if name not in FRONT_DOORS]):
            self._stop_role(self.roles[name])
        self.roles.clear()

    def _stop_role(self, role: Role) -> None:
        try:
            role.stop()
        except Exception:
            log.exception("role %s did not stop cleanly", role.name)

    def stop(self, deadline_s: float = STOP_S) -> None:
        """Stop the roles, those of the nodes beside too; instances go on. Safe to repeat.

        The front door first, then the work on instances while others still answer it, then the
        messages, and only then what the handlers of messages write to. Nothing of it waits for
        long: whatever has not ended within ``deadline_s`` seconds in all is logged and left.
        """
        countdown = Countdown(deadline_s)
        rounds = [one for node in self._nodes for one in node._rounds.values()]
        for one in rounds:
            one.end()
        doors = [self.roles[name] for name in FRONT_DOORS if name in self.roles]
        _at_once([partial(self._stop_role, door) for door in doors], countdown)
        for node in self._nodes:
            node.work.stop(countdown.left_s(_PART_S))
        timers = [thread for one in rounds for thread in one.threads]
        end_threads(timers, min(countdown.left_s(_PART_S), _ROUND_S))
        self._bus.stop(countdown.left_s(_PART_S))
        # Each waits a moment for its hypervisor.
        _at_once([node._stop_roles for node in self._nodes], countdown)
        if self._store:
            self._store.close()
        for node in self._nodes:
            if not node._lock.closed:
                node._lock.close()
                log.info("node %s has stopped", node.config.node_name)


def _at_once(stops: Sequence[Callable[[], None]], countdown: Countdown) -> None:
    """Stop several things at once and wait for them, for what is left of the time."""
    threads = [threading.Thread(target=stop, name="stop", daemon=True) for stop in stops]
    for thread in threads:
        thread.start()
    end_threads(threads, countdown.left_s(_PART_S))


def _check_roles(config: Config) -> None:
    """Refuse roles that reach the store: the bus has one of each.

    :raises ConfigError: there are some.
    """
    wrong = STORE_ROLES.intersection(config.node.roles)
    if wrong:
        raise ConfigError(f"A further node of a process cannot be {', '.join(sorted(wrong))}.")


def _make_bus(config: Config, store: Store | None, world: World) -> Bus:
    """Return the bus of the settings, which does not deliver yet.

    :raises ConfigError: there is none for that URL, or it needs a store that is not here.
    """
    if config.bus.url != LOCAL_BUS:
        shown = without_password(config.bus.url)
        raise ConfigError(f"There is no bus for {shown!r}; there is {LOCAL_BUS}.")
    if store is None:
        raise ConfigError(
            f"The bus {LOCAL_BUS} needs a store, and none of the node's roles reaches one.",
            hint="Join a cluster, or give the node the roles of a lone one.",
        )
    return LocalBus(store, world, attempts=config.bus.attempts, lanes=config.bus.lanes)
