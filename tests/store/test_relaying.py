"""Messages on their way to a broker and back, on each kind of store."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from appliance.messages import Wanted
from appliance.store import OutboxRow, Store, Transaction, handled, migrations, outbox
from appliance.world import SystemClock, World


class Later(SystemClock):
    """A clock that is ahead by ten seconds."""

    def now(self) -> float:
        return super().now() + 10


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    made = Store(store_url, World())
    migrations.upgrade(made)
    yield made
    made.close()


@pytest.fixture
def later(store: Store) -> Iterator[Store]:
    """The same store, ten seconds later."""
    made = Store(store.url, World(clock=Later()))
    yield made
    made.close()


def cast(store: Store, count: int = 1) -> list[str]:
    def send(tx: Transaction) -> list[str]:
        for number in range(count):
            tx.cast("controller", Wanted(instance_id=f"i-{number}"))
        return [row.id for row in tx.casts]

    return store.transaction(send)


def claim(store: Store) -> list[str]:
    return [row.id for row in store.transaction(lambda tx: outbox.claim(tx, 2.0, 5.0))]


def test_what_is_young_is_left_to_its_writer(store: Store, later: Store) -> None:
    (message_id,) = cast(store)
    assert not store.read(lambda tx: outbox.is_any_due(tx, 2.0, 5.0))
    assert claim(store) == []
    assert later.read(lambda tx: outbox.is_any_due(tx, 2.0, 5.0))
    assert claim(later) == [message_id]


def test_a_row_is_given_to_one(store: Store, later: Store) -> None:
    ids = cast(store, 150)
    taken: list[list[str]] = []
    start = threading.Barrier(4)

    def take() -> None:
        start.wait()
        taken.append(claim(later))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one for each in taken for one in each) == sorted(ids)


def test_what_has_died_stays(store: Store) -> None:
    (message_id,) = cast(store)
    row = store.read(outbox.pending)[0]
    assert store.transaction(lambda tx: outbox.keep(tx, row, 20, "it killed"))
    assert not store.transaction(lambda tx: outbox.keep(tx, row, 20, "again"))
    store.transaction(lambda tx: outbox.take_all(tx, [message_id]))
    (letter,) = store.read(outbox.dead_letters)
    assert (letter.message_id, letter.error, letter.attempts) == (message_id, "it killed", 20)


def test_a_message_of_somebody_else_is_kept_as_far_as_it_fits(store: Store) -> None:
    strange = OutboxRow("m" * 200, "t\0" * 200, "\0", "k" * 200, b"\xff\0")
    assert store.transaction(lambda tx: outbox.keep(tx, strange, 1, "\0" * 9000 + "x"))
    (letter,) = store.read(outbox.dead_letters)
    assert (letter.message_id, letter.about, letter.error) == ("m" * 64, "", "x")
    assert letter.size_bytes == 2


def test_what_has_taken_effect_does_not_again(store: Store) -> None:
    def take(consumer: str) -> bool:
        return store.transaction(lambda tx: handled.take(tx, consumer, "m-1"))

    assert [take("controller"), take("controller"), take("scheduler")] == [True, False, True]


def test_of_two_at_once_one_takes_effect(store: Store) -> None:
    start = threading.Barrier(4)
    taken: list[bool] = []

    def take() -> None:
        start.wait()
        taken.append(store.transaction(lambda tx: handled.take(tx, "controller", "m-1")))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [False, False, False, True]
