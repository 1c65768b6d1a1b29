"""Control nodes on fakes that meet over a RabbitMQ and a PostgreSQL of their own, for a while."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from appliance.config import BusSettings, ComputeSettings, Config, ControllerSettings
from tests.bench.fake_node import Client
from tests.bench.figure import cpu_of
from tests.cluster.fakes import CONTROL_ROLES, REGION, FakeCluster, FakeNode, running
from tests.services import postgresql, rabbitmq
from tests.services.postgresql import PostgreSQL
from tests.services.rabbitmq import Broker

_PLENTY = 1_000_000
_ON_DISK = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "128MB"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A cluster, and what it stands on."""

    cluster: FakeCluster
    broker: Broker
    server: PostgreSQL

    def add_control_nodes(self, count: int) -> list[FakeNode]:
        """Admit nodes with the roles that reach the store."""
        return [self.cluster.add(f"n{number}", CONTROL_ROLES) for number in range(1, count + 1)]

    def client(self, node: FakeNode) -> Client:
        """Return a client of one node's EC2 API with a connection of its own."""
        return Client(node.ec2_port, REGION, *self.cluster.key)

    def watch(self) -> Watch:
        """Return what looks into the store without any node's help."""
        return Watch(self.cluster.store_url)

    def cpu(self) -> Cpu:
        """Return the CPU seconds that all have used so far, simulated nodes aside."""
        started = [one.process for one in self.cluster.nodes.values() if one.process]
        return Cpu(
            control=sum(cpu_of(process.pid) for process in started),
            broker=cpu_of(self.broker.pid),
            database=sum(map(cpu_of, self.server.pids)),
        )


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """CPU seconds of control nodes, simulated compute nodes, broker and database."""

    control: float
    broker: float
    database: float
    compute: float = 0.0

    def since(self, before: Cpu) -> Cpu:
        """Return what was used since then."""
        return Cpu(
            **{
                name: getattr(self, name) - getattr(before, name)
                for name in ("control", "broker", "database", "compute")
            }
        )


class Watch:
    """Reads the states of instances from the store."""

    def __init__(self, store_url: str) -> None:
        self._connection = psycopg.connect(
            store_url.replace("postgresql+psycopg:", "postgresql:"), autocommit=True
        )

    def is_running(self, instance_id: str) -> bool:
        """Say whether an instance runs."""
        query = "SELECT 1 FROM instances WHERE id = %s AND state = 'running'"
        return self._connection.execute(query, (instance_id,)).fetchone() is not None

    def running(self) -> int:
        """Return how many instances run."""
        found = self._connection.execute(
            "SELECT count(*) FROM instances WHERE state = 'running'"
        ).fetchone()
        return int(found[0]) if found else 0

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@contextmanager
def place(**sections: Mapping[str, Any]) -> Iterator[Place]:
    """Give a cluster that has no nodes yet; files of its database are on disk.

    Nodes have the settings that they have outside of tests. What simulated nodes hold is in
    memory.
    """
    usual: dict[str, dict[str, Any]] = {
        "controller": msgspec.to_builtins(ControllerSettings()),
        "compute": {
            name: getattr(ComputeSettings(), name)
            for name in ("shutdown_s", "inventory_every_s", "retry_s", "heartbeat_every_s")
        },
        "bus": {"call_deadline_s": BusSettings().call_deadline_s},
        "network": {"type": "fake", "metadata": False, "cidr": "10.64.0.0/16"},
        "quota": dict.fromkeys(msgspec.structs.asdict(Config().quota), _PLENTY),
        "plugins": {group: {"fake": {}} for group in ("compute", "network", "firewall")},
    }
    merged = {name: {**usual.get(name, {}), **sections.get(name, {})} for name in usual}
    with (
        postgresql.running(_ON_DISK, on_disk=True) as server,
        rabbitmq.running() as broker,
        tempfile.TemporaryDirectory(prefix="anynode-bench-") as folder,
        running(Path(folder), server, broker.new_vhost(), **merged) as cluster,
    ):
        yield Place(cluster=cluster, broker=broker, server=server)


def settle(seconds: float = 1.0) -> None:
    """Let what follows a launch end: a report is confirmed after its instance is seen to run."""
    time.sleep(seconds)
