"""A cluster of node processes that die, and what must be true of it whatever died.

Compute, network and firewall are fakes that outlive their node's process, as a kernel and a
hypervisor do; broker and database are real.
"""

from __future__ import annotations

import signal
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from anynode_compute_fake.machine import FakeInstance
from botocore.exceptions import ClientError

from appliance import node_process
from appliance.bus import topology
from appliance.compute.record import REPORT
from appliance.crash_points import TRACE
from appliance.journal import read_journal
from appliance.model import PowerState
from appliance.store import instances, outbox, placements
from appliance.store.placements import Placement
from appliance.verify import invariants
from appliance.verify.facts import Facts, gather
from tests.cluster.fakes import FakeCluster, FakeNode, wait_until
from tests.faults.life import ONE_BOOT
from tests.faults.nursery import start_node
from tests.faults.process import CONNECTION_LOST
from tests.services.postgresql import PostgreSQL
from tests.services.rabbitmq import VirtualHost

APIS = ("n1", "n2")
CONTROL = ("api", "controller", "scheduler", "network")
HYPERVISOR = ("datapath", "compute")
SIGKILLED = -signal.SIGKILL
STATE_S = 60.0
SOUND_S = 60.0
UP_S = 60.0
QUOTA = {"instances": 1000, "vcpus": 10_000, "memory_mib": 10_000_000}
AWAY = ("Unavailable", "InternalError", "ServiceUnavailable", "RequestLimitExceeded")
"""Codes of answers after which a careful program asks again."""


@dataclass
class Mortal(FakeNode):
    """A node whose process is forked from one that has imported all that it needs."""

    deaths: int = field(default=0, init=False)

    def spawn(self, **environment: str) -> None:
        self.process = start_node(self.folder, self.folder / "node.log", environment)

    @property
    def is_running(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.poll() is None

    def begin(self, **environment: str) -> None:
        """Start the process, and wait until it is up or has died."""
        self.spawn(**environment)

        def is_done() -> bool:
            found = node_process.find(self.config.run_dir)
            is_up = found is not None and found.is_up and self.is_running
            assert self.process is not None
            return not self.is_running or bool(is_up and found and found.pid == self.process.pid)

        wait_until(is_done, lambda: f"{self.name} is up or dead:\n{self.log[-4000:]}", UP_S)

    def revive_if_dead(self) -> bool:
        """Start the next process if this one was killed; say whether it was."""
        if self.is_running:
            return False
        assert self.process is not None
        assert self.process.poll() == SIGKILLED, self.log[-6000:]
        self.deaths += 1
        self.begin()
        return True

    @property
    def trace_path(self) -> Path:
        """Where crash points are written down while they are traced."""
        return self.folder / "trace"

    @property
    def hold_path(self) -> Path:
        """The file for which a process waits at a point."""
        return self.folder / "hold"

    @property
    def tracing(self) -> dict[str, str]:
        """The variables that write down the crash points of a process."""
        return {TRACE: str(self.trace_path)}

    def trace(self) -> list[str]:
        """Return the crash points that were passed."""
        return self.trace_path.read_text().splitlines() if self.trace_path.exists() else []

    def hypervisor(self) -> dict[str, FakeInstance]:
        """Return the instances that the machine has, whether the process lives or not."""
        path = self.config.state_dir / "plugins" / "compute-fake" / "instances.json"
        if not path.exists():
            return {}
        return msgspec.json.decode(path.read_bytes(), type=dict[str, FakeInstance])

    def running(self) -> dict[str, int]:
        """Return the epochs of the instances that run on the machine."""
        return {
            instance_id: one.definition.epoch
            for instance_id, one in self.hypervisor().items()
            if one.power in (PowerState.RUNNING, PowerState.PAUSED)
        }

    def owed(self) -> list[str]:
        """Return the reports that wait for their confirmation."""
        return [*read_journal(self.config.state_dir / "compute.sqlite").get(REPORT, {})]

    def facts(self) -> Facts:
        """Return what is on the node, and what the store says."""
        config = self.config
        store = msgspec.structs.replace(config.store, url=self.cluster.store_url)
        return gather(msgspec.structs.replace(config, store=store))


class Mortals(FakeCluster):
    """A cluster of mortal nodes, its users, and its judges.

    A user does what a careful program does: a call that got no answer is made again with the same
    token, at another node when this one is dead, and what was answered is relied on.
    """

    node_type = Mortal

    def __init__(
        self, folder: Path, store_url: str, vhost: VirtualHost, **sections: dict[str, Any]
    ) -> None:
        super().__init__(folder, store_url, vhost, **sections)
        self.bystanders: list[str] = []
        self.is_sound = False

    @property
    def mortals(self) -> dict[str, Mortal]:
        """The nodes."""
        return {name: node for name, node in self.nodes.items() if isinstance(node, Mortal)}

    @property
    def living(self) -> list[Mortal]:
        """The nodes whose processes run."""
        return [node for node in self.mortals.values() if node.is_running]

    # -- users ------------------------------------------------------------------------------------

    def ask(
        self, action: str, *, via: Sequence[str], deadline_s: float = STATE_S, **parameters: Any
    ) -> Any:
        """Call an action at nodes in turn until one answers."""
        until = time.monotonic() + deadline_s
        last: Exception | None = None
        while time.monotonic() < until:
            for name in via:
                try:
                    return getattr(self.mortals[name].client(), action)(**parameters)
                except CONNECTION_LOST as error:
                    last = error
                except ClientError as error:
                    if error.response["Error"]["Code"] not in AWAY:
                        raise
                    last = error
            time.sleep(0.1)
        raise AssertionError(f"Nobody of {', '.join(via)} answers {action}: {last!r}")

    def born(
        self,
        count: int = 1,
        *,
        via: Sequence[str],
        token: str = "",
        zone: str = "",
        deadline_s: float = STATE_S,
    ) -> list[str]:
        """Launch instances and return their ids; asking again gives the same."""
        where: dict[str, Any] = {"Placement": {"AvailabilityZone": zone}} if zone else {}
        reply = self.ask(
            "run_instances",
            via=via,
            deadline_s=deadline_s,
            ImageId=self.image_id,
            InstanceType="t2.nano",
            MinCount=count,
            MaxCount=count,
            ClientToken=token or uuid.uuid4().hex,
            **where,
        )
        return [one["InstanceId"] for one in reply["Instances"]]

    def end(self, *instance_ids: str, via: Sequence[str]) -> None:
        """Ask for instances to be terminated."""
        self.ask("terminate_instances", via=via, InstanceIds=list(instance_ids))

    def described(self, *instance_ids: str, via: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return what DescribeInstances says, by id."""
        reply = self.ask("describe_instances", via=via, InstanceIds=list(instance_ids))
        return {
            one["InstanceId"]: one
            for reservation in reply["Reservations"]
            for one in reservation["Instances"]
        }

    def reach(
        self,
        state: str,
        *instance_ids: str,
        via: Sequence[str],
        seconds: float = STATE_S,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> dict[str, dict[str, Any]]:
        """Wait until instances are in a state; return their descriptions."""
        seen: dict[str, dict[str, Any]] = {}

        def is_there() -> bool:
            meanwhile()
            seen.update(self.described(*instance_ids, via=via))
            return {one["State"]["Name"] for one in seen.values()} == {state}

        def states() -> str:
            told = {
                key: (one["State"]["Name"], one.get("StateReason")) for key, one in seen.items()
            }
            return f"{state}: {told}\n{self.logs()}"

        wait_until(is_there, states, seconds)
        return seen

    def wait_for(self, is_so: Callable[[], bool], what: str, seconds: float = STATE_S) -> None:
        """Wait for a condition; what the nodes have said is told when it does not come true."""
        wait_until(is_so, lambda: f"{what}\n{self.logs()}", seconds)

    # -- judges -----------------------------------------------------------------------------------

    def placement(self, instance_id: str) -> Placement | None:
        """Return the active placement of an instance."""
        return self.read(lambda tx: placements.active(tx, instance_id))

    def runs_on(self) -> dict[str, list[tuple[str, int]]]:
        """Return the nodes that each instance runs on, with the epochs."""
        found: dict[str, list[tuple[str, int]]] = {}
        for node in self.mortals.values():
            for instance_id, epoch in node.running().items():
                found.setdefault(instance_id, []).append((node.name, epoch))
        return found

    def waiting(self) -> list[str]:
        """Return what has not taken effect: casts, reports, and messages at the broker."""
        rows = self.read(outbox.pending)
        owed = [f"{node.name} owes {key}" for node in self.living for key in node.owed()]
        return [*(f"{row.kind} to {row.topic}" for row in rows), *owed, *self._queued()]

    def _queued(self) -> Iterator[str]:
        names = [*topology.SHARED_TOPICS, topology.DEAD_QUEUE]
        names += [f"node.{node.node_id}" for node in self.living]
        with self.vhost.channel() as channel:
            for name in names:
                waiting = channel.queue_declare(name, passive=True).method.message_count
                if waiting:
                    yield f"{waiting} in {name}"

    def findings(self, *, without: Sequence[str] = ()) -> list[str]:
        """Return what does not fit together on any node that is judged, and over all of them."""
        found = []
        for node in self.mortals.values():
            if node.name in without:
                continue
            compared = invariants.compare(node.facts(), progress_s=30.0, message_s=30.0)
            found += [f"{node.name}: {one.code} {one.message}" for one in compared]
        for instance_id, copies in self.runs_on().items():
            judged = [copy for copy in copies if copy[0] not in without]
            if len(judged) > 1:
                found.append(f"{instance_id} runs on {judged}")
        return found

    def assert_sound(self, *, without: Sequence[str] = (), seconds: float = SOUND_S) -> None:
        """See that all comes to rest, and that then everything is as it should be."""
        seen: list[str] = []

        def is_sound() -> bool:
            seen[:] = self.waiting() or self.findings(without=without)
            return not seen

        self.is_sound = False
        wait_until(is_sound, lambda: f"all is sound: {seen}\n{self.logs()}", seconds)
        self.assert_bystanders()
        self.is_sound = True

    def assert_bystanders(self) -> None:
        """See that those that nothing was done to have run all the time."""
        consoles = {
            instance_id: one.console
            for node in self.mortals.values()
            for instance_id, one in node.hypervisor().items()
        }
        for instance_id in self.bystanders:
            assert consoles[instance_id] == ONE_BOOT

    def assert_gone(self, *instance_ids: str) -> None:
        """See that nothing of terminated instances is anywhere."""
        for node in self.mortals.values():
            facts = node.facts()
            here = {*(facts.hypervisor or {}), *facts.held, *facts.directories}
            assert here.isdisjoint(instance_ids), f"{node.name} has {here} yet"
            owners = {port.instance_id for port in facts.store.ports.values()}
            assert owners.isdisjoint(instance_ids)

    def assert_visible(self, *instance_ids: str, via: Sequence[str]) -> None:
        """See that all that was acknowledged is there."""
        for start in range(0, len(instance_ids), 100):
            some = instance_ids[start : start + 100]
            assert {*self.described(*some, via=via)} == {*some}

    def epochs(self) -> dict[str, int]:
        """Return the newest epoch of each instance."""
        known = self.read(lambda tx: instances.find(tx, [*self.runs_on()]))
        return {one.instance_id: one.epoch for one in known}


def four_nodes(cluster: Mortals) -> Mortals:
    """Start two control nodes and a hypervisor in each of two zones, with an instance on each."""
    cluster.add("n1", CONTROL)
    cluster.add("n2", CONTROL)
    cluster.add("n3", HYPERVISOR)
    cluster.add("n4", HYPERVISOR, zone="local-1b")
    cluster.start()
    for zone in ("local-1a", "local-1b"):
        cluster.bystanders += cluster.born(via=APIS, zone=zone)
    cluster.reach("running", *cluster.bystanders, via=APIS)
    cluster.assert_sound()
    return cluster


class Standing:
    """A cluster that tests share as long as each leaves it sound; otherwise the next has another.

    :param make: gives a cluster to be used, until it is left.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[Mortals]]) -> None:
        self._make = make
        self._stack: ExitStack | None = None
        self._cluster: Mortals | None = None

    @contextmanager
    def use(self) -> Iterator[Mortals]:
        """Give the cluster to a test, which must leave it sound."""
        if self._cluster is None:
            self._stack = ExitStack()
            self._cluster = self._stack.enter_context(self._make())
        self._cluster.is_sound = False
        yield self._cluster
        if not self._cluster.is_sound:
            self.end()

    def end(self) -> None:
        """End the cluster; safe to repeat."""
        self._cluster = None
        if self._stack:
            self._stack.close()
            self._stack = None


@contextmanager
def mortals(
    folder: Path,
    postgresql: PostgreSQL,
    vhost: VirtualHost,
    *,
    through_tcp: bool = False,
    **sections: dict[str, Any],
) -> Iterator[Mortals]:
    """Give an empty cluster with a database of its own, and end what was started in it."""
    name = postgresql.new_database()
    url = postgresql.tcp_url(name) if through_tcp else postgresql.url(name)
    wanted = {"quota": QUOTA, **sections}
    cluster = Mortals(folder, url, vhost, **wanted)
    try:
        yield cluster
    finally:
        cluster.stop()
        if postgresql.pids:
            postgresql.drop(name)
