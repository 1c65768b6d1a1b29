"""One history: a cluster, a storm, a calm, and what must be true all the time and at the end."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from appliance.config import Config
from appliance.controller import lost
from appliance.errors import Conflict, LimitExceeded
from appliance.images.inspect import ImageLimits
from appliance.images.store import ImageStore
from appliance.instance_types import CATALOG
from appliance.model import InstanceState
from appliance.store import (
    Store,
    Transaction,
    facts,
    groups,
    identity,
    images,
    launches,
    migrations,
    networks,
    nodes,
    wishes,
)
from appliance.store import setup as store_setup
from appliance.store.launches import Launch, RootDisk
from appliance.verify import invariants
from appliance.world import SeededIds, World
from tests.simulation.broker import Broker, Weather
from tests.simulation.loop import BEGIN, Clock, Loop
from tests.simulation.process import NODE_ROLES, STORE_ROLES, Machine, folders

STORM_S = 150.0
CALM_S = 900.0
KIND = CATALOG["t2.nano"]


@dataclass(frozen=True)
class Template:
    """A store that every history begins with, and the ids in it."""

    path: Path
    project_id: str
    network_id: str
    group_id: str
    image: images.Image


def make_template(directory: Path) -> Template:
    """Make the store that histories copy."""
    path = directory / "template.sqlite"
    config = settings(directory, "template", ())
    clock = Clock()
    store = Store(f"sqlite:///{path}", World(clock=clock, ids=SeededIds(1), random=Random(1)))
    migrations.upgrade(store)

    source = directory / "image.raw"
    source.write_bytes(b"a small disk".ljust(65536, b"."))
    stored = ImageStore(directory / "images").import_file(source, "raw", ImageLimits())

    def prepare(tx: Transaction) -> tuple[str, str, str, images.Image]:
        store_setup.prepare(tx, config)
        network_id = networks.default_in_zone(tx, config.node.zone)
        vpc_id = networks.default_vpc(tx)
        assert network_id is not None
        assert vpc_id is not None
        ceilings = msgspec.structs.asdict(config.quota)
        project = identity.create_project(tx, "alpha", ceilings)
        group = groups.default(tx, project.project_id, vpc_id)
        new = images.NewImage(
            project_id=project.project_id,
            kind=images.MACHINE,
            name="small",
            format=stored.format,
            sha256=stored.sha256,
            size_bytes=stored.size_bytes,
            virtual_size_bytes=stored.virtual_size_bytes,
        )
        return project.project_id, network_id, group.group_id, images.create(tx, new)

    made = store.transaction(prepare)
    store.close()
    return Template(path, *made)


def settings(directory: Path, name: str, roles: tuple[str, ...]) -> Config:
    """Return the settings of a machine."""
    sections: dict[str, Any] = {
        "node": {"name": name, "roles": roles, **folders(directory, name)},
        "bus": {"call_deadline_s": 10.0},
        "controller": {"progress_s": 30.0, "give_up_s": 240.0},
        "network": {"type": "fake", "metadata": False, "address_quarantine_s": 30.0},
        "firewall": {"driver": "fake"},
        "compute": {"driver": "fake", "injection": ("none",), "shutdown_s": 5.0},
        "images": {"group": "", "folder": str(directory.parent / "images")},
    }
    return msgspec.convert(sections, Config, strict=False)


class Broken(AssertionError):
    """An invariant that did not hold."""


@dataclass
class History:
    """What one seed brings about, in a folder of its own."""

    seed: int
    template: Template
    directory: Path
    log: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.loop = Loop(Clock())
        self._pause_s = 0.0
        self.weather = Weather()
        self.broker = Broker(self.loop, self.random, self.weather)
        self.directory.mkdir()
        path = self.directory / "store.sqlite"
        shutil.copy(self.template.path, path)
        self.store_url = f"sqlite:///{path}"
        ids = SeededIds(self.random.getrandbits(64))
        world = World(clock=self.loop.clock, ids=ids, random=Random(self.seed))
        self.store = Store(self.store_url, world)
        self.machines = [self._machine(f"c{n}", STORE_ROLES) for n in (1, 2)]
        self.machines += [self._machine(f"n{n}", NODE_ROLES) for n in (1, 2, 3)]

    def _machine(self, name: str, roles: tuple[str, ...]) -> Machine:
        machine = Machine(
            name=name,
            node_id=f"node-{name}",
            roles=roles,
            config=settings(self.directory, name, roles),
            history=self,
        )
        row = nodes.Node(node_id=machine.node_id, name=name, zone="local-1a", roles=roles)
        self.store.transaction(lambda tx: store_setup.join(tx, row))
        return machine

    def note(self, text: str) -> None:
        """Write down what happened, with its time."""
        self.log.append(f"{self.loop.clock.at - BEGIN:9.3f} {text}")

    # -- the whole --------------------------------------------------------------------------------

    def run(self) -> None:
        """Let it happen.

        :raises Broken: an invariant did not hold; the message has the seed and the history.
        """
        try:
            self._run()
        except Exception as error:
            story = "\n".join(self.log)
            raise Broken(f"seed {self.seed}: {error}\n{story}") from error
        finally:
            for machine in self.machines:
                machine.die()
            self.store.close()

    def _run(self) -> None:
        for machine in self.machines:
            machine.start()
        self._go_on(25.0)
        self._storm()
        self._calm()

    def _storm(self) -> None:
        strength = self.random.choice((0.0, 0.5, 1.0, 3.0))
        self._pause_s = self.random.choice((1.0, 2.0, 4.0))
        self.weather.lost = 0.03 * strength
        self.weather.doubled = 0.05 * strength
        self.weather.late = 0.1 * strength
        self.weather.killed = 0.001 * strength
        self.weather.interrupted = 0.3
        end = self.loop.clock.at + STORM_S
        self._next_act(end)
        self._go_on(STORM_S)

    def _calm(self) -> None:
        """End all faults, bring everything back, and wait until nothing is under way."""
        self.note("calm")
        for name in ("lost", "doubled", "late", "killed", "interrupted"):
            setattr(self.weather, name, 0.0)
        for machine in self.machines:
            machine.is_cut = machine.is_lost = False
            machine.start()
        self.broker.flush()
        end = self.loop.clock.at + CALM_S
        while (wrong := self._wrong()) and self.loop.clock.at < end:
            self._go_on(15.0)
        if wrong:
            raise Broken(f"{CALM_S:g} s after the storm: " + "; ".join(wrong))
        self.note("at rest")

    def _go_on(self, seconds: float) -> None:
        until = self.loop.clock.at + seconds
        while self.loop.run_next(until):
            self._check_always()
        self.loop.clock.at = max(self.loop.clock.at, until)

    # -- what happens -----------------------------------------------------------------------------

    def _next_act(self, end: float) -> None:
        delay_s = self.random.expovariate(1 / self._pause_s)
        if self.loop.clock.at + delay_s > end:
            return

        def act() -> None:
            doing = self.random.choices([one for one, _ in ACTS], [weight for _, weight in ACTS])
            try:
                doing[0](self)
            except LimitExceeded as refused:
                self.note(f"refused: {refused}")
            self._next_act(end)

        self.loop.after(delay_s, act, interrupts=True)

    def _client(self, work: Callable[[Transaction], Any]) -> Any:
        """Write as the API does; its process may end before it publishes."""
        casts: list[Any] = []

        def write(tx: Transaction) -> Any:
            casts[:] = []
            answer = work(tx)
            casts.extend(tx.casts)
            return answer

        answer = self.store.transaction(write)
        if not self.broker.chance(self.weather.lost):
            for row in casts:
                self.broker.accept(row)
        return answer

    def launch(self) -> None:
        """Run some instances."""
        count = self.random.choice((1, 1, 1, 2, 3))
        template = self.template

        def write(tx: Transaction) -> list[str]:
            taken = launches.take_quota(tx, template.project_id, KIND, count, count)
            launch = Launch(
                project_id=template.project_id,
                request_id=tx.world.ids.uuid(),
                request_hash="",
                client_token=None,
                min_count=count,
                count=taken,
                image=template.image,
                kernel_id=None,
                ramdisk_id=None,
                instance_type=KIND,
                root_disk=RootDisk(device_name="/dev/vda", disk_gib=8, delete_on_termination=True),
                zone=None,
                network_id=template.network_id,
                group_ids=[template.group_id],
                key_name=None,
                public_key="",
                user_data_base64="",
                attributes={},
                tags={},
                node="c1",
                started_at=tx.now,
                duration_ms=1.0,
            )
            launches.write(tx, launch)
            place = next(row for row in tx.casts if row.topic == "scheduler")
            return list(msgspec.json.decode(place.body)["instance_ids"])

        ids = self._client(write)
        self.asked += ids
        self.note(f"launch {', '.join(ids)}")

    def _standing(self, state: InstanceState) -> list[wishes.Standing]:
        found = self.store.read(
            lambda tx: wishes.standing(
                tx, self.template.project_id, self.asked, terminated_s=3600.0
            )
        )
        return [one for one in found.values() if one.state is state]

    def terminate(self) -> None:
        """Terminate an instance, whatever it is doing."""
        if self.asked:
            one = self.random.choice(self.asked)
            self.note(f"terminate {one}")
            self._client(lambda tx: wishes.terminate(tx, [one], "req-terminate"))

    def stop(self) -> None:
        """Stop a running instance."""
        running = self._standing(InstanceState.RUNNING)
        if running:
            one = self.random.choice(running)
            self.note(f"stop {one.instance_id}")
            is_forced = self.random.random() < 0.3
            self._client(lambda tx: wishes.stop(tx, [one], "req-stop", is_forced=is_forced))

    def start(self) -> None:
        """Start a stopped instance."""
        stopped = self._standing(InstanceState.STOPPED)
        if stopped:
            one = self.random.choice(stopped)
            self.note(f"start {one.instance_id}")

            def write(tx: Transaction) -> None:
                launches.take_running_quota(tx, [one.instance_id])
                wishes.start(tx, [one], "req-start")

            self._client(write)

    def crash_instance(self) -> None:
        """Let an instance die by itself."""
        machine = self.random.choice(self.machines)
        running = sorted(machine.running())
        if running:
            one = self.random.choice(running)
            self.note(f"{one} crashes on {machine.name}")
            machine.compute.crash(one)

    def kill(self) -> None:
        """Kill a node's process."""
        machine = self.random.choice(self.machines)
        self.note(f"kill {machine.name}")
        machine.die()

    def cut_power(self) -> None:
        """Take a machine's power, for a moment."""
        machine = self.random.choice(self.machines)
        self.note(f"{machine.name} loses power")
        machine.cut_power()

    def cut(self) -> None:
        """Take a machine off the network, for a while."""
        machine = self.random.choice(self.machines)
        self.note(f"{machine.name} is cut off")
        machine.is_cut = True

    def lose_machine(self) -> None:
        """Take a machine's power for good, until its operator has confirmed that it is dead."""
        machine = self.random.choice(self.machines[2:])
        if not machine.is_lost:
            self.note(f"{machine.name} is lost")
            machine.cut_power()
            machine.is_lost = True
            self.loop.after(30.0, lambda: self._evacuate(machine))

    def _evacuate(self, machine: Machine) -> None:
        def give_up(tx: Transaction) -> lost.Evacuation:
            return lost.evacuate(tx, nodes.match(tx, machine.name), "operator")

        if not machine.is_lost:
            return
        try:
            done = self._client(give_up)
        except Conflict:
            self.loop.after(5.0, lambda: self._evacuate(machine))
            return
        self.note(f"{machine.name} is evacuated: {', '.join(done.placed)} placed anew")
        self.loop.after(self.random.uniform(1.0, 60.0), machine.find)

    def recover(self) -> None:
        """Start what has ended, heal what is cut."""
        for machine in self.machines:
            if machine.is_lost:
                continue
            if machine.is_cut or machine.process is None or machine.process.is_dead:
                self.note(f"{machine.name} is back")
                machine.is_cut = False
                machine.start()
        self.broker.flush()

    # -- what must be true ------------------------------------------------------------------------

    def _check_always(self) -> None:
        seen: dict[str, str] = {}
        for machine in self.machines:
            for instance_id in machine.running():
                if instance_id in seen:
                    raise Broken(f"{instance_id} runs on {seen[instance_id]} and {machine.name}")
                seen[instance_id] = machine.name

    def _wrong(self) -> list[str]:
        """Return what is not as it must be once nothing is under way."""
        now = self.loop.clock.at
        store = self.store.read(facts.read)
        wrong = [f"{row.kind}: {text}" for row, text in self.broker.dead]
        for row in store.instances.values():
            if not row.is_settled:
                wrong.append(f"{row.instance_id} is {row.state}, wanted {row.desired}")
        missing = set(self.asked) - set(store.instances)
        wrong += [f"{one} was acknowledged and is not there" for one in missing]
        wrong += [f"{entry.kind} waits in the outbox" for entry in store.outbox]
        for machine in self.machines:
            for finding in invariants.compare(
                machine.facts(store, now), progress_s=0.0, message_s=30.0
            ):
                wrong.append(f"{machine.name}: {finding.code} {finding.message}")
        return wrong


ACTS: list[tuple[Callable[[History], None], int]] = [
    (History.launch, 10),
    (History.terminate, 6),
    (History.stop, 3),
    (History.start, 4),
    (History.crash_instance, 1),
    (History.kill, 3),
    (History.cut_power, 1),
    (History.cut, 2),
    (History.lose_machine, 1),
    (History.recover, 8),
]
"""What may happen, and how often."""
