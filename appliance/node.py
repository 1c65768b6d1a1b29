"""The process that runs roles: what they are given, how they start, and how they end.

A process has one node, or several on one store and bus: a sandbox pretends to be many machines.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import msgspec
from msgspec import Struct

from appliance import bus as message_bus
from appliance import node_folders
from appliance.bus import Bus, MovingBus, Place
from appliance.cluster.membership import MEMBER_ROLE, Membership
from appliance.config import Config
from appliance.ending import Countdown, end_threads
from appliance.errors import AnynodeError, ConfigError, cause_chain
from appliance.hooks import Observers, RoleMaker
from appliance.hookspecs import Credentials
from appliance.instance_types import CATALOG, Catalog
from appliance.instance_types import load as load_types
from appliance.lanes import Lanes
from appliance.plugin_loader import PluginLoader, loader_of
from appliance.role import STORE_ROLES, Periodic, Role
from appliance.rounds import Rounds
from appliance.store import Store, migrations
from appliance.store import setup as store_setup
from appliance.store.nodes import Node as NodeRow
from appliance.world import World

log = logging.getLogger(__name__)

WORK_THREADS = 32
"""Instances that are worked on at once; most of them wait for one to shut down."""

STOP_S = 20.0
"""Seconds that a stop may take in all; what goes on then is named and left."""

_ROUND_S = 5.0
"""Seconds that a round of periodic work has to end; it begins anew at the next start anyway."""

_PART_S = 1.0
"""Seconds that each part of a stop has, whatever those before it took."""

START_ORDER = (
    *(MEMBER_ROLE, "network", "scheduler", "controller", "datapath", "compute", "proxy", "api"),
)
"""The front door opens last, and rules are there before instances."""

FRONT_DOORS = ("api", "proxy")
"""The roles that take calls from outside; they stop first."""

REMOVED_HINT = "`anynode join` with a new token makes it a node again."

WORKING_ROLE = "compute"
"""The role that works on instances, in the lanes of the node."""

HEARTBEAT = "heartbeat"
"""The name of the periodic work that tells the cluster how this node is."""


class Vital(Struct, frozen=True, kw_only=True):
    """How a node is; ``problems`` say by role why one does not run.

    ``buses`` are the brokers that it is connected to, see :class:`appliance.bus.MovingBus`.
    """

    release: str = ""
    roles: tuple[str, ...] = ()
    problems: dict[str, str] = {}
    buses: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NodeParts:
    """What a role is given. ``store`` is there for the roles that reach it and for no others.

    ``cluster`` is there on a node of a cluster; ``vital`` tells how the node's roles are, and
    ``follow`` brings the node to other settings while it runs.
    """

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
    cluster: Membership | None = None
    vital: Callable[[], Vital] = Vital
    follow: Callable[[Config], None] = lambda config: None

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
        self.cluster = Membership.of(config.state_dir)
        own = self.cluster.members.get(self.node_id) if self.cluster else None
        if self.cluster and own:
            # Its roles may have moved since its settings were written.
            config = self.config = self.cluster.settings_of(config, own)
        self._store: Store | None
        self._bus: Bus
        self._store, self._bus = (beside._store, beside._bus) if beside else self._connect(config)
        self._is_store_ready = False
        if not self.cluster and self._store:
            self._ready_store()
        self._credentials = credentials
        self.plugins = self._make_loader()
        self.work = Lanes("work", WORK_THREADS)
        self.observers = Observers(self.plugins.create_all("appliance.observer", config.observers))
        self.roles: dict[str, Role] = {}
        self.problems: dict[str, str] = {}
        self._is_stopped = False
        self._told = Vital()
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

    def _connect(self, config: Config) -> tuple[Store | None, Bus]:
        """Return the store, where a role reaches it, and the bus; neither is asked anything yet."""
        needs_store = bool(STORE_ROLES.intersection(config.node.roles))
        store = Store(config.store_url, self.world) if needs_store else None
        bus = message_bus.open(
            config,
            self.world,
            store,
            node_id=self.node_id,
            tls=self.cluster.bus_tls if self.cluster else None,
            signer=self.cluster.signer if self.cluster else None,
            declares=needs_store,
            also=self.cluster.also_bus if self.cluster else None,
        )
        return store, bus

    def _ready_store(self) -> None:
        """Bring the store to this program's form; a lone node makes itself known in it.

        :raises Unavailable: the store does not answer; it is tried again with the next role.
        """
        if self._is_store_ready:
            return
        store = self.store
        migrations.upgrade(store)
        if self.cluster is None:
            row = NodeRow(
                node_id=self.node_id,
                name=self.config.node_name,
                zone=self.config.node.zone,
                roles=self.config.node.roles,
            )
            store.transaction(lambda tx: store_setup.prepare(tx, self.config, self.node_id))
            store.transaction(lambda tx: store_setup.join(tx, row))
        self._is_store_ready = True

    def _make_loader(self) -> PluginLoader:
        made = self._credentials(self._store) if self._credentials and self._store else None
        return loader_of(self.config, made)

    def role_names(self) -> tuple[str, ...]:
        """Return the roles that this node shall have, in the order of their start.

        In a cluster that is a member's, and a proxy where EC2 is not answered here.
        """
        names = {*self.config.node.roles}
        if self.cluster:
            names |= {MEMBER_ROLE, "proxy"}
        if "api" in names:
            names -= {"proxy"}
        return tuple(sorted(names, key=_place_of))

    def start(self) -> None:
        """Start all roles of the settings and of the nodes beside this one, the front door last.

        In a cluster one that cannot start is a problem of its own, and is tried again.

        :raises AnynodeError: a role could not start; what had started is stopped again.
        """
        if self._was_removed():
            log.error("this node was removed from its cluster: it does nothing. %s", REMOVED_HINT)
            return
        all_roles = sorted(
            ((node, name) for node in self._nodes for name in node.role_names()),
            key=lambda pair: _place_of(pair[1]),
        )
        try:
            for node, name in all_roles:
                node._prepare_role(name)
            for node, name in all_roles:
                node._start_prepared(name)
            self._bus.start()
        except BaseException:
            self.stop()
            raise
        for node in self._nodes:
            for name in node.roles:
                node._begin_rounds(name)
            log.info("node %s is up with %s", node.config.node_name, ", ".join(node.roles))

    def _prepare_role(self, name: str) -> None:
        with self._tolerating(name):
            self.roles[name] = self._make_role(name)
            self._serve(self.roles[name])

    def _start_prepared(self, name: str) -> None:
        role = self.roles.get(name)
        if role is None:
            return
        log.info("starting role %s", name)
        is_up = False
        with self._tolerating(name):
            role.start()
            is_up = True
        if not is_up:
            self._bus.retire(role.topic, _PART_S)
            self._stop_role(role)
            del self.roles[name]

    @contextmanager
    def _tolerating(self, name: str) -> Iterator[None]:
        """Note why a role does not start, in a cluster: the others are worth having without it."""
        try:
            yield
        except AnynodeError as error:
            if self.cluster is None or name == MEMBER_ROLE:
                raise
            if self.problems.get(name) != error.message:
                log.error("role %s cannot start: %s", name, " <- ".join(cause_chain(error)))
            self.problems[name] = error.message
        else:
            self.problems.pop(name, None)

    def vital(self) -> Vital:
        """Return how the roles are."""
        roles = tuple(name for name in self.role_names() if name in {*self.roles})
        problems = dict(self.problems)
        bus = self._bus if isinstance(self._bus, MovingBus) else None
        if bus and (trouble := bus.trouble()):
            problems["bus"] = trouble
        buses = bus.places() if bus else ()
        return Vital(release=_release(), roles=roles, problems=problems, buses=buses)

    def follow(self, config: Config) -> None:
        """Bring a node of a cluster to other settings: roles come and go while the others go on.

        Where another store or bus, or anything else has changed, all roles begin anew; instances
        go on. What cannot start is tried again at the next call. Safe to repeat.

        :raises ConfigError: the settings cannot be used; nothing was changed.
        """
        with self._changing:
            if self._is_stopped:
                return
            if self._was_removed():
                self._leave()
                return
            has_store = self._store is not None
            needs_store = bool(STORE_ROLES.intersection(config.node.roles))
            is_same = _steady(config) == _steady(self.config)
            if is_same and has_store == needs_store and self._move_bus(config):
                self.config = config
                self._follow_roles()
            else:
                self._begin_anew(config)
            now = self.vital()
            if now != self._told:
                self._told = now
                self._hurry(HEARTBEAT)

    def _move_bus(self, config: Config) -> bool:
        """Go on over the broker of the settings; ``False``: only another bus can."""
        if not isinstance(self._bus, MovingBus) or self.cluster is None:
            return config.bus.url == self.config.bus.url
        urls = tuple(message_bus.urls_of(config))
        if urls == (message_bus.LOCAL,):
            return False
        place = Place(urls=urls, tls=self.cluster.bus_tls)
        return self._bus.move(place, self.cluster.also_bus)

    def _hurry(self, work: str) -> None:
        for rounds in self._rounds.values():
            rounds.hurry(work)

    def _was_removed(self) -> bool:
        return self.cluster is not None and self.cluster.removal is not None

    def _leave(self) -> None:
        """End all roles and the bus of a node that is a member no more: nobody would answer it."""
        if self.roles:
            log.error("this node was removed from its cluster, and its roles end. %s", REMOVED_HINT)
            self._end_roles(Countdown(STOP_S))
            self.problems.clear()

    def _follow_roles(self) -> None:
        wanted = list(self.role_names())
        for name in set(self.problems) - {*wanted}:
            del self.problems[name]
        door = next((n for n in wanted if n in FRONT_DOORS and n not in self.roles), "")
        made = self._make_door(door) if door else None
        if door and made is None:
            # Until it can, EC2 is answered here as it was, or by others.
            wanted[wanted.index(door)] = next((n for n in FRONT_DOORS if n in self.roles), "proxy")
        for name in [name for name in reversed(self.roles) if name not in wanted]:
            self.stop_role(name)
        for name in [name for name in wanted if name not in self.roles]:
            with self._tolerating(name):
                self.start_role(name, made if name == door else None)

    def _make_door(self, name: str) -> Role | None:
        """Return a front door that takes the other's place within a moment: it need only open."""
        with self._tolerating(name):
            return self._make_role(name)
        return None

    def _begin_anew(self, config: Config) -> None:
        log.info("the settings have changed: all roles begin anew")
        before = self.config
        self.config = config
        try:
            store, bus = self._connect(config)
        except BaseException:
            self.config = before
            raise
        self._end_roles(Countdown(STOP_S))
        self._store, self._bus, self._is_store_ready = store, bus, False
        self.plugins = self._make_loader()
        self.problems.clear()
        if not self._is_stopped:
            self.start()

    @property
    def port(self) -> int:
        """The TCP port that EC2 is on once the node has started; 0 without one."""
        return next((self.roles[name].port() for name in FRONT_DOORS if name in self.roles), 0)

    def start_role(self, name: str, made: Role | None = None) -> None:
        """Start one more role while the node runs; nothing when it has it already.

        :param made: the role, where it was made before.
        :raises AnynodeError: it could not start; nothing is left of it.
        """
        with self._changing:
            if name in self.roles or self._is_stopped:
                return
            log.log(
                logging.DEBUG if name in self.problems else logging.INFO, "starting role %s", name
            )
            role = made or self._make_role(name)
            try:
                role.start()
                self._serve(role)
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

    def _serve(self, role: Role) -> None:
        if role.casts or role.calls or role.hears:
            self._bus.serve(role)

    def _make_role(self, name: str) -> Role:
        if name in STORE_ROLES:
            self._ready_store()
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
            cluster=self.cluster,
            vital=self.vital,
            follow=self.follow,
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
        self._is_stopped = True
        countdown = Countdown(deadline_s)
        # Whoever brings it to other settings now would start roles after these have ended.
        if self._changing.acquire(timeout=min(countdown.left_s(_PART_S), _ROUND_S)):
            self._changing.release()
        self._end_roles(countdown)
        for node in self._nodes:
            if not node._lock.closed:
                node._lock.close()
                log.info("node %s has stopped", node.config.node_name)

    def _end_roles(self, countdown: Countdown) -> None:
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
            node._rounds.clear()
            node.work = Lanes("work", WORK_THREADS)


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


@cache
def _release() -> str:
    from importlib.metadata import version

    return version("anynode")


def _place_of(role: str) -> tuple[int, str]:
    place = START_ORDER.index(role) if role in START_ORDER else len(START_ORDER)
    return place, role


def _steady(config: Config) -> Config:
    """Return settings without what may change while roles go on."""
    node = msgspec.structs.replace(config.node, roles=())
    return msgspec.structs.replace(
        config, node=node, bus=msgspec.structs.replace(config.bus, url="")
    )
