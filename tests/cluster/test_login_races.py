"""A node is removed while its connections open, and while a role is given to it."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest
from pika.exceptions import AMQPError

from appliance.cluster import settings
from appliance.cluster.management import Management
from appliance.cluster.membership import MEMBERS
from tests.cluster.fakes import ALL_ROLES, HYPERVISOR_ROLES, FakeCluster, running, wait_until
from tests.services.postgresql import PostgreSQL
from tests.services.rabbitmq import VirtualHost

OPENING = 4
"""Threads that open connections all the time."""

LEFT_S = 5.0


class Opening:
    """Connections of one login that open all the time, until none opens any more."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._is_over = threading.Event()
        self.begun = threading.Semaphore(0)
        self._last: dict[int, pika.BlockingConnection] = {}
        self._threads = [threading.Thread(target=self._open, args=(n,)) for n in range(OPENING)]

    def _open(self, number: int) -> None:
        """Open one after the other; the last that came up is held, whatever comes after it."""
        while not self._is_over.is_set():
            try:
                connection = pika.BlockingConnection(pika.URLParameters(self._url))
            except (AMQPError, OSError):
                time.sleep(0.01)
                continue
            before, self._last[number] = self._last.get(number), connection
            self.begun.release()
            if before is not None:
                with contextlib.suppress(AMQPError, OSError):
                    before.close()

    def __enter__(self) -> Opening:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(30)

    def left(self) -> list[pika.BlockingConnection]:
        """Return those that still can do something, once no more are opened."""
        return [one for one in self._last.values() if _works(one)]


def _works(connection: pika.BlockingConnection) -> bool:
    try:
        connection.process_data_events(0.05)
        connection.channel().close()
    except (AMQPError, OSError):
        return False
    return True


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param(2, marks=pytest.mark.faults("races: login removed")),
        pytest.param(30, marks=pytest.mark.faults("races: login removed")),
    ],
)
def test_a_login_that_is_removed_while_it_connects(vhost: VirtualHost, rounds: int) -> None:
    for number in range(rounds):
        node_id = str(uuid.uuid4())
        with Opening(vhost.admit(node_id, is_control=False)) as opening:
            assert opening.begun.acquire(timeout=20)
            time.sleep(0.01 * (number % 10))
            vhost.logins.remove(node_id)
            # What was on its way when the login went may come up now.
            time.sleep(0.3)
        wait_until(lambda at=opening: not at.left(), "no connection is left", LEFT_S)  # type: ignore[misc]


@pytest.fixture
def pair(tmp_path: Path, postgresql: PostgreSQL, vhost: VirtualHost) -> Iterator[FakeCluster]:
    with running(tmp_path, postgresql, vhost) as cluster:
        cluster.add("n1", roles=ALL_ROLES)
        cluster.add("n2", roles=HYPERVISOR_ROLES)
        cluster.start()
        # As a machine that has joined it knows at whose doors to ask.
        known = settings.folder_of(cluster["n2"].folder / "state") / MEMBERS
        wait_until(known.exists, "it has heard of the others")
        yield cluster


def assert_gone(cluster: FakeCluster, node_id: str) -> None:
    """See that a node has no login, no queue and no row of members."""
    management = Management(cluster.vhost.access)
    assert [one for one in management.users() if one.endswith(node_id)] == []
    assert f"node.{node_id}" not in management.queues()


@pytest.mark.parametrize(
    "after_s",
    [
        pytest.param(0.3, marks=pytest.mark.faults("races: role of a removed node")),
        *(
            pytest.param(one, marks=pytest.mark.faults("races: role of a removed node"))
            for one in (0.0, 0.6, 0.9, 1.2, 1.6, 2.2)
        ),
    ],
)
def test_a_role_of_the_store_for_a_node_that_is_removed(pair: FakeCluster, after_s: float) -> None:
    """It may have become a control node meanwhile, or not: nothing of either is left."""
    first, second = pair["n1"], pair["n2"]
    adding = threading.Thread(
        target=first.run_cli, args=("role", "add", "scheduler", "--node", "n2")
    )
    adding.start()
    time.sleep(after_s)
    done = first.run_cli("node", "remove", "n2", "--yes")
    if done.returncode:
        assert "is the last node" in done.stderr, done.stderr
    adding.join(90)
    assert done.returncode == 0, done.stderr
    wait_until(lambda: "was removed from its cluster" in second.log, lambda: second.log[-3000:], 60)
    assert_gone(pair, second.node_id)
    (instance_id,) = pair.launch(via=first)
    pair.wait_state("running", instance_id, via=first)
