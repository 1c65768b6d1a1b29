"""An API in this process: a real store, a real port, and a bus that remembers what it was told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import boto3
import msgspec
import pytest
from botocore.config import Config as ClientConfig

from appliance import seal
from appliance.api.role import make_server
from appliance.api.server import Server
from appliance.config import Config, NodeSettings
from appliance.errors import Unavailable
from appliance.hooks import Observers
from appliance.lanes import Lanes
from appliance.messages import ConsoleRead, Message, ReadConsole
from appliance.model import ConsoleOutput
from appliance.node import NodeParts
from appliance.plugin_loader import PluginLoader
from appliance.role import Role
from appliance.store import Store, identity, images, migrations
from appliance.store import setup as store_setup
from appliance.store.images import Image, NewImage
from appliance.store.nodes import Node
from appliance.world import World

T = TypeVar("T")
GIB = 1 << 30
IDLE_LANES = 1


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
        self.world = World()
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
        from appliance.messages import decode

        for row in transaction.casts:
            self.bus.casts.append((row.topic, decode(row.kind, row.body)))
        self.bus.casts.extend(transaction.announcements)

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

    def client(self, keys: Keys | None = None, path: str = "", service: str = "ec2") -> Any:
        """Return an unmodified boto3 client."""
        keys = keys or self.keys
        return boto3.client(
            service,
            endpoint_url=self.url + path,
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

    def close(self) -> None:
        """End the server and the store."""
        self.server.close()
        self.store.close()


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    """Return an API of its own for one test."""
    made = Front(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def ec2(front: Front) -> Any:
    """Return a boto3 client of a member of the project ``demo``."""
    return front.client()
