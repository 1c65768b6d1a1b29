"""T43, T45: broker and database die, hang and come back while a hundred are launched."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pika
import pytest
from sqlalchemy import select

from appliance.bus import topology
from appliance.store import schema
from tests.faults.mortals import APIS, Mortals, Standing, four_nodes, mortals
from tests.services import postgresql as postgresql_service
from tests.services import rabbitmq as rabbitmq_service
from tests.services.postgresql import PostgreSQL
from tests.services.rabbitmq import Broker

LAUNCHES = 100
USERS = 3
CALM_S = 180.0
TAP = "tap"


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    """A broker that tests harm."""
    with rabbitmq_service.running() as made:
        yield made


@pytest.fixture(scope="module")
def database() -> Iterator[PostgreSQL]:
    """A database server that tests harm."""
    with postgresql_service.running() as made:
        yield made


@pytest.fixture(scope="module")
def standing(
    tmp_path_factory: pytest.TempPathFactory, database: PostgreSQL, broker: Broker
) -> Iterator[Standing]:
    """A cluster of four nodes on services that may be harmed."""

    @contextmanager
    def make() -> Iterator[Mortals]:
        folder = tmp_path_factory.mktemp("mortals")
        with mortals(folder, database, broker.new_vhost()) as cluster:
            yield four_nodes(cluster)

    made = Standing(make)
    yield made
    made.end()


@pytest.fixture(autouse=True)
def mended(broker: Broker, database: PostgreSQL) -> Iterator[None]:
    """Both run before and after each test."""
    yield
    for service in (broker, database):
        service.resume()
    if not database.pids:
        database.start()


class Users:
    """Users who launch one instance after the other, until so many are acknowledged."""

    def __init__(self, cluster: Mortals, count: int) -> None:
        self._cluster = cluster
        self.ids: list[str] = []
        self._pool = ThreadPoolExecutor(USERS)
        self._launches = [self._pool.submit(self._launch, number) for number in range(count)]

    def _launch(self, number: int) -> None:
        via = APIS if number % 2 else APIS[::-1]
        self.ids += self._cluster.born(via=via, token=uuid.uuid4().hex, deadline_s=CALM_S)

    def wait_for(self, count: int) -> None:
        """Wait until so many launches are acknowledged."""
        self._cluster.wait_for(lambda: len(self.ids) >= count, f"{count} launches", CALM_S)

    def finish(self) -> list[str]:
        """Wait for all, and return the ids of all instances."""
        for launch in self._launches:
            launch.result(CALM_S)
        self._pool.shutdown()
        return self.ids


class Tap:
    """A queue of the test's own that gets a copy of every cast that the broker took."""

    def __init__(self, cluster: Mortals) -> None:
        self._vhost = cluster.vhost
        with self._vhost.channel() as channel:
            # Not a quorum queue: one that is younger than some seconds may be without a leader
            # for ever when its broker is killed (seen with RabbitMQ 3.10.8).
            channel.queue_declare(TAP, durable=True)
            channel.queue_bind(TAP, topology.EXCHANGE, "cast.#")

    def take(self) -> dict[str, str]:
        """Return the routing keys of all that was cast, by the ids of the messages; end it."""
        found: dict[str, str] = {}
        with self._vhost.channel() as channel:
            while True:
                method, properties, _ = channel.basic_get(TAP, auto_ack=True)
                if not isinstance(method, pika.spec.Basic.GetOk):
                    break
                found[properties.message_id] = method.routing_key
            channel.queue_delete(TAP)
        return found


def handled(cluster: Mortals) -> set[str]:
    """Return the ids of the messages that took effect in the store."""
    query = select(schema.handled.c.message_id)
    return cluster.read(lambda tx: set(tx.execute(query).scalars()))


def settled(cluster: Mortals, ids: list[str]) -> list[str]:
    """Wait until each runs or has ended for a reason, and return those that run."""
    seen: dict[str, dict[str, Any]] = {}

    def is_settled() -> bool:
        seen.update(cluster.described(*ids, via=APIS))
        return {one["State"]["Name"] for one in seen.values()} <= {"running", "terminated"}

    cluster.wait_for(is_settled, "all to be running or terminated", CALM_S)
    ended = [one for one in seen.values() if one["State"]["Name"] == "terminated"]
    assert all(one["StateReason"]["Message"] for one in ended)
    return [key for key, one in seen.items() if one["State"]["Name"] == "running"]


def outlive(cluster: Mortals, harm: Callable[[], None], count: int = LAUNCHES) -> None:
    """Let users launch, harm the services meanwhile, and see that nothing came of it."""
    tap = Tap(cluster)
    users = Users(cluster, count)
    users.wait_for(count // 4)
    harm()
    ids = users.finish()
    assert len({*ids}) == count
    runs = settled(cluster, ids)
    assert len(runs) >= count // 2, "most were launched"
    cluster.assert_sound(seconds=CALM_S)
    cluster.assert_visible(*ids, via=APIS)
    placed = {one for one, where in cluster.runs_on().items() if len(where) == 1}
    assert placed == {*runs, *cluster.bystanders}, "each runs, once"
    published = tap.take()
    to_store = {number for number, key in published.items() if key.count(".") == 1}
    assert len(to_store) > count
    assert to_store <= handled(cluster), "published = done, when none is dead and none waits"
    cluster.is_sound = False
    cluster.end(*ids, via=APIS)
    cluster.reach("terminated", *ids, via=APIS, seconds=CALM_S)
    cluster.assert_sound(seconds=CALM_S)
    cluster.assert_gone(*ids)


def broker_dies(broker: Broker, away_s: float = 3.0) -> None:
    broker.kill()
    time.sleep(away_s)
    broker.start()


def database_dies(database: PostgreSQL, away_s: float = 3.0) -> None:
    database.kill()
    time.sleep(away_s)
    database.start()


def hangs(service: Broker | PostgreSQL, for_s: float) -> None:
    service.pause()
    time.sleep(for_s)
    service.resume()


def is_short_of_memory(broker: Broker, for_s: float) -> None:
    broker.rabbitmqctl("set_vm_memory_high_watermark", "0.0001")
    try:
        time.sleep(for_s)
    finally:
        broker.rabbitmqctl("set_vm_memory_high_watermark", "0.6")


def is_read_only(cluster: Mortals, database: PostgreSQL, for_s: float) -> None:
    name = cluster.store.engine.url.database
    for value in ("on", "off"):
        database.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}")
        database.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        time.sleep(for_s if value == "on" else 0)


@pytest.mark.faults("cluster: broker killed")
@pytest.mark.parametrize("number", range(1, 4))
def test_t43_the_broker_is_killed(cluster: Mortals, broker: Broker, number: int) -> None:
    outlive(cluster, partial(broker_dies, broker))


@pytest.mark.faults("cluster: broker frozen")
def test_t43_the_broker_is_frozen(cluster: Mortals, broker: Broker) -> None:
    outlive(cluster, partial(hangs, broker, 30.0))


@pytest.mark.faults("cluster: broker short of memory")
def test_t43_the_broker_is_short_of_memory(cluster: Mortals, broker: Broker) -> None:
    outlive(cluster, partial(is_short_of_memory, broker, 20.0))


@pytest.mark.faults("cluster: database killed")
@pytest.mark.parametrize("number", range(1, 4))
def test_t45_the_database_is_killed(cluster: Mortals, database: PostgreSQL, number: int) -> None:
    outlive(cluster, partial(database_dies, database))


@pytest.mark.faults("cluster: database frozen")
def test_t45_the_database_is_frozen(cluster: Mortals, database: PostgreSQL) -> None:
    outlive(cluster, partial(hangs, database, 30.0))


@pytest.mark.faults("cluster: database read-only")
def test_t45_the_database_takes_no_writes(cluster: Mortals, database: PostgreSQL) -> None:
    outlive(cluster, partial(is_read_only, cluster, database, 15.0))


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(8, marks=pytest.mark.faults("cluster: both killed", quick=True)),
        pytest.param(LAUNCHES, marks=pytest.mark.faults("cluster: both killed")),
    ],
)
def test_t43_t45_both_are_killed(
    cluster: Mortals, broker: Broker, database: PostgreSQL, count: int
) -> None:
    def harm() -> None:
        broker.kill()
        database.kill()
        time.sleep(1.0)
        database.start()
        broker.start()

    outlive(cluster, harm, count)
