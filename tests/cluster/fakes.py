"""A cluster on fakes: real roles, bus, store and proxies, each node a process of its own.

Nodes meet over a real RabbitMQ and PostgreSQL; hypervisor, network and firewall are fakes, so that
no rights are needed and an instance runs within milliseconds. Tests kill, pause, cut off and move::

    cluster = FakeCluster(tmp_path, store_url, vhost)
    cluster.add("n1", roles=CONTROL_ROLES)
    cluster.add("n2", roles=HYPERVISOR_ROLES)
    cluster.start()
    (instance_id,) = cluster.launch(via=cluster["n2"])
    cluster.wait_running(instance_id)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import boto3
import msgspec
import pytest
from botocore.config import Config as ClientConfig

from appliance import node_process, seal
from appliance.bus.urls import without_login
from appliance.cluster import authority, decided, logins, settings
from appliance.cluster.settings import MemberSettings
from appliance.config import CONFIG_NAME, Config, load_config
from appliance.image_import import Wanted, import_image
from appliance.sandbox import toml_of
from appliance.store import Store, Transaction, identity, members, nodes
from appliance.store import setup as store_setup
from appliance.store.images import MACHINE
from appliance.store.nodes import Node as NodeRow
from appliance.world import World
from tests.proxy.certificates import TestAuthority
from tests.services.postgresql import PostgreSQL, free_port
from tests.services.rabbitmq import VirtualHost

T = TypeVar("T")

CONTROL_ROLES = ("api", "controller", "scheduler", "network")
HYPERVISOR_ROLES = ("datapath", "compute")
ALL_ROLES = (*CONTROL_ROLES, *HYPERVISOR_ROLES)
REGION = "local-1"
UP_S = 30.0
PATIENCE_S = 30.0

_session = boto3.session.Session()


class Process(Protocol):
    """A node's process, as far as tests handle it."""

    pid: int

    def poll(self) -> int | None:
        """Return the status that it ended with; ``None`` while it runs."""
        ...

    def wait(self, timeout: float, /) -> int:
        """Wait until it has ended and return its status."""
        ...

    def send_signal(self, number: int, /) -> None:
        """Send it a signal."""
        ...

    def terminate(self) -> None:
        """Ask it to end."""
        ...


@dataclass
class FakeNode:
    """One node; its process is ended by its number."""

    cluster: FakeCluster
    name: str
    node_id: str
    zone: str
    folder: Path
    ec2_port: int
    peer_port: int
    process: Process | None = field(default=None, init=False)

    @property
    def config(self) -> Config:
        """The node's settings, with what the cluster has decided over them."""
        return settings.overlay(load_config(self.folder / CONFIG_NAME))

    @property
    def endpoint(self) -> str:
        """Where the node answers EC2."""
        return f"http://127.0.0.1:{self.ec2_port}"

    @property
    def log(self) -> str:
        """What the node has said."""
        path = self.folder / "node.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def spawn(self, **environment: str) -> None:
        """Start the process; see :meth:`wait_up`."""
        with (self.folder / "node.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *("/usr/bin/setpriv", "--pdeathsig", "KILL", "--"),
                    *(sys.executable, "-m", "appliance.cli", "--config", str(self.folder), "run"),
                ],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_up(self) -> None:
        """Wait until all roles have started and EC2 answers here."""

        def is_up() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log
            found = node_process.find(self.config.run_dir)
            return bool(found and found.pid == self.process.pid and found.is_up)

        wait_until(is_up, lambda: f"{self.name} is up:\n{self.log}", UP_S)

    def start(self, **environment: str) -> None:
        """Start the node and wait until it is up."""
        self.spawn(**environment)
        self.wait_up()

    def kill(self) -> None:
        """Kill the process as the kernel does when memory runs out."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop the process in its own time."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait(60)

    def pause(self) -> None:
        """Stop the clock of the process: its connections stay, and it answers nobody."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def client(self, *, key: tuple[str, str] | None = None, **more: Any) -> Any:
        """Return an unmodified boto3 client of EC2 at this node's own port."""
        key_id, secret = key or self.cluster.key
        return _session.client(
            "ec2",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=key_id,
            aws_secret_access_key=secret,
            config=ClientConfig(
                retries={"max_attempts": 0}, connect_timeout=5, read_timeout=60, **more
            ),
        )

    def run_cli(
        self, *arguments: str, seconds: float = 60, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run ``anynode`` with this node's settings."""
        return subprocess.run(
            [sys.executable, "-m", "appliance.cli", "--config", str(self.folder), *arguments],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )


class FakeCluster:
    """Nodes on fakes that share a store and a broker, from :meth:`start` to :meth:`stop`.

    :param store_url: a migrated database that nobody else uses.
    :param vhost: a virtual host of the broker, likewise.
    :param sections: settings of all nodes, over those that tests usually want.
    """

    node_type: ClassVar[type[FakeNode]] = FakeNode

    def __init__(
        self, folder: Path, store_url: str, vhost: VirtualHost, **sections: dict[str, Any]
    ) -> None:
        self.folder = folder
        self.vhost = vhost
        self.store_url = store_url
        self.store = Store(store_url, World())
        self.nodes: dict[str, FakeNode] = {}
        self._sections = sections
        self._authority = TestAuthority(folder)
        self._seal_path = folder / "seal.key"
        seal.load(self._seal_path)
        self.key = ("", "")
        self.image_id = ""
        self.change(self._found)

    def _found(self, tx: Transaction) -> None:
        """Write what a founding leaves in the store: what nodes are entitled to comes of it."""
        keys = seal.load(self._seal_path)
        authority.keep(tx, keys, self._authority.authority)
        what = decided.Decided(
            bus_urls=without_login(self.vhost.url),
            store_url=self.store_url,
            bus_is_ours=False,
            store_is_ours=False,
        )
        decided.keep(tx, keys, what)
        logins.keep_access(tx, keys, self.vhost.access)

    def __getitem__(self, name: str) -> FakeNode:
        return self.nodes[name]

    def change(self, work: Callable[[Transaction], T]) -> T:
        """Change the store behind everybody's back."""
        return self.store.transaction(work)

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Read the store."""
        return self.store.read(work)

    def add(self, name: str, roles: Sequence[str], zone: str = "local-1a") -> FakeNode:
        """Admit a node: its certificate, login, settings and row; it does not run yet."""
        folder = self.folder / name
        (folder / "state").mkdir(parents=True)
        node = self.node_type(
            cluster=self,
            name=name,
            node_id=str(uuid.uuid4()),
            zone=zone,
            folder=folder,
            ec2_port=free_port(),
            peer_port=free_port(),
        )
        self.nodes[name] = node
        (folder / "state" / "node_id").write_text(f"{node.node_id}\n", encoding="ascii")
        is_control = bool({*roles} & {*CONTROL_ROLES})
        certificate = self._authority.write_node(
            settings.folder_of(folder / "state"), node.node_id, is_control=is_control
        )
        self._write_settings(node)
        if is_control:
            path = seal.key_path(folder / "state")
            path.write_bytes(self._seal_path.read_bytes())
            path.chmod(0o600)
        self._write_membership(node, roles, is_control)
        self._enlist(node, roles, certificate, is_control)
        return node

    def _write_membership(self, node: FakeNode, roles: Sequence[str], is_control: bool) -> None:
        told = MemberSettings(
            node_id=node.node_id,
            node_name=node.name,
            zone=node.zone,
            roles=tuple(roles),
            is_control=is_control,
            address="127.0.0.1",
            port=node.peer_port,
            bus_url=self.vhost.admit(node.node_id, is_control=is_control),
            bus_is_ours=False,
            store_url=self.store_url if is_control else "",
            store_is_ours=False,
        )
        settings.write(settings.folder_of(node.folder / "state"), told)

    def _write_settings(self, node: FakeNode) -> None:
        usual: dict[str, dict[str, Any]] = {
            "node": {
                "region": REGION,
                "state_dir": str(node.folder / "state"),
                "run_dir": str(node.folder / "run"),
            },
            "bus": {"call_deadline_s": 5.0},
            "api": {"port": node.ec2_port},
            "controller": {"sweep_every_s": 0.5, "progress_s": 3.0},
            "network": {"type": "fake", "metadata": False, "address_quarantine_s": 0.0},
            "firewall": {"driver": "fake"},
            "compute": {
                "driver": "fake",
                "injection": ["none"],
                "shutdown_s": 1.0,
                "inventory_every_s": 5.0,
                "retry_s": 0.5,
                "heartbeat_every_s": 1.0,
            },
            "images": {"group": "", "folder": str(self.folder / "images")},
            "plugins": {
                group: {"fake": {"survives": True}} for group in ("compute", "network", "firewall")
            },
        }
        merged = {
            name: {**usual.get(name, {}), **self._sections.get(name, {})}
            for name in {*usual, *self._sections}
        }
        (node.folder / CONFIG_NAME).write_text(toml_of(merged), encoding="utf-8")

    def _enlist(
        self, node: FakeNode, roles: Sequence[str], certificate: str, is_control: bool
    ) -> None:
        row = NodeRow(node_id=node.node_id, name=node.name, zone=node.zone, roles=tuple(roles))

        def write(tx: Transaction) -> None:
            store_setup.prepare(tx, node.config)
            store_setup.join(tx, row)
            members.certify(
                tx,
                node.node_id,
                certificate=certificate,
                is_control=is_control,
                address=f"127.0.0.1:{node.peer_port}",
            )
            members.changed(tx)

        self.change(write)

    def start(self) -> None:
        """Start all nodes, and return when each is up and those with instances are known to be."""
        for node in self.nodes.values():
            node.spawn()
        for node in self.nodes.values():
            node.wait_up()
        self.wait_known(*self.nodes)
        if not self.image_id:
            self._prepare()

    def wait_known(self, *names: str, is_up: bool = True, seconds: float = PATIENCE_S) -> None:
        """Wait until the store says of nodes that they are up, or down."""

        def status() -> dict[str, bool]:
            return {one.name: one.is_up for one in self.read(nodes.status) if one.name in names}

        wait_until(
            lambda: all(found is is_up for found in status().values()),
            lambda: f"{status()} are all {is_up}\n{self.logs()}",
            seconds,
        )

    def _prepare(self) -> None:
        """Make a project with an access key, and an image that all nodes hold."""
        config = next(one.config for one in self.nodes.values() if one.config.store.url)
        keys = seal.load(self._seal_path)

        def make(tx: Transaction) -> tuple[str, str]:
            identity.create_project(tx, "demo", msgspec.structs.asdict(config.quota))
            identity.create_user(tx, "demo")
            identity.join_project(tx, "demo", "demo", "admin")
            return identity.create_access_key(tx, keys, "demo", "demo")

        self.key = self.change(make)
        disk = self.folder / "disk.raw"
        disk.write_bytes(b"a small disk".ljust(1 << 20, b"."))
        wanted = Wanted(kind=MACHINE, name="small", format="raw", is_public=True)
        self.image_id = import_image(self.store, config, disk, wanted, "demo").image.image_id

    def launch(self, count: int = 1, *, via: FakeNode, **more: Any) -> list[str]:
        """Launch instances through a node's own port; return their ids."""
        reply = via.client().run_instances(
            ImageId=self.image_id, InstanceType="t2.nano", MinCount=count, MaxCount=count, **more
        )
        return [one["InstanceId"] for one in reply["Instances"]]

    def states(self, *instance_ids: str, via: FakeNode) -> dict[str, str]:
        """Return the states of instances as a node's own port tells them."""
        reply = via.client().describe_instances(InstanceIds=list(instance_ids))
        return {
            one["InstanceId"]: one["State"]["Name"]
            for reservation in reply["Reservations"]
            for one in reservation["Instances"]
        }

    def wait_state(
        self, state: str, *instance_ids: str, via: FakeNode, seconds: float = PATIENCE_S
    ) -> None:
        """Wait until instances are in a state."""
        wait_until(
            lambda: {*self.states(*instance_ids, via=via).values()} == {state},
            lambda: f"{self.states(*instance_ids, via=via)} are {state}\n{self.logs()}",
            seconds,
        )

    def logs(self) -> str:
        """Return what all nodes have said, for a test that fails."""
        return "\n".join(f"== {one.name}\n{one.log[-6000:]}" for one in self.nodes.values())

    def stop(self) -> None:
        """End all nodes; safe to repeat."""
        for node in self.nodes.values():
            if node.process is not None and node.process.poll() is None:
                node.process.send_signal(signal.SIGCONT)
                node.process.terminate()
        for node in self.nodes.values():
            node.stop()
        self.store.close()


def wait_until(
    is_so: Callable[[], bool], what: str | Callable[[], str], seconds: float = PATIENCE_S
) -> None:
    """Wait for a condition; fail with words when it does not come true in time."""
    until = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > until:
            text = what() if callable(what) else what
            raise AssertionError(f"not within {seconds:g} s: {text}")
        time.sleep(0.05)


@contextmanager
def running(
    folder: Path, postgresql: PostgreSQL, vhost: VirtualHost, **sections: dict[str, Any]
) -> Iterator[FakeCluster]:
    """Give an empty cluster with a database of its own, and end what was started in it."""
    with postgresql.database() as store_url:
        cluster = FakeCluster(folder, store_url, vhost, **sections)
        try:
            yield cluster
        finally:
            cluster.stop()


MakeCluster = Callable[..., FakeCluster]


@pytest.fixture
def fakes(tmp_path: Path, postgresql: PostgreSQL, vhost: VirtualHost) -> Iterator[FakeCluster]:
    """An empty cluster on fakes."""
    with running(tmp_path, postgresql, vhost) as cluster:
        yield cluster
