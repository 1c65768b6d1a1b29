"""A lone node becomes the first of a cluster, whatever interrupts it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance import node_process, teardown
from appliance.bus.topology import login_of
from appliance.cluster import founding, logins, services
from appliance.cluster.founding import Founding, Wishes
from appliance.cluster.management import Management
from appliance.cluster.membership import folder_of
from appliance.config import Config, load_config
from appliance.errors import ConfigError, Conflict, InputError
from appliance.files import write_whole
from appliance.seal import Seal, key_path
from appliance.seal import load as load_seal
from appliance.store import Store, Transaction, identity, migrations, nodes
from appliance.world import World
from tests.services.own import require_services, write_certificates
from tests.services.postgresql import PostgreSQL, free_port

pytestmark = [pytest.mark.node, pytest.mark.timeout(240)]

_SETTINGS = """
[node]
name = "n1"
state_dir = "{folder}/state"
run_dir = "{folder}/run"
[api]
port = {ports[0]}
[cluster]
store_port = {ports[1]}
bus_port = {ports[2]}
bus_admin_port = {ports[3]}
[network]
type = "fake"
metadata = false
[firewall]
driver = "fake"
[compute]
driver = "fake"
injection = ["none"]
[images]
group = ""
"""


class Place:
    """A folder with the settings of a node on fakes, and what a founding there has said."""

    def __init__(self, folder: Path) -> None:
        self.config_path = folder / "anynode.toml"
        ports = [free_port() for _ in range(4)]
        self.config_path.write_text(_SETTINGS.format(folder=folder, ports=ports))
        self.config = load_config(self.config_path)
        self.said: list[str] = []
        self.papers = FakePapers()

    def begin(self, **wishes: str) -> Founding:
        wanted = Wishes(**wishes)
        say = self.said.append
        return founding.begin(self.config, self.config_path, wanted, self.papers, say)

    def found(self, **wishes: str) -> Founding:
        one = self.begin(**wishes)
        one.check()
        one.run()
        return one

    def add_user(self, name: str) -> None:
        self.config.state_dir.mkdir(exist_ok=True)
        store = Store(self.config.store_url, World())
        migrations.upgrade(store)
        store.transaction(lambda tx: identity.create_user(tx, name))
        store.close()


class FakePapers:
    """Papers of no authority that anybody knows."""

    def __init__(self) -> None:
        self.interrupts = 0
        self.written: Config | None = None

    def certify(
        self, tx: Transaction, sealing: Seal, folder: Path, address: str, node_id: str
    ) -> None:
        if not (folder / "node.pem").exists():
            write_certificates(folder)

    def write_settings(self, tx: Transaction, folder: Path, config: Config, node_id: str) -> None:
        if self.interrupts:
            self.interrupts -= 1
            raise KeyboardInterrupt
        self.written = config
        write_whole(folder / "settings.json", msgspec.json.encode(config))

    def in_force(self, config: Config) -> Config:
        return config


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A place that the services' users may pass through; nothing of it is left."""
    require_services()
    # What a node of a cluster does when it starts is not the founding's.
    monkeypatch.setattr(Founding, "_start", lambda self: None)
    folder = Path(tempfile.mkdtemp(prefix="anynode-founding-", dir="/var/tmp"))
    folder.chmod(0o711)
    made = Place(folder)
    try:
        yield made
    finally:
        process = node_process.find(made.config.run_dir)
        if process:
            node_process.stop(process)
        services.stop(made.config.state_dir, is_orderly=False)
        shutil.rmtree(folder)


def users_and_nodes(url: str) -> tuple[list[str], list[str]]:
    store = Store(url, World())
    try:
        return store.read(
            lambda tx: (
                [one.name for one in identity.list_users(tx)],
                [one.name for one in nodes.status(tx)],
            )
        )
    finally:
        store.close()


def test_a_node_that_runs_grows_with_services_of_its_own(place: Place) -> None:
    """Ctrl-C just before the end leaves the lone node running; called again it goes on."""
    first = node_process.start(place.config, place.config_path)
    place.add_user("before")
    place.papers.interrupts = 1
    with pytest.raises(KeyboardInterrupt):
        place.found(address="127.0.0.1")
    again = node_process.find(place.config.run_dir)
    assert again is not None
    assert again.pid != first.pid
    assert "nothing has changed" in place.said[-1]
    assert not folder_of(place.config.state_dir).exists()
    pids = [one.process() for one in services.both(place.config.state_dir)]

    place.add_user("meanwhile")
    with pytest.raises(Conflict, match="--zone"):
        place.begin(zone="local-1b")
    place.said.clear()
    made = place.found()
    assert [one.process() for one in services.both(place.config.state_dir)] == pids
    assert [line.split()[0] for line in place.said] == [
        *("made", "found", "found", "made", "stop", "copied", "the")
    ]
    assert node_process.find(place.config.run_dir) is None

    state_dir = place.config.state_dir
    authority = services.tls_of(state_dir).authority
    found = users_and_nodes(founding.with_authority(made.store_url, authority))
    assert found == (["before", "meanwhile"], ["n1"])
    assert (state_dir / "store.sqlite.before-cluster").exists()
    assert not (state_dir / "store.sqlite").exists()
    written = place.papers.written
    assert written is not None
    assert written.cluster.address == "127.0.0.1"
    assert written.network.type == "fake"
    assert written.bus.url.startswith(f"amqps://c-{made.node_id}:")
    assert_nothing_is_open(state_dir, [written.bus.url, written.store.url])

    assert place.begin().plan() == ["This node, n1, is the first of a cluster already."]
    place.found()
    assert teardown.tear_down(place.config)[:2] == ("RabbitMQ", "PostgreSQL")
    assert os.listdir(place.config_path.parent) == ["anynode.toml"]


def assert_nothing_is_open(state_dir: Path, urls: list[str]) -> None:
    passwords = [url.partition("@")[0].rpartition(":")[2].encode() for url in urls]
    for path in state_dir.rglob("*"):
        if path.is_file() and any(one in path.read_bytes() for one in passwords):
            assert path.stat().st_mode & 0o077 == 0, path
            assert path.suffix == ".json", path


def given(postgresql: PostgreSQL, rabbitmq: Any, database: str) -> dict[str, str]:
    return {
        "address": "127.0.0.1",
        "store_url": postgresql.tcp_url(database).replace("+psycopg", ""),
        "bus_url": f"amqp://127.0.0.1:{rabbitmq.port}/founding",
        "bus_admin_url": f"http://admin:{rabbitmq.password}@127.0.0.1:{rabbitmq.admin_port}",
    }


def test_a_fresh_machine_takes_services_that_there_are(
    place: Place, postgresql: PostgreSQL, rabbitmq: Any
) -> None:
    database = postgresql.new_database(is_empty=True)
    wishes = given(postgresql, rabbitmq, database)
    try:
        made = place.found(name="first", zone="east-1a", **wishes)
        assert users_and_nodes(postgresql.tcp_url(database)) == ([], ["first"])
        assert not services.store_of(place.config.state_dir).exists
        assert not services.broker_of(place.config.state_dir).exists
        written = place.papers.written
        assert written is not None
        assert (written.node.name, written.node.zone) == ("first", "east-1a")
        assert written.bus.url.endswith(f"@127.0.0.1:{rabbitmq.port}/founding")
        store = Store(postgresql.tcp_url(database), World())
        sealing = load_seal(key_path(place.config.state_dir))
        access = store.read(lambda tx: logins.stored_access(tx, sealing))
        store.close()
        broker = Management(access)
        assert login_of(made.node_id, is_control=True) in broker.users()
        logins.Logins(broker).remove(made.node_id)
    finally:
        postgresql.drop(database)


def test_a_store_of_somebody_else_is_left_alone(
    place: Place, postgresql: PostgreSQL, rabbitmq: Any
) -> None:
    database = postgresql.new_database()
    wishes = given(postgresql, rabbitmq, database)
    store = Store(postgresql.tcp_url(database), World())
    store.transaction(lambda tx: identity.create_user(tx, "theirs"))
    store.close()
    try:
        place.add_user("ours")
        with pytest.raises(Conflict, match="not empty"):
            place.found(**wishes)
        assert users_and_nodes(postgresql.tcp_url(database)) == (["theirs"], [])
        assert users_and_nodes(place.config.store_url) == (["ours"], [])
        assert not folder_of(place.config.state_dir).exists()
    finally:
        postgresql.drop(database)


def test_a_node_of_another_cluster_is_refused(place: Place) -> None:
    folder = folder_of(place.config.state_dir)
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text("{}")
    with pytest.raises(Conflict, match="belongs to a cluster"):
        place.begin()
    assert os.listdir(folder) == ["settings.json"]


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"address": "192.0.2.77"}, "does not have the address"),
        ({"address": "somewhere"}, "is no IP address"),
        ({"address": "0.0.0.0"}, "cannot reach"),
        ({"bus_url": "amqps://broker.example/x"}, "--bus-admin-url"),
        ({"bus_url": "redis://u:canary-1@x"}, r"\*\*\*"),
        ({"store_url": "mysql://u:canary-1@x/y"}, r"\*\*\*"),
        ({"bus_url": "amqp://x", "bus_admin_url": "http://u:canary-1@192.0.2.1:1"}, "in the clear"),
        ({"bus_url": "amqp://x", "bus_admin_url": "https://192.0.2.1:1"}, "no URL of a management"),
    ],
)
def test_wishes_that_cannot_be(place: Place, wishes: dict[str, str], message: str) -> None:
    with pytest.raises((InputError, ConfigError), match=message) as raised:
        place.found(**{"address": "127.0.0.1", **wishes})
    assert "canary-1" not in str(raised.value)
    assert not place.config.state_dir.exists()
