"""Instances whose node is down: what never was there moves on, what may run stays where it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from appliance.controller import lost
from appliance.errors import Conflict
from appliance.messages import GetPolicy, PolicyAnswer
from appliance.model import Desired, InstanceState, Phase, Reason
from appliance.store import (
    Transaction,
    confirmations,
    instances,
    networks,
    nodes,
    placements,
    policy,
    wishes,
)
from appliance.store.instances import Instance
from appliance.store.schema import addresses, node_claims, node_status, quotas
from appliance.store.schema import placements as placement_rows
from tests.store.conftest import Site, claim_room, make_site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = make_site(f"sqlite:///{tmp_path / 'store.sqlite'}")
    made.add_node("a")
    made.add_node("b")
    yield made
    made.store.close()


@pytest.fixture
def placed(site: Site) -> str:
    """An instance that is claimed on node a."""

    def launch(tx: Transaction) -> str:
        (instance_id,) = site.launch(tx)
        claim_room(tx, instance_id, 1, "node-a")
        instances.placed(tx, [(instance_id, 1, "node-a")])
        return instance_id

    return site.store.transaction(launch)


@pytest.fixture
def running(site: Site, placed: str) -> str:
    """An instance that runs on node a, with an address."""

    def run(tx: Transaction) -> None:
        placements.commit(tx, placed, 1, "node-a")
        site.bind(tx, placed)
        values = {"state": InstanceState.RUNNING.value, "launched_at": tx.now}
        instances.reported(tx, placed, 1, 1, values)

    site.store.transaction(run)
    return placed


def set_up(site: Site, node_id: str, is_up: bool) -> None:
    statement = node_status.update().where(node_status.c.node_id == node_id)
    site.store.transaction(lambda tx: tx.execute(statement.values(is_up=is_up)))


def get(site: Site, instance_id: str) -> Instance:
    found = site.store.read(lambda tx: instances.get(tx, instance_id))
    assert found is not None
    return found


def phases(site: Site, instance_id: str) -> list[str]:
    query = select(placement_rows.c.phase).where(placement_rows.c.instance_id == instance_id)
    return list(site.store.read(lambda tx: tx.execute(query).scalars().all()))


def claimed(site: Site, node_id: str) -> int:
    query = select(node_claims.c.memory_claimed_mib).where(node_claims.c.node_id == node_id)
    return int(site.store.read(lambda tx: tx.execute(query).scalar_one()))


def taken(site: Site) -> int:
    query = select(addresses.c.address).where(addresses.c.port_id.is_not(None))
    return len(site.store.read(lambda tx: tx.execute(query).all()))


def used(site: Site) -> dict[str, int]:
    query = select(quotas.c.resource, quotas.c.used)
    return {row.resource: row.used for row in site.store.read(lambda tx: tx.execute(query).all())}


def evacuate(site: Site) -> tuple[lost.Evacuation, list[str]]:
    """Evacuate node a; return what was done, and the topics that were told."""
    topics: list[str] = []

    def work(tx: Transaction) -> lost.Evacuation:
        done = lost.evacuate(tx, nodes.match(tx, "a"), "operator")
        topics[:] = [row.topic for row in tx.casts]
        return done

    return site.store.transaction(work), topics


def test_what_is_only_claimed_is_placed_anew(site: Site, placed: str) -> None:
    assert site.store.transaction(lost.place_anew) == [placed]
    assert phases(site, placed) == [Phase.GONE]
    assert claimed(site, "node-a") == 0
    assert get(site, placed).state is InstanceState.PENDING
    assert site.store.transaction(lost.place_anew) == []


def test_while_the_node_is_up_nothing_moves(site: Site, placed: str) -> None:
    set_up(site, "node-a", True)
    assert site.store.transaction(lost.place_anew) == []
    assert phases(site, placed) == [Phase.CLAIMED]


def test_what_is_bound_stays(site: Site, running: str) -> None:
    assert site.store.transaction(lost.place_anew) == []
    assert phases(site, running) == [Phase.COMMITTED]


def test_a_claimed_one_that_is_not_wanted_ends(site: Site, placed: str) -> None:
    site.store.transaction(lambda tx: wishes.terminate(tx, [placed], "req"))
    assert site.store.transaction(lost.place_anew) == [placed]
    assert get(site, placed).state is InstanceState.TERMINATED
    assert taken(site) == 0


def test_terminated_on_a_silent_node_it_keeps_its_address(site: Site, running: str) -> None:
    site.store.transaction(lambda tx: wishes.terminate(tx, [running], "req"))
    assert site.store.transaction(lost.end_away) == [running]
    assert get(site, running).state is InstanceState.TERMINATED
    assert used(site)["instances"] == 0
    assert phases(site, running) == [Phase.COMMITTED]
    assert taken(site) == 1
    assert site.store.transaction(lost.end_away) == []


def test_a_launch_that_is_given_up_on_a_silent_node_ends_there(site: Site, placed: str) -> None:
    reason = Reason(code="Server.InternalError", message="It showed no progress.")

    def give_up(tx: Transaction) -> None:
        placements.commit(tx, placed, 1, "node-a")
        site.bind(tx, placed)
        instances.want(tx, instances.find(tx, [placed])[0], Desired.TERMINATED, reason=reason)

    site.store.transaction(give_up)
    assert site.store.transaction(lost.end_away) == [placed]
    ended = get(site, placed)
    assert (ended.state, ended.reason) == (InstanceState.TERMINATED, reason)
    assert phases(site, placed) == [Phase.COMMITTED]
    assert taken(site) == 1


def test_what_has_no_place_is_not_away(site: Site, placed: str) -> None:
    """The down node that it was claimed on is nobody to wait for; its address would stay taken."""
    site.store.transaction(lost.place_anew)
    site.store.transaction(
        lambda tx: instances.want(tx, instances.find(tx, [placed])[0], Desired.TERMINATED)
    )
    assert site.store.transaction(lost.end_away) == []


def test_evacuated_its_ports_are_taken_from_the_old_node(site: Site, running: str) -> None:
    """Also from one that was never dead, and of one that is not placed anew."""

    def question(revision: int) -> GetPolicy:
        return GetPolicy(node_id="node-a", network_id=site.network_id, known_revision=revision)

    def ask(revision: int) -> PolicyAnswer:
        asked = question(revision)
        return site.store.read(
            lambda tx: policy.answer(tx, asked, confirmations.standing(tx, asked))
        )

    before = ask(-1).policy
    site.store.transaction(lambda tx: confirmations.confirm(tx, question(-1)))
    assert before is not None
    (port,) = before.ports
    site.store.transaction(
        lambda tx: instances.want(tx, instances.find(tx, [running])[0], Desired.STOPPED)
    )
    done, _ = evacuate(site)
    assert done.stopped == (running,)
    delta = ask(before.revision).delta
    assert delta is not None
    assert delta.removed_port_ids == (port.port_id,)


def test_evacuated_it_is_placed_anew_with_its_address(site: Site, running: str) -> None:
    done, topics = evacuate(site)
    assert done.placed == (running,)
    assert "scheduler" in topics
    after = get(site, running)
    assert (after.state, after.desired) == (InstanceState.PENDING, Desired.RUNNING)
    assert after.launched_at is None
    assert phases(site, running) == [Phase.FENCED]
    assert claimed(site, "node-a") == 0
    assert taken(site) == 1
    assert used(site)["instances"] == 1
    assert evacuate(site)[0] == lost.Evacuation(placed=(), stopped=(), ended=())


def test_what_its_old_copy_says_counts_no_more(site: Site, running: str) -> None:
    evacuate(site)
    values = {"state": InstanceState.RUNNING.value}
    assert not site.store.transaction(lambda tx: instances.reported(tx, running, 1, 9, values))
    assert not site.store.transaction(lambda tx: placements.commit(tx, running, 1, "node-a"))


def test_a_stopped_one_stays_stopped(site: Site, running: str) -> None:
    def stop(tx: Transaction) -> None:
        standing = wishes.standing(tx, site.project_id, [running], terminated_s=60.0)
        wishes.stop(tx, list(standing.values()), "req", is_forced=False)

    site.store.transaction(stop)
    done, topics = evacuate(site)
    assert done.stopped == (running,)
    assert "scheduler" not in topics
    assert get(site, running).state is InstanceState.STOPPED


@pytest.mark.parametrize("is_said_to_have_ended", [False, True])
def test_one_that_is_not_wanted_is_released(
    site: Site, running: str, is_said_to_have_ended: bool
) -> None:
    site.store.transaction(lambda tx: wishes.terminate(tx, [running], "req"))
    if is_said_to_have_ended:
        site.store.transaction(lost.end_away)
    assert evacuate(site)[0].ended == (running,)
    assert get(site, running).state is InstanceState.TERMINATED
    assert taken(site) == 0
    assert used(site)["instances"] == 0


def test_a_node_that_is_up_is_not_dead(site: Site, running: str) -> None:
    set_up(site, "node-a", True)
    with pytest.raises(Conflict, match="Node a is up"):
        evacuate(site)
    assert phases(site, running) == [Phase.COMMITTED]


def test_what_can_be_nowhere_else_stays(site: Site, running: str) -> None:
    site.store.transaction(lambda tx: networks.keep_on(tx, [site.network_id], "node-a"))
    with pytest.raises(Conflict, match="is on node a alone"):
        evacuate(site)
    assert phases(site, running) == [Phase.COMMITTED]
