"""Messages on their way and those that were given up, as an operator sees and treats them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from sqlalchemy import insert

from appliance.errors import InputError, NotFound
from appliance.store import OutboxRow, Transaction, outbox
from appliance.store.schema import outbox as table
from tests.store.conftest import Site


def put(tx: Transaction, message_id: str, **values: Any) -> None:
    row = {"id": message_id, "topic": "controller", "kind": "Wanted", "body": b"{}", "lane": "i-1"}
    tx.execute(insert(table).values(**{**row, "created_at": 10.0, **values}))


@pytest.fixture
def full(site: Site) -> Site:
    def fill(tx: Transaction) -> None:
        put(tx, "waits", created_at=30.0)
        put(tx, "waits-longer", created_at=20.0)
        put(tx, "elsewhere", topic="compute.n", created_at=5.0)
        put(tx, "dead-1", topic="scheduler", dead_at=40.0, attempts=5, error="a bug", body=b"12")
        put(tx, "dead-2", topic="scheduler", dead_at=50.0, attempts=1, error="worse")

    site.store.transaction(fill)
    return site


def test_queues(full: Site) -> None:
    assert full.store.read(outbox.queues) == [
        outbox.Queue(topic="compute.n", waiting=1, oldest_at=5.0, dead=0),
        outbox.Queue(topic="controller", waiting=2, oldest_at=20.0, dead=0),
        outbox.Queue(topic="scheduler", waiting=0, oldest_at=None, dead=2),
    ]


def test_dead_letters_the_newest_first(full: Site) -> None:
    newer, older = full.store.read(outbox.dead_letters)
    assert newer.message_id == "dead-2"
    assert older == outbox.Letter(
        message_id="dead-1",
        topic="scheduler",
        kind="Wanted",
        about="i-1",
        attempts=5,
        created_at=10.0,
        dead_at=40.0,
        error="a bug",
        size_bytes=2,
    )


def test_pending_of_the_topics_that_are_served(full: Site) -> None:
    def ids(*topics: str) -> list[str]:
        return [row.id for row in full.store.read(lambda tx: outbox.pending(tx, topics or None))]

    assert ids() == ["elsewhere", "waits-longer", "waits"]
    assert ids("controller", "scheduler") == ["waits-longer", "waits"]
    assert ids("nobody") == []


def test_requeue(full: Site) -> None:
    assert full.store.transaction(lambda tx: outbox.requeue(tx, "dead-1")) == "dead-1"
    row = full.store.read(lambda tx: outbox.pending(tx, ["scheduler"]))
    assert [(one.id, one.body) for one in row] == [("dead-1", b"12")]
    (queue,) = [one for one in full.store.read(outbox.queues) if one.topic == "scheduler"]
    assert queue.oldest_at is not None
    assert queue.oldest_at > 40.0, "it does not count as one that has waited since it was new"
    assert [one.message_id for one in full.store.read(outbox.dead_letters)] == ["dead-2"]


def test_drop(full: Site) -> None:
    assert full.store.transaction(lambda tx: outbox.drop(tx, "dead-2")) == "dead-2"
    assert [one.message_id for one in full.store.read(outbox.dead_letters)] == ["dead-1"]


@pytest.mark.parametrize("action", [outbox.requeue, outbox.drop])
def test_which_message(full: Site, action: Any) -> None:
    def refuse(text: str) -> None:
        full.store.transaction(lambda tx: action(tx, text))

    with pytest.raises(InputError, match="may be dead-1, dead-2"):
        refuse("dead")
    for text in ("", "waits", "nothing", "%"):
        with pytest.raises(NotFound):
            refuse(text)
    assert len(full.store.read(outbox.dead_letters)) == 2


def letter(message_id: str) -> OutboxRow:
    return OutboxRow(message_id, "controller", "i-1", "Report", b"{ }")


def test_of_a_sender_whom_nobody_vouches_for_the_newest_are_kept(full: Site) -> None:
    for number in range(outbox.MOST_OF_ONE + 3):
        keep = partial(outbox.keep, row=letter(f"m-{number:03}"), attempts=1, error="no")
        assert full.store.transaction(partial(keep, sender="h-evil"))
    assert full.store.transaction(lambda tx: outbox.keep(tx, letter("x"), 1, "no", "h-odd"))
    assert full.store.transaction(lambda tx: outbox.keep(tx, letter("y"), 5, "a bug"))
    found = full.store.read(outbox.dead_letters)
    evil = {one.message_id for one in found if one.sender == "h-evil"}
    assert evil == {f"m-{number:03}" for number in range(3, outbox.MOST_OF_ONE + 3)}
    assert {one.message_id for one in found} - evil == {"x", "y", "dead-1", "dead-2"}
    first, second = full.store.read(outbox.senders)
    assert (first.login, first.kept, first.forgotten) == ("h-evil", outbox.MOST_OF_ONE, 3)
    assert (second.login, second.kept, second.forgotten) == ("h-odd", 1, 0)
    full.store.transaction(lambda tx: outbox.forget(tx, "h-evil", 4))
    assert full.store.read(outbox.senders)[0].forgotten == 7
    assert full.store.transaction(lambda tx: outbox.drop_of(tx, "h-evil")) == outbox.MOST_OF_ONE
    assert [one.login for one in full.store.read(outbox.senders)] == ["h-odd"]


def test_nobody_kills_a_message_of_ours_by_its_id(full: Site) -> None:
    assert not full.store.transaction(lambda tx: outbox.keep(tx, letter("waits"), 1, "", "h-evil"))
    assert "waits" in {row.id for row in full.store.read(outbox.pending)}
    (sender,) = full.store.read(outbox.senders)
    assert (sender.kept, sender.forgotten) == (0, 1)


def test_what_another_sent_is_not_sent_again_as_ours(full: Site) -> None:
    full.store.transaction(lambda tx: outbox.keep(tx, letter("evil"), 1, "no", "h-evil"))
    with pytest.raises(InputError, match="came from h-evil"):
        full.store.transaction(lambda tx: outbox.requeue(tx, "evil"))
    assert "evil" not in {row.id for row in full.store.read(outbox.pending)}
