"""What only the whole of a cluster shows, and what a node tells of itself."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace as changed

import msgspec
import pytest
from msgspec.structs import replace
from sqlalchemy import update

from appliance import verify
from appliance.bus.depth import Depth
from appliance.cluster import peer_client
from appliance.cluster.membership import Membership, folder_of
from appliance.cluster.peer_messages import FACTS
from appliance.errors import ConfigError, Denied
from appliance.messages import Members
from appliance.model import Desired, Finding, Member
from appliance.store import members as store_members
from appliance.store.facts import OutboxEntry
from appliance.store.schema import instances
from appliance.verify import cluster
from appliance.verify.cluster import Answer, Whole
from appliance.verify.node_facts import NodeFacts
from tests.chain.conftest import MakeChain, chains, make_chain, quiet_deaths  # noqa: F401
from tests.chain.harness import PATIENCE, Chain, wait_until
from tests.proxy.certificates import TestAuthority
from tests.services.postgresql import free_port

OTHER = "00000000-0000-4000-8000-000000000002"
DAY_S = 86400.0


class Place:
    """A node that is the only one of a cluster, and runs one instance."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.node_id = chain.node.node_id
        chain.stop()
        self.folder = chain.config.state_dir.parent / "authority"
        self.folder.mkdir()
        self.authority = TestAuthority(self.folder)
        self.authority.write_node(folder_of(chain.config.state_dir), self.node_id)
        chain.start()
        member = chain.node.cluster
        assert member is not None
        wait_until(
            lambda: member.members.current.revision == chain.read(store_members.revision) > 0,
            "the node hears who is in the cluster",
        )
        (self.instance_id,) = chain.run_instances()
        chain.wait_for("running", self.instance_id)

    def ask(self, *, is_control: bool) -> NodeFacts:
        """Ask the node what it has, as a member of one of the two kinds."""
        papers = self.folder / f"asker-{is_control}"
        self.authority.write_node(papers, self.node_id, is_control=is_control)
        settings = self.chain.config.cluster
        member = Member(
            node_id=self.node_id,
            name="n1",
            zone="z",
            address=f"{settings.address}:{settings.port}",
            roles=(),
            is_control=True,
            certificate="",
        )
        context = Membership(papers).client_context()
        return peer_client.ask(member, context, "GET", FACTS, None, NodeFacts)


def new_place(make_chain: MakeChain) -> Place:  # noqa: F811
    return Place(
        make_chain(cluster={"address": "127.0.0.1", "port": free_port()}, api={"port": free_port()})
    )


@pytest.fixture
def place(make_chain: MakeChain) -> Place:  # noqa: F811
    return new_place(make_chain)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """What was seen of a node that is well."""
    with (
        pytest.MonkeyPatch.context() as patch,
        chains(tmp_path_factory.mktemp("n1"), patch) as make,
    ):
        config = new_place(make).chain.config
        wait_until(lambda: not verify.errors(verify.check(config, patience=PATIENCE)), "rest")
        whole, _ = cluster.gather(config)
    return whole


@pytest.fixture
def two(seen: Whole) -> Whole:
    """Two nodes, both well; the other one has nothing."""
    (one,) = seen.members.members
    other = replace(one, node_id=OTHER, name="n2", roles=("compute", "datapath"))
    empty = NodeFacts(
        node_id=OTHER,
        began_at=seen.now,
        ended_at=seen.now,
        members_revision=seen.members.revision,
    )
    heard = Answer(facts=empty, asked_at=seen.now, heard_at=seen.now)
    return changed(
        seen,
        members=replace(seen.members, members=(one, other)),
        answers={**seen.answers, OTHER: heard},
        store=changed(seen.store, seen_at={**seen.store.seen_at, OTHER: seen.now}),
    )


def found(whole: Whole) -> dict[str, list[Finding]]:
    """Return what is wrong, by code, but for what a machine lacks and one process cannot have."""
    by_code: dict[str, list[Finding]] = {}
    for one in cluster.compare(whole, progress_s=120.0, message_s=60.0):
        by_code.setdefault(one.code, []).append(one)
    by_code.pop("N3.NO_KVM", None)
    return by_code


def with_other(whole: Whole, **values: object) -> Whole:
    """Return a cluster whose other node has told something else."""
    answer = whole.answers[OTHER]
    assert answer.facts is not None
    told = changed(answer, facts=replace(answer.facts, **values))
    return changed(whole, answers={**whole.answers, OTHER: told})


def own(whole: Whole) -> NodeFacts:
    facts = whole.answers[whole.here].facts
    assert facts is not None
    return facts


def with_member(whole: Whole, node_id: str, **values: object) -> Whole:
    """Return a cluster with another word on one of its members."""
    listed = tuple(
        replace(one, **values) if one.node_id == node_id else one for one in whole.members.members
    )
    return changed(whole, members=replace(whole.members, members=listed))


def with_queue(whole: Whole, queue: str, messages: int, consumers: int) -> Whole:
    return changed(whole, depths=(Depth(queue=queue, messages=messages, consumers=consumers),))


def without_answer(whole: Whole) -> Whole:
    return changed(whole, answers={**whole.answers, OTHER: Answer(problem="It is asleep.")})


def not_here(whole: Whole) -> Whole:
    listed = tuple(one for one in whole.members.members if one.node_id != whole.here)
    return changed(whole, members=replace(whole.members, members=listed))


BROKEN: dict[str, Callable[[Whole], Whole]] = {
    "I2.RUNS_TWICE": lambda whole: with_other(whole, hypervisor=own(whole).hypervisor),
    "I2.DOMAIN_STALE": lambda whole: with_other(whole, held=own(whole).held),
    "I2.NODE_UNKNOWN": not_here,
    "I3.ADDRESS_TWICE": lambda whole: with_other(whole, ports=own(whole).ports),
    "I6.DEAD_WAITS": lambda whole: with_queue(whole, "dead", 2, 1),
    "I6.NOT_TAKEN": lambda whole: with_queue(whole, "scheduler", 3, 0),
    "N1.NODE_DOWN": lambda whole: with_member(whole, OTHER, is_up=False),
    "N1.MEMBERS_DIFFER": lambda whole: with_other(whole, members_revision=0),
    "N1.CERTIFICATE_ENDS": lambda whole: changed(whole, ends_at={"n2": whole.now + 29.9 * DAY_S}),
    "N1.ROLES_MEET": lambda whole: with_member(whole, OTHER, roles=("compute", "network")),
    "N1.SILENT": lambda whole: changed(
        whole, store=changed(whole.store, seen_at={OTHER: whole.now - 61})
    ),
    "N1.UNREAD": without_answer,
    "N3.CLOCKS_APART": lambda whole: with_other(whole, ended_at=whole.now + 2.1),
}
"""How to break each thing."""


def test_a_cluster_that_is_well(two: Whole) -> None:
    assert found(two) == {}


@pytest.mark.parametrize("code", BROKEN)
def test_found(two: Whole, code: str) -> None:
    whole = BROKEN[code](two)
    finding, *_ = found(whole)[code]
    assert finding.level == verify.CODES[code].level
    assert finding.message.endswith(".")


@pytest.mark.parametrize(
    "harmless",
    [
        lambda whole: with_queue(whole, "scheduler", 3, 1),
        lambda whole: with_queue(whole, "dead", 0, 0),
        lambda whole: changed(whole, ends_at={"n2": whole.now + 30.1 * DAY_S}),
        lambda whole: with_other(whole, began_at=whole.now - 1.9, ended_at=whole.now + 1.9),
    ],
)
def test_not_found(two: Whole, harmless: Callable[[Whole], Whole]) -> None:
    assert found(harmless(two)) == {}


def test_a_clock_that_is_behind(two: Whole) -> None:
    (finding,) = found(with_other(two, began_at=two.now - 60))["N3.CLOCKS_APART"]
    assert finding.message == "The clock of n2 is 60 s behind that of this node."


def test_nothing_is_said_of_a_node_that_is_down(two: Whole) -> None:
    down = with_member(without_answer(two), OTHER, is_up=False)
    (placed,) = two.store.placements
    (row,) = two.store.instances.values()
    stuck = changed(
        down,
        depths=(Depth(queue=f"node.{OTHER}", messages=5, consumers=0),),
        store=changed(
            two.store,
            placements=(changed(placed, node_id=OTHER),),
            instances={row.instance_id: changed(row, desired=Desired.TERMINATED, progress_at=1.0)},
            outbox=(
                OutboxEntry(
                    message_id="m",
                    topic=f"compute.{OTHER}",
                    kind="Order",
                    created_at=1.0,
                    attempts=0,
                    is_dead=False,
                    error="",
                ),
            ),
        ),
    )
    about = found(stuck)
    assert "N1.NODE_DOWN" in about
    assert not {"I1.NO_PROGRESS", "I6.MESSAGE_STUCK", "I6.NOT_TAKEN", "N1.UNREAD"} & {*about}
    up = with_member(stuck, OTHER, is_up=True)
    assert {"I1.NO_PROGRESS", "I6.MESSAGE_STUCK", "I6.NOT_TAKEN", "N1.UNREAD"} <= {*found(up)}


def test_findings_name_their_node(two: Whole) -> None:
    (finding,) = found(with_other(two, held=own(two).held))["I2.DOMAIN_STALE"]
    assert finding.subject == f"n2: {next(iter(own(two).held))}"


def test_a_real_node_is_asked(place: Place) -> None:
    wait_until(
        lambda: (
            not verify.errors(verify.check(place.chain.config, patience=PATIENCE, of_cluster=True))
        ),
        "nothing to be wrong with the cluster",
    )
    place.chain.machine.network.network_detach(next(iter(place.chain.machine.network.node.ports)))
    codes = {one.code for one in verify.check(place.chain.config, of_cluster=True)}
    assert "I3.TAP_MISSING" in codes


def test_only_control_nodes_are_told(place: Place) -> None:
    assert place.ask(is_control=True).node_id == place.node_id
    with pytest.raises(Denied):
        place.ask(is_control=False)


def test_what_a_node_tells(place: Place) -> None:
    secret = base64.b64encode(b"#!/bin/sh\necho canary-4711 | passwd").decode()
    chosen = instances.c.id == place.instance_id
    store = place.chain.node.store
    store.transaction(
        lambda tx: tx.execute(update(instances).where(chosen).values(user_data_base64=secret))
    )
    place.chain.stop_instances(place.instance_id)
    place.chain.wait_for("stopped", place.instance_id)
    place.chain.start_instances(place.instance_id)
    place.chain.wait_for("running", place.instance_id)
    told = place.ask(is_control=True)
    assert place.instance_id in told.held
    assert [one.port.instance_id for one in told.ports.values()] == [place.instance_id]
    assert told.directories == {place.instance_id}
    assert told.members_revision == place.chain.read(store_members.revision)
    assert told.ended_at - told.began_at < 30
    # A fake's new plugin knows nothing of what the node's own has.
    assert told.hypervisor is None
    assert {one.code for one in told.findings} >= {"N1.HIDDEN"}
    text = msgspec.json.encode(told)
    assert b"canary-4711" not in text
    assert secret.encode() not in text


def test_a_lone_node_is_no_cluster(make_chain: MakeChain) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match="in no cluster"):
        verify.check(make_chain().config, of_cluster=True)


def test_members_that_nobody_lists(two: Whole) -> None:
    nobody = changed(two, members=Members(revision=two.members.revision))
    assert {*found(nobody)} == {"I2.NODE_UNKNOWN"}
