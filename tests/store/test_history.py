"""What has had its time is deleted, and nothing else."""

from __future__ import annotations

from sqlalchemy import insert, select, update

from appliance.store import Transaction, history, outbox, placements
from appliance.store.schema import handled
from appliance.store.schema import outbox as outbox_rows
from appliance.store.schema import placements as placement_rows
from tests.store.conftest import Site, claim_room

DAY_S = 86400.0


def forget(site: Site) -> bool:
    return site.store.transaction(
        lambda tx: history.forget(tx, history_s=30 * DAY_S, audit_s=90 * DAY_S, terminated_s=3600.0)
    )


def place(tx: Transaction, site: Site, instance_id: str, *epochs: int) -> None:
    """Place an instance several times; each placement but the last is gone."""
    for epoch in epochs:
        before = placements.active(tx, instance_id)
        if before:
            placements.end(tx, before, "placed anew")
        assert claim_room(tx, instance_id, epoch, site.node_ids[0])


def epochs(site: Site, instance_id: str) -> list[int]:
    query = select(placement_rows.c.epoch).where(placement_rows.c.instance_id == instance_id)
    return sorted(site.store.read(lambda tx: tx.execute(query).scalars().all()))


def test_dead_letters(site: Site) -> None:
    def prepare(tx: Transaction) -> None:
        for name, died_days_ago in (("old", 31), ("new", 29), ("waiting", None)):
            at = None if died_days_ago is None else tx.now - died_days_ago * DAY_S
            tx.execute(
                insert(outbox_rows).values(
                    id=name,
                    topic="scheduler",
                    kind="Place",
                    body=b"{}",
                    created_at=tx.now - 40 * DAY_S,
                    dead_at=at,
                )
            )

    site.store.transaction(prepare)
    assert not forget(site)
    left = site.store.read(lambda tx: set(tx.execute(select(outbox_rows.c.id)).scalars()))
    assert left == {"new", "waiting"}
    assert [row.id for row in site.store.read(outbox.pending)] == ["waiting"]


def test_gone_placements_of_instances_that_live(site: Site) -> None:
    site.add_node("a")

    def prepare(tx: Transaction) -> tuple[str, str, str]:
        lives, lost, recent = site.launch(tx, 3)
        place(tx, site, lives, 1, 2, 3)
        place(tx, site, lost, 1, 2)
        last = placements.active(tx, lost)
        assert last
        placements.end(tx, last, "gone")
        tx.execute(update(placement_rows).values(changed_at=tx.now - 31 * DAY_S))
        place(tx, site, recent, 1, 2)
        return lives, lost, recent

    lives, lost, recent = site.store.transaction(prepare)
    assert not forget(site)
    assert epochs(site, lives) == [3]
    assert epochs(site, lost) == [2], "the newest says where it was last"
    assert epochs(site, recent) == [1, 2]
    kept = site.store.read(lambda tx: placements.active(tx, lives))
    assert kept
    assert kept.epoch == 3


def test_handled_ids_go_by_consumer(site: Site) -> None:
    def prepare(tx: Transaction) -> None:
        for consumer, days in (("a", 31), ("b", 29)):
            tx.execute(
                insert(handled).values(
                    consumer=consumer, message_id="m", handled_at=tx.now - days * DAY_S
                )
            )

    site.store.transaction(prepare)
    forget(site)
    assert site.store.read(lambda tx: tx.execute(select(handled.c.consumer)).scalars().all()) == [
        "b"
    ]


def test_more_than_a_batch(site: Site) -> None:
    rows = [
        {"consumer": "a", "message_id": str(number), "handled_at": 1.0}
        for number in range(history.BATCH + 1)
    ]
    site.store.transaction(lambda tx: tx.execute(insert(handled), rows))
    assert forget(site)
    assert not forget(site)
