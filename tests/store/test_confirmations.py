"""What a node has in force is written when somebody waits for it, and strangers learn nothing."""

from __future__ import annotations

import pytest

from appliance.errors import NotFound
from appliance.messages import GetPolicy
from appliance.store import Transaction, confirmations, placements, policy
from appliance.store import instances as instance_rows
from tests.store.conftest import Site, claim_room


def question(site: Site, node_id: str, known: int = -1, reached: int | None = None) -> GetPolicy:
    return GetPolicy(
        node_id=node_id,
        network_id=site.network_id,
        known_revision=known,
        reach_revision=reached,
    )


def place(site: Site, node_id: str) -> str:
    def launch(tx: Transaction) -> str:
        (instance_id,) = site.launch(tx)
        assert claim_room(tx, instance_id, 1, node_id)
        instance_rows.placed(tx, [(instance_id, 1, node_id)])
        return instance_id

    return site.store.transaction(launch)


def find(site: Site, asked: GetPolicy) -> confirmations.Standing:
    return site.store.read(lambda tx: confirmations.standing(tx, asked))


def is_due(site: Site, asked: GetPolicy) -> bool:
    return site.store.read(
        lambda tx: confirmations.is_due(tx, asked, confirmations.standing(tx, asked))
    )


def confirm(site: Site, asked: GetPolicy) -> None:
    site.store.transaction(lambda tx: confirmations.confirm(tx, asked))


def change(site: Site, kind: str) -> int:
    one = policy.Change(kind=kind, subject=site.group_id, address="10.64.0.9")
    changed = site.store.transaction(lambda tx: policy.changed(tx, site.vpc_id, [one]))
    return changed[site.network_id]


def test_who_holds_nothing_there_learns_nothing(site: Site) -> None:
    holder, stranger = site.add_node("holder"), site.add_node("stranger")
    instance_id = place(site, holder)
    assert find(site, question(site, holder)).confirmed is None
    for asked in (
        question(site, stranger),
        question(site, stranger, known=0, reached=0),
        GetPolicy(node_id=holder, network_id="subnet-none", known_revision=-1),
    ):
        with pytest.raises(NotFound) as refused:
            find(site, asked)
        assert "10.64" not in str(refused.value)

    def end(tx: Transaction) -> None:
        placement = placements.active(tx, instance_id)
        assert placement
        placements.end(tx, placement, "gone")

    site.store.transaction(end)
    with pytest.raises(NotFound):
        find(site, question(site, holder))


def test_who_held_something_hears_how_it_goes_on(site: Site) -> None:
    """It has rules in force that must follow, and addresses to forget."""
    former = site.add_node("former")
    instance_id = place(site, former)
    confirm(site, question(site, former))

    def end(tx: Transaction) -> None:
        placement = placements.active(tx, instance_id)
        assert placement
        placements.end(tx, placement, "gone")

    site.store.transaction(end)
    assert find(site, question(site, former)).confirmed == confirmations.NOTHING


def test_the_first_question_is_written_down(site: Site) -> None:
    node_id = site.add_node("a")
    place(site, node_id)
    assert is_due(site, question(site, node_id))
    confirm(site, question(site, node_id))
    assert not is_due(site, question(site, node_id))


def test_what_joins_waits_for_the_next_question(site: Site) -> None:
    node_id = site.add_node("a")
    place(site, node_id)
    first = change(site, "joined")
    confirm(site, question(site, node_id, first))
    second, third = change(site, "joined"), change(site, "port")
    assert not is_due(site, question(site, node_id, second))
    assert is_due(site, question(site, node_id, third)), "it has all there is, and asks no more"
    confirm(site, question(site, node_id, third))
    assert not is_due(site, question(site, node_id, third))


def test_an_address_that_was_freed_waits_for_nobody_longer_than_it_must(site: Site) -> None:
    node_id = site.add_node("a")
    place(site, node_id)
    first = change(site, "joined")
    confirm(site, question(site, node_id, first))
    left = change(site, "left")
    change(site, "joined")
    assert not is_due(site, question(site, node_id, first))
    assert is_due(site, question(site, node_id, left))
    assert not is_due(site, question(site, node_id, left, reached=first)), "its frames go there"


def test_a_node_that_starts_anew_has_nothing_in_force(site: Site) -> None:
    node_id = site.add_node("a")
    place(site, node_id)
    first = change(site, "joined")
    confirm(site, question(site, node_id, first))
    change(site, "joined")
    assert is_due(site, question(site, node_id))
    assert is_due(site, question(site, node_id, first, reached=-1))
