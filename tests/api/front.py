"""An API in this process: a real store, a real port, and a bus that remembers what it was told."""

from __future__ import annotations

import dataclasses
import functools
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import boto3
import msgspec
from botocore.config import Config as ClientConfig
from botocore.exceptions import ClientError
from sqlalchemy import select, update

from appliance import seal
from appliance.api.role import make_server
from appliance.api.server import Server
from appliance.config import Config, NodeSettings
from appliance.errors import Unavailable
from appliance.hooks import Observers
from appliance.lanes import Lanes
from appliance.messages import ConsoleRead, Message, ReadConsole, decode
from appliance.model import ConsoleOutput
from appliance.node import NodeParts
from appliance.plugin_loader import PluginLoader
from appliance.role import Role
from appliance.store import Store, audit, identity, images, instances, migrations, quotas, schema
from appliance.store import setup as store_setup
from appliance.store.images import Image, NewImage
from appliance.store.nodes import Node
from appliance.world import SystemClock, World

T = TypeVar("T")
GIB = 1 << 30
IDLE_LANES = 1

_session = boto3.session.Session()  # it keeps the model, which is slow to load


class MovableClock(SystemClock):
    """The machine's clock, moved by ``offset_s`` seconds."""

    def __init__(self) -> None:
        self.offset_s = 0.0

    def now(self) -> float:
        return super().now() + self.offset_s


class RecordingBus:
    """Takes casts from the store's commits, and answers questions for consoles."""

    def __init__(self) -> None:
        self.casts: list[tuple[str, Message]] = []
        self.consoles: dict[str, bytes] = {}
        self.asked: list[tuple[str, Message]] = []

    def serve(self, role: Role) -> None:
        raise NotImplementedError

    def start(self) -> None:
        raise NotImplementedError

    def stop(self, deadline_s: float) -> None:
        raise NotImplementedError

    def retire(self, topic: str, deadline_s: float) -> None:
        raise NotImplementedError

    def well_for_s(self) -> float:
        return float("inf")

    def cast(self, topic: str, message: Message) -> None:
        self.casts.append((topic, message))

    def call(self, topic: str, question: Message, answer: type[Any], deadline_s: float) -> Any:
        self.asked.append((topic, question))
        assert isinstance(question, ReadConsole)
        if question.instance_id not in self.consoles:
            raise Unavailable(f"{topic} did not answer.")
        text = self.consoles[question.instance_id][-question.tail_bytes :]
        return ConsoleRead(output=ConsoleOutput(text=text, written_at=1_700_000_000.0))

    def announce(self, topic: str, message: Message) -> None:
        self.casts.append((topic, message))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keys:
    """An access key with its secret."""

    access_key_id: str
    secret: str
    project_id: str


@functools.cache
def _new_store() -> bytes:
    """Return a store as the migrations make it: they take longer than most tests."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "store.sqlite")
        made = Store(f"sqlite:///{path}", World())
        migrations.upgrade(made)
        made.close()
        assert os.listdir(folder) == [path.name]
        return path.read_bytes()


class Front:
    """The API with what tests need to look behind it."""

    def __init__(self, directory: Path, config: Config | None = None) -> None:
        base = config or Config()
        self.config = msgspec.structs.replace(
            base,
            node=NodeSettings(
                name="n1", state_dir=str(directory / "state"), run_dir=str(directory / "run")
            ),
            api=msgspec.structs.replace(base.api, port=0),
        )
        self.config.state_dir.mkdir(exist_ok=True)
        self.config.run_dir.mkdir(exist_ok=True)
        self.clock = MovableClock()
        self.world = World(clock=self.clock)
        (self.config.state_dir / "store.sqlite").write_bytes(_new_store())
        self.store = Store(self.config.store_url, self.world)
        migrations.upgrade(self.store)
        node = Node(node_id="node-1", name="n1", zone="local-1a", roles=("api",))
        self.store.transaction(lambda tx: store_setup.prepare(tx, self.config))
        self.store.transaction(lambda tx: store_setup.join(tx, node))
        self.bus = RecordingBus()
        self.store.on_commit(self._remember)
        self.seal = seal.load(seal.key_path(self.config.state_dir))
        self.parts = NodeParts(
            world=self.world,
            config=self.config,
            bus=self.bus,
            store=self.store,
            plugins=PluginLoader(
                node_name="n1",
                state_dir=self.config.state_dir,
                run_dir=self.config.run_dir,
                settings=self.config.plugin_settings,
            ),
            observers=Observers({}),
            work=Lanes("work", IDLE_LANES),
            node_id="node-1",
            boot_id="boot-1",
        )
        self.server: Server = make_server(self.parts)
        self.server.open()
        self.url = f"http://127.0.0.1:{self.server.port}"
        self.keys = self.make_project("demo")
        self.image = self.make_image()

    def _remember(self, transaction: Any) -> None:
        for row in transaction.casts:
            self.bus.casts.append((row.topic, decode(row.kind, row.body)))
        self.bus.casts.extend(transaction.announcements)
        for read in transaction.news.values():
            self.bus.casts.extend(self.store.read(read).messages)

    def enforce_policy(self) -> None:
        """Let the node have the policies of all networks in force, so that it hears of changes."""
        [node] = self.rows(schema.nodes)
        confirmed = [
            {"network_id": network.id, "node_id": node.id, "revision": 0}
            for network in self.rows(schema.networks)
        ]
        self.change(lambda tx: tx.execute(schema.policy_confirmations.insert(), confirmed))

    def change(self, work: Callable[[Any], T]) -> T:
        """Change something behind the API's back."""
        return self.store.transaction(work)

    def make_project(self, name: str, access_level: str = "member") -> Keys:
        """Make a project with one user and a key."""

        def make(tx: Any) -> Keys:
            quota = msgspec.structs.asdict(self.config.quota)
            project = identity.create_project(tx, name, quota)
            identity.create_user(tx, f"{name}-user")
            identity.join_project(tx, f"{name}-user", name, access_level)
            key_id, secret = identity.create_access_key(tx, self.seal, f"{name}-user", name)
            return Keys(access_key_id=key_id, secret=secret, project_id=project.project_id)

        return self.change(make)

    def make_key(self, project: str, user: str, access_level: str) -> Keys:
        """Make one more user with a key in a project."""

        def make(tx: Any) -> Keys:
            identity.create_user(tx, user)
            identity.join_project(tx, user, project, access_level)
            key_id, secret = identity.create_access_key(tx, self.seal, user, project)
            project_id = identity.find_project(tx, project).project_id
            return Keys(access_key_id=key_id, secret=secret, project_id=project_id)

        return self.change(make)

    def make_image(self, **fields: Any) -> Image:
        """Make a public machine image of 1 GiB, or another."""
        new = {
            "project_id": self.config.api.account_id,
            "kind": images.MACHINE,
            "name": "demo",
            "format": "qcow2",
            "sha256": "0" * 64,
            "size_bytes": 1000,
            "virtual_size_bytes": GIB,
            "is_public": True,
            **fields,
        }
        return self.change(lambda tx: images.create(tx, NewImage(**new)))

    def client(
        self, keys: Keys | None = None, path: str = "", service: str = "ec2", url: str = ""
    ) -> Any:
        """Return an unmodified boto3 client, of another API if its URL is given."""
        keys = keys or self.keys
        return _session.client(
            service,
            endpoint_url=(url or self.url) + path,
            region_name="local-1",
            aws_access_key_id=keys.access_key_id,
            aws_secret_access_key=keys.secret,
            config=ClientConfig(retries={"max_attempts": 0}),
        )

    def run(self, count: int = 1, **more: Any) -> list[str]:
        """Launch instances and return their ids."""
        wanted = {
            "ImageId": self.image.image_id,
            "InstanceType": "m1.tiny",
            "MinCount": count,
            "MaxCount": count,
            **more,
        }
        reply = self.client().run_instances(**wanted)
        return [each["InstanceId"] for each in reply["Instances"]]

    def make_running(self, ids: Sequence[str]) -> None:
        """Do to pending instances what the other roles would: addresses, and the state."""

        def make(tx: Any) -> None:
            for each in ids:
                instances.bind(tx, each, 1, region="local-1", quarantine_s=0.0)
            self._write(tx, ids, state="running", node_id="node-1", launched_at=tx.now)

        self.change(make)

    def make_stopped(self, ids: Sequence[str]) -> None:
        """Let instances be off, as the controller writes it."""

        def make(tx: Any) -> None:
            self._write(tx, ids, state="stopped", desired="stopped")
            for each in ids:
                quotas.uncount(tx, each)

        self.change(make)

    def make_terminated(self, ids: Sequence[str]) -> None:
        """Let instances be gone, as the controller writes it."""

        def make(tx: Any) -> None:
            for each in instances.find(tx, ids):
                instances.terminated(tx, each, None)

        self.change(make)

    def _write(self, tx: Any, ids: Sequence[str], **values: object) -> None:
        table = schema.instances
        tx.execute(update(table).where(table.c.id.in_(list(ids))).values(**values))

    def rows(self, table: Any) -> list[Any]:
        """Return all rows of a table."""
        return self.store.read(lambda tx: list(tx.execute(select(table))))

    def quota(self, resource: str, keys: Keys | None = None) -> int:
        """Return how much of a resource a project uses."""
        project_id = (keys or self.keys).project_id
        return next(
            int(row.used)
            for row in self.rows(schema.quotas)
            if row.project_id == project_id and row.resource == resource
        )

    def snapshot(self) -> dict[str, list[Any]]:
        """Return everything that is stored, to show that nothing has changed.

        That something was refused is written down, and is left out here, like the marks that
        transactions leave.
        """
        found = {
            name: sorted(map(tuple, self.rows(table)), key=repr)
            for name, table in schema.metadata.tables.items()
            if table not in (schema.audit, schema.commits)
        }
        found["handled"] = [row for row in found["handled"] if row[0] != audit.REFUSED]
        return found

    def restart_api(self) -> None:
        """End the server and begin anew, with a store and memory of its own, on another port."""
        self.server.close()
        self.store.close()
        self.store = Store(self.config.store_url, self.world)
        self.store.on_commit(self._remember)
        self.parts = dataclasses.replace(self.parts, store=self.store)
        self.server = make_server(self.parts)
        self.server.open()
        self.url = f"http://127.0.0.1:{self.server.port}"

    @contextmanager
    def second_api(self) -> Iterator[str]:
        """Give the URL of another API over the same store, as a second process has it."""
        store = Store(self.config.store_url, self.world)
        server = make_server(dataclasses.replace(self.parts, store=store))
        server.open()
        try:
            yield f"http://127.0.0.1:{server.port}"
        finally:
            server.close()
            store.close()

    def close(self) -> None:
        """End the server and the store."""
        self.server.close()
        self.store.close()


def code_of(action: Callable[..., Any], **params: Any) -> str:
    """Return the code with which a call is refused.

    :raises AssertionError: it is not.
    """
    return str(error_of(action, **params)["Code"])


def error_of(action: Callable[..., Any], **params: Any) -> dict[str, str]:
    """Return code and message with which a call is refused.

    :raises AssertionError: it is not.
    """
    try:
        reply = action(**params)
    except ClientError as error:
        found = error.response["Error"]
        return {"Code": found["Code"], "Message": found["Message"]}
    raise AssertionError(f"It was not refused: {reply}")


def free_port() -> int:
    """Return a TCP port of loopback that is free now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
