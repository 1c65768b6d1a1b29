"""A machine that lasts, and the lives of the node's process on it."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from anynode_compute_fake.machine import FakeCompute
from anynode_firewall_fake import FakeFirewall
from anynode_network_fake import FakeNetwork

from appliance.compute.record import HELD, REPORT, Held, OwedReport
from appliance.config import Config
from appliance.datapath.record import NETWORK, PORT, NetworkRecord, PortRecord
from appliance.errors import AnynodeError, ConfigError
from appliance.hooks import Observers, RoleMaker
from appliance.journal import read_journal
from appliance.model import PowerState
from appliance.node import NodeParts
from appliance.plugin_loader import PluginLoader, loader_of
from appliance.role import Periodic, Role
from appliance.store import Store
from appliance.store.facts import StoreFacts
from appliance.verify.facts import Facts
from appliance.world import SeededIds, World
from tests.simulation.broker import Broker, Killed, SimulatedBus

STORE_ROLES = ("network", "scheduler", "controller")
NODE_ROLES = ("datapath", "compute")
IMPATIENCE = 4.0
"""How much more rarely periodic work is done than in life: a history has thousands of them."""


_made: dict[tuple[str, str], object] = {}


class Drivers:
    """The plugins of a machine: its fakes, and for the rest the installed ones."""

    def __init__(self, machine: Machine, loader: PluginLoader) -> None:
        self._loader = loader
        self._fakes: dict[str, object] = {
            "appliance.compute": machine.compute,
            "appliance.network": machine.network,
            "appliance.firewall": machine.firewall,
        }

    def create(self, group: str, name: str) -> object:
        """Return a plugin; those that are no fakes keep nothing, and serve all histories."""
        if group in self._fakes:
            return self._fakes[group]
        if (group, name) not in _made:
            _made[group, name] = self._loader.create(group, name)
        return _made[group, name]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class Events(FakeCompute):
    """A hypervisor that does not make anybody wait for events."""

    def compute_events(self, wait_s: float) -> Sequence[Any]:
        return super().compute_events(0.0)

    compute_events.appliance_impl = FakeCompute.compute_events.appliance_impl  # type: ignore[attr-defined]


class Work:
    """The lanes of a process: work of one key in sequence, each piece whole."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._waiting: dict[str, deque[Callable[[], None]]] = defaultdict(deque)
        self.is_stopping = False

    def submit(self, key: str, work: Callable[[], None]) -> None:
        """Queue work."""
        line = self._waiting[key]
        line.append(work)
        if len(line) == 1:
            self._later(key)

    def _later(self, key: str) -> None:
        random, loop = self._process.broker.random, self._process.broker.loop
        loop.after(random.uniform(0.001, 0.1), lambda: self._work(key), self._process)

    def _work(self, key: str) -> None:
        line = self._waiting[key]
        if self._process.is_busy:
            self._later(key)
            return
        self._process.guard(line[0])
        line.popleft()
        if line:
            self._later(key)


class Process:
    """One life of a node's process."""

    def __init__(self, machine: Machine, broker: Broker, store_url: str | None) -> None:
        self.machine = machine
        self.name = machine.name
        self.broker = broker
        self.topics: dict[str, Role] = {}
        self.is_dead = False
        self.is_busy = False
        self.is_closed = False
        # What the process draws is its own, so that an event more elsewhere changes nothing here.
        random = Random(broker.random.getrandbits(64))
        self.world = World(
            clock=broker.loop.clock,
            ids=SeededIds(random.getrandbits(64)),
            random=random,
            crash=self.crash,
        )
        self.store = Store(store_url, self.world) if store_url else None
        self.bus = SimulatedBus(broker, self)
        self.work = Work(self)

    @property
    def is_cut(self) -> bool:
        """Whether its machine is off the network."""
        return self.machine.is_cut

    def need_store(self) -> Store:
        """Return the store."""
        if self.store is None:
            raise ConfigError("This process has no store.")
        return self.store

    def start(self) -> None:
        """Start the roles as a node does, and their periodic work."""
        self.broker.processes.append(self)
        if not self.guard(self._start):
            return
        for role in self.topics.values():
            for periodic in role.periodic:
                self._repeat(periodic)
        self.broker.flush()

    def _start(self) -> None:
        parts = NodeParts(
            world=self.world,
            config=self.machine.config,
            bus=self.bus,
            store=self.store,
            plugins=self.machine.drivers(),  # type: ignore[arg-type]
            observers=Observers({}),
            work=self.work,  # type: ignore[arg-type]
            node_id=self.machine.node_id,
            boot_id=self.machine.boot_id,
        )
        for name in self.machine.roles:
            role = RoleMaker(name, parts.plugin(RoleMaker.group, name)).create(parts)
            self.bus.serve(role)
        for role in self.topics.values():
            role.start()

    def _repeat(self, periodic: Periodic) -> None:
        every_s = max(periodic.every_s, 1.0) * (IMPATIENCE if periodic.every_s < 30 else 1.0)
        delay_s = every_s * self.broker.random.uniform(0.8, 1.2)

        def run() -> None:
            if not self.is_busy:
                self.guard(lambda: self._run(periodic))
            self._repeat(periodic)

        self.broker.loop.after(delay_s, run, self)

    def _run(self, periodic: Periodic) -> None:
        try:
            periodic.run()
        except AnynodeError:
            return  # It is tried again, as a node does.

    def guard(self, work: Callable[[], Any]) -> bool:
        """Run something of this process; ``False`` when it was killed meanwhile."""
        if self.is_dead:
            return False
        before, self.is_busy = self.is_busy, True
        try:
            work()
        except Killed as killed:
            if killed.process is not self:
                raise
        except AnynodeError:
            pass  # Lanes log it; what matters comes again.
        finally:
            self.is_busy = before
            if self.is_dead:
                self._close()
        return not self.is_dead

    def crash(self, point: str) -> None:
        """Be killed here, if it is time for that; let others interrupt between two steps."""
        if self.is_dead:
            raise Killed(self)
        weather = self.broker.weather
        if self.broker.chance(weather.killed):
            self.machine.history.note(f"{self.name} is killed at {point}")
            self.machine.die()
            raise Killed(self)
        if point.startswith(("step.", "undo.")) and self.broker.chance(weather.interrupted):
            self.broker.loop.interrupt(5.0)
            if self.is_dead:
                raise Killed(self)

    def end(self) -> None:
        """End this life; what it is in the middle of ends at its next crash point."""
        self.is_dead = True
        if self in self.broker.processes:
            self.broker.processes.remove(self)
        self._close()

    def _close(self) -> None:
        """Let go of the files, once nothing of this life is under way; says nothing to anybody."""
        if self.is_busy or self.is_closed:
            return
        self.is_closed = True
        for role in self.topics.values():
            role.stop()
        if self.store is not None:
            self.store.close()


@dataclass
class Machine:
    """What outlives the process: folders, hypervisor, kernel."""

    name: str
    node_id: str
    roles: tuple[str, ...]
    config: Config
    history: Any
    boot: int = 1
    is_cut: bool = False
    is_lost: bool = False
    compute: FakeCompute = field(init=False)
    network: FakeNetwork = field(init=False)
    firewall: FakeFirewall = field(init=False)
    process: Process | None = None

    def __post_init__(self) -> None:
        for folder in (self.config.state_dir, self.config.run_dir):
            folder.mkdir(parents=True, exist_ok=True)
        self.compute = Events(vcpus=8, memory_mib=16_384, disk_gib=200)
        self._lose_kernel()

    def _lose_kernel(self) -> None:
        self.network = FakeNetwork(None)
        self.firewall = FakeFirewall()

    @property
    def boot_id(self) -> str:
        """The id of this boot."""
        return f"{self.name}-boot-{self.boot}"

    def drivers(self) -> Drivers:
        """Return the machine's plugins."""
        return Drivers(self, loader_of(self.config, None))

    def start(self) -> None:
        """Start the node, if it does not run."""
        if self.process is None or self.process.is_closed:
            has_store = bool(set(self.roles) & set(STORE_ROLES))
            url = self.history.store_url if has_store else None
            self.process = Process(self, self.history.broker, url)
            self.process.start()

    def find(self) -> None:
        """Have a machine again that was lost; somebody must still start it."""
        self.is_lost = False

    def die(self) -> None:
        """Kill the node."""
        if self.process is not None:
            self.process.end()

    def cut_power(self) -> None:
        """Lose the node, its instances' power, taps and rules."""
        self.die()
        self.boot += 1
        for fact in self.compute.compute_list():
            self.compute.compute_power_off(fact.instance_id)
        self.compute.compute_events(0.0)
        self._lose_kernel()

    def running(self) -> dict[str, int]:
        """Return the epoch of each instance that runs."""
        return {
            fact.instance_id: fact.epoch
            for fact in self.compute.compute_list()
            if fact.power is PowerState.RUNNING
        }

    def facts(self, store: StoreFacts, now: float) -> Facts:
        """Return what ``verify`` compares."""
        compute = read_journal(self.config.state_dir / "compute.sqlite")
        datapath = read_journal(self.config.state_dir / "datapath.sqlite")
        folder = self.config.state_dir / "instances"
        directories = [p for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
        return Facts(
            node_id=self.node_id,
            is_running=True,
            now=now,
            store=store,
            held=_decoded(compute.get(HELD), Held),
            owed=_decoded(compute.get(REPORT), OwedReport),
            ports=_decoded(datapath.get(PORT), PortRecord),
            networks=_decoded(datapath.get(NETWORK), NetworkRecord),
            hypervisor={fact.instance_id: fact for fact in self.compute.compute_list()},
            network_states={"fake": self.network.network_list()},
            firewall=self.firewall.firewall_state(),
            directories=frozenset(path.name for path in directories),
        )


def _decoded(bodies: Any, form: Any) -> dict[str, Any]:
    return {key: msgspec.json.decode(body, type=form) for key, body in (bodies or {}).items()}


def folders(directory: Path, name: str) -> dict[str, str]:
    """Return the settings of a machine's folders."""
    return {
        "state_dir": str(directory / name / "state"),
        "run_dir": str(directory / name / "run"),
    }
