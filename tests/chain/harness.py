"""A whole node in memory: real roles, bus, store and journals on fakes of kernel and hypervisor.

The fakes outlive the node's process, as the real ones do: a node that is started again on the
same folders finds them as they were.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import anynode_compute_fake
import anynode_firewall_fake
import anynode_network_fake
import msgspec
import pytest
from anynode_compute_fake.machine import FakeCompute
from anynode_firewall_fake import FakeFirewall
from anynode_network_fake import FakeNetwork

from appliance import verify
from appliance.bus.local import LocalBus
from appliance.compute import role as compute_role
from appliance.compute import worker
from appliance.config import Config
from appliance.images.inspect import ImageLimits
from appliance.images.store import ImageStore
from appliance.instance_types import CATALOG
from appliance.messages import Message, Order
from appliance.model import Finding, InstanceState, PowerState
from appliance.node import Node
from appliance.store import Store, Transaction, groups, identity, images, launches, networks, wishes
from appliance.store import instances as instance_rows
from appliance.store.instances import Instance
from appliance.store.launches import Launch, RootDisk
from appliance.store.quotas import left
from appliance.world import World

DEADLINE_S = 20.0
MIB = 1 << 20
PATIENCE = verify.Patience(progress_s=8.0, message_s=8.0, look_again_s=0.3)
ROLES = ("controller", "scheduler", "network", "datapath", "compute")


class Killed(BaseException):
    """What a thread of a killed node sees at its next crash point: it goes no further."""


class Fault(Exception):
    """What a step that was told to fail raises."""


class Faults:
    """The crash points of a node: what was passed, and what shall happen where."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.is_dead = threading.Event()
        self._actions: dict[str, tuple[int, Callable[[], None]]] = {}
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, point: str) -> None:
        if self.is_dead.is_set():
            raise Killed(point)
        with self._lock:
            self.passed.append(point)
            self._counts[point] += 1
            nth, action = self._actions.get(point, (0, lambda: None))
            is_due = nth in (0, self._counts[point])
        if is_due:
            action()

    def at(self, point: str, action: Callable[[], None], *, nth: int = 0) -> None:
        """Do something at a point: each time, or only the n-th time from now on."""
        with self._lock:
            self._counts[point] = 0
            self._actions[point] = (nth, action)

    def kill_at(self, point: str, *, nth: int = 1) -> None:
        """Kill the node at a point."""
        self.at(point, self.kill, nth=nth)

    def fail_at(self, point: str, *, nth: int = 0) -> None:
        """Raise at a point."""

        def fail() -> None:
            raise Fault(f"told to fail at {point}")

        self.at(point, fail, nth=nth)

    def kill(self) -> None:
        """End the calling thread; every other thread ends at its next crash point."""
        self.is_dead.set()
        raise Killed("killed")

    def clear(self) -> None:
        """Let the program go on everywhere."""
        with self._lock:
            self._actions.clear()


class Machine:
    """What outlives the process: the hypervisor and the kernel, as fakes."""

    def __init__(self, **capacity: Any) -> None:
        self._capacity = capacity
        self.compute = FakeCompute(**capacity)
        self.network = FakeNetwork(None)
        self.firewall = FakeFirewall()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the fake plugins of every node of this test be those of this machine."""
        for module, name in (
            (anynode_compute_fake, "compute"),
            (anynode_network_fake, "network"),
            (anynode_firewall_fake, "firewall"),
        ):
            monkeypatch.setattr(
                module, "create", lambda settings, context, name=name: getattr(self, name)
            )

    def cut_power(self) -> None:
        """Lose taps and rules, and all instances' power; definitions stay on their disk."""
        for fact in self.compute.compute_list():
            self.compute.compute_power_off(fact.instance_id)
        self.compute.compute_events(0.0)
        self.network = FakeNetwork(None)
        self.firewall = FakeFirewall()

    def running(self) -> dict[str, int]:
        """Return the epoch of each instance that runs."""
        return {
            fact.instance_id: fact.epoch
            for fact in self.compute.compute_list()
            if fact.power is PowerState.RUNNING
        }


class Chain:
    """A node on folders of its own, with a project that may launch."""

    def __init__(self, directory: Path, machine: Machine, **sections: dict[str, Any]) -> None:
        self.machine = machine
        self.faults = Faults()
        self.config = _config(directory, sections)
        self._node: Node | None = None
        self.start()
        self.network_id, self.project_id, self.group_id = self._write(self._prepare)
        self.image = self._write(self._register_image)

    @property
    def node(self) -> Node:
        """The node that is up."""
        assert self._node is not None
        return self._node

    @property
    def bus(self) -> LocalBus:
        """The bus of the node that is up."""
        assert isinstance(self.node.bus, LocalBus)
        return self.node.bus

    def _write(self, work: Callable[[Transaction], Any]) -> Any:
        return self.node.store.transaction(work)

    def _prepare(self, tx: Transaction) -> tuple[str, str, str]:
        network_id = networks.default_in_zone(tx, None)
        vpc_id = networks.default_vpc(tx)
        assert network_id is not None
        assert vpc_id is not None
        ceilings = msgspec.structs.asdict(self.config.quota)
        project = identity.create_project(tx, "alpha", ceilings)
        group = groups.default(tx, project.project_id, vpc_id)
        return network_id, project.project_id, group.group_id

    def _register_image(self, tx: Transaction) -> images.Image:
        path = self.config.state_dir / "image.raw"
        path.write_bytes(b"a small disk".ljust(MIB, b"."))
        store = ImageStore(self.config.images_dir)
        stored = store.import_file(path, "raw", ImageLimits())
        path.unlink()
        assert stored.sha256 == hashlib.sha256(b"a small disk".ljust(MIB, b".")).hexdigest()
        new = images.NewImage(
            project_id=self.project_id,
            kind=images.MACHINE,
            name="small",
            format=stored.format,
            sha256=stored.sha256,
            size_bytes=stored.size_bytes,
            virtual_size_bytes=stored.virtual_size_bytes,
        )
        return images.create(tx, new)

    def start(self) -> None:
        """Start the node, and wait until the scheduler knows it."""
        world = World(crash=self.faults)
        node = self._node = Node(self.config, world)
        node.start()
        wait_until(lambda: self._is_known(node), "the node is known")

    def _is_known(self, node: Node) -> bool:
        from appliance.store import nodes

        return any(view.is_up for view in node.store.read(nodes.views))

    def stop(self) -> None:
        """Stop the node as an operator does."""
        if self._node:
            self._node.stop(10.0)
            self._node = None

    def kill(self) -> None:
        """End the node as a crash does: nothing that it was doing goes on."""
        self.faults.is_dead.set()
        self.bury()

    def bury(self) -> None:
        """Clear away a node that has been killed at a crash point."""
        wait_until(self.faults.is_dead.is_set, "the node is dead")
        self.stop()
        self.faults.is_dead.clear()
        self.faults.clear()

    def restart(self) -> None:
        """Stop the node and start it again."""
        self.stop()
        self.start()

    # -- what users do ----------------------------------------------------------------------------

    def run_instances(
        self, count: int = 1, *, min_count: int = 0, instance_type: str = "t2.nano"
    ) -> list[str]:
        """Write a launch as RunInstances does; return the instances' ids."""
        kind = CATALOG[instance_type]

        def write(tx: Transaction) -> list[str]:
            taken = launches.take_quota(tx, self.project_id, kind, count, count)
            launch = Launch(
                project_id=self.project_id,
                request_id=tx.world.ids.uuid(),
                request_hash="",
                client_token=None,
                min_count=min_count or count,
                count=taken,
                image=self.image,
                kernel_id=None,
                ramdisk_id=None,
                instance_type=kind,
                root_disk=RootDisk(
                    device_name="/dev/vda", disk_gib=kind.disk_gib, delete_on_termination=True
                ),
                zone=None,
                network_id=self.network_id,
                group_ids=[self.group_id],
                key_name=None,
                public_key="",
                user_data_base64="",
                attributes={},
                tags={},
                node="n1",
                started_at=tx.now,
                duration_ms=1.0,
            )
            launches.write(tx, launch)
            place = next(row for row in tx.casts if row.topic == "scheduler")
            return list(msgspec.json.decode(place.body)["instance_ids"])

        ids: list[str] = self._write(write)
        return ids

    def terminate(self, *instance_ids: str) -> None:
        """Want instances gone, as TerminateInstances does."""
        self._write(lambda tx: wishes.terminate(tx, instance_ids, "req-terminate"))

    def stop_instances(self, *instance_ids: str, is_forced: bool = False) -> None:
        """Want instances off, as StopInstances does."""
        self._write(
            lambda tx: wishes.stop(
                tx, self._standing(tx, instance_ids), "req-stop", is_forced=is_forced
            )
        )

    def start_instances(self, *instance_ids: str) -> None:
        """Want instances running again, as StartInstances does."""

        def write(tx: Transaction) -> None:
            launches.take_running_quota(tx, instance_ids)
            wishes.start(tx, self._standing(tx, instance_ids), "req-start")

        self._write(write)

    def _standing(self, tx: Transaction, ids: Sequence[str]) -> Sequence[wishes.Standing]:
        found = wishes.standing(tx, self.project_id, ids, terminated_s=0)
        return list(found.values())

    # -- what is ----------------------------------------------------------------------------------

    def get(self, instance_id: str) -> Instance:
        """Return an instance's record."""
        found: Instance | None = self.read(lambda tx: instance_rows.get(tx, instance_id))
        assert found is not None
        return found

    def read(self, work: Callable[[Transaction], Any]) -> Any:
        """Read the store, whether the node is up or not."""
        if self._node:
            return self._node.store.read(work)
        store = Store(self.config.store_url, World())
        try:
            return store.read(work)
        finally:
            store.close()

    def addresses(self, instance_id: str) -> tuple[str, ...]:
        """Return an instance's addresses."""
        from sqlalchemy import select

        from appliance.store.schema import addresses, ports

        query = (
            select(addresses.c.address)
            .join(ports, ports.c.id == addresses.c.port_id)
            .where(ports.c.instance_id == instance_id)
        )
        return tuple(self.read(lambda tx: tuple(tx.execute(query).scalars())))

    def wait_for(
        self, state: str, *instance_ids: str, seconds: float = DEADLINE_S
    ) -> list[Instance]:
        """Wait until instances are in a state; return their records."""
        wanted = InstanceState(state)

        def states() -> dict[str, str]:
            return {i: self.get(i).state.value for i in instance_ids}

        wait_until(
            lambda: all(state == wanted for state in states().values()),
            lambda: f"{states()} are {state}: {[self.get(i).reason for i in instance_ids]}",
            seconds,
        )
        return [self.get(instance_id) for instance_id in instance_ids]

    def quota_used(self) -> dict[str, int]:
        """Return what the project uses of its quota."""
        remaining = self.read(lambda tx: left(tx, self.project_id))
        ceilings = msgspec.structs.asdict(self.config.quota)
        return {
            name: ceilings[name] - remaining[name] for name in ("instances", "vcpus", "memory_mib")
        }

    def directory(self, instance_id: str) -> Path:
        """Return an instance's folder."""
        return self.config.state_dir / "instances" / instance_id

    def order(self, instance_id: str, **values: Any) -> Order:
        """Return an order for an instance as its placement is now."""
        instance = self.get(instance_id)
        spec = self.read(lambda tx: instance_rows.specs(tx, [instance_id]))
        usual: dict[str, Any] = {
            "instance_id": instance_id,
            "epoch": instance.epoch,
            "revision": instance.revision,
            "verb": "run",
            "spec": spec[instance_id],
        }
        return Order(**(usual | values))

    def cast(self, message: Message) -> None:
        """Send a message to this node's compute role."""
        self.node.bus.cast(f"compute.{self.node.node_id}", message)

    def findings(self) -> list[Finding]:
        """Return what verify finds wrong with the node, its surroundings left out."""
        return [one for one in verify.check(self.config, patience=PATIENCE) if _is_own(one)]

    def assert_clean(self, *, allowed: Iterable[str] = (), seconds: float = DEADLINE_S) -> None:
        """Wait for convergence; fail with what verify finds then."""
        wait_until(
            lambda: not {one.code for one in self.findings()} - {*allowed},
            lambda: "\n".join(f"{f.code} {f.message}" for f in self.findings()),
            seconds,
        )


def _is_own(finding: Finding) -> bool:
    return finding.code[:2] not in ("N3", "N4") and finding.code != "N1.NOT_RUNNING"


def wait_until(
    is_so: Callable[[], bool], what: str | Callable[[], str], seconds: float = DEADLINE_S
) -> None:
    """Wait for a condition; fail with words when it does not come true in time."""
    until = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > until:
            text = what() if callable(what) else what
            raise AssertionError(f"not within {seconds:g} s: {text}")
        time.sleep(0.02)


def _config(directory: Path, sections: dict[str, dict[str, Any]]) -> Config:
    usual: dict[str, dict[str, Any]] = {
        "node": {
            "name": "n1",
            "roles": ROLES,
            "state_dir": str(directory / "state"),
            "run_dir": str(directory / "run"),
        },
        "bus": {"attempts": 3, "call_deadline_s": 5.0},
        "controller": {"sweep_every_s": 0.2, "progress_s": 1.0},
        "network": {"type": "fake", "metadata": False, "address_quarantine_s": 0.0},
        "firewall": {"driver": "fake"},
        "compute": {
            "driver": "fake",
            "injection": ("none",),
            "shutdown_s": 1.0,
            "inventory_every_s": 0.5,
            "retry_s": 0.2,
            "heartbeat_every_s": 0.5,
        },
        "images": {"group": ""},
    }
    merged = {
        name: {**usual.get(name, {}), **sections.get(name, {})} for name in {*usual, *sections}
    }
    return msgspec.convert(merged, Config, strict=False)


def quicken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the waits of the roles as short as the settings of these tests."""
    monkeypatch.setattr(compute_role, "EVENT_WAIT_S", 0.05)
    monkeypatch.setattr(worker, "REPEAT_S", 0.5)


def remove_folders(config: Config) -> None:
    """Remove a node's folders."""
    for folder in (config.state_dir, config.run_dir):
        shutil.rmtree(folder, ignore_errors=True)


def kinds(entries: Iterable[Any]) -> list[str]:
    """Return the names of timeline entries, in order."""
    return [entry.name for entry in entries]
