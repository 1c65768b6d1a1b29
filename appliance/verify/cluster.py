"""The invariants of a cluster: those of each node, and those that only the whole shows.

A control node asks the others at their peer services, so that it works without the broker, too.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import msgspec

from appliance import bus
from appliance.bus import topology
from appliance.bus.depth import Depth, depths
from appliance.cluster import certificates, peer_client
from appliance.cluster.membership import AUTHORITY, Membership
from appliance.cluster.peer_messages import FACTS
from appliance.config import Config
from appliance.errors import AnynodeError, ConfigError, Unavailable
from appliance.messages import GetMembers, Members
from appliance.model import Finding, Member, PowerState
from appliance.store import Transaction
from appliance.store import facts as store_facts
from appliance.store import members as store_members
from appliance.store.facts import StoreFacts
from appliance.verify import codes, environment, invariants
from appliance.verify.facts import (
    Elsewhere,
    Facts,
    check_reach,
    joined,
    ports_elsewhere,
    read_store,
)
from appliance.verify.node_facts import NodeFacts, gather_here, is_running

CLOCKS_APART_S = 2.0
CERTIFICATE_LEFT_S = 30 * 86400.0
_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a node has answered, or why it has not; it was asked and heard by the asker's clock."""

    facts: NodeFacts | None = None
    problem: str = ""
    asked_at: float = 0.0
    heard_at: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Whole:
    """All that is known of a cluster. ``answers`` and ``elsewhere`` are by node id.

    ``ends_at`` is by whose certificate it is, in seconds since the epoch. ``here`` is the node
    that asks; ``problem`` says why the broker's queues are not known.
    """

    now: float
    here: str
    is_running_here: bool
    store: StoreFacts
    members: Members
    answers: Mapping[str, Answer]
    elsewhere: Mapping[str, Elsewhere]
    ends_at: Mapping[str, float]
    depths: tuple[Depth, ...] = ()
    problem: str = ""

    def facts_of(self, node_id: str) -> Facts | None:
        """Return what is known of a node that has answered."""
        answer = self.answers.get(node_id)
        if answer is None or answer.facts is None:
            return None
        is_up = self.is_running_here if node_id == self.here else True
        elsewhere = self.elsewhere.get(node_id, {})
        now = answer.facts.ended_at
        return joined(answer.facts, self.store, elsewhere, now=now, is_up=is_up)


def look(config: Config, *, progress_s: float, message_s: float) -> list[Finding]:
    """Return what is wrong with the cluster in one look from this node; changes nothing.

    :raises ConfigError: the node is in no cluster, or does not reach its store.
    :raises Unavailable: the store does not answer.
    """
    whole, own = gather(config)
    return [
        *compare(whole, progress_s=progress_s, message_s=message_s),
        *_named(_own_name(whole), environment.look_from_store(config, own)),
    ]


# -- gathering ------------------------------------------------------------------------------------


def gather(config: Config) -> tuple[Whole, Facts]:
    """Look at all nodes once, the store last; return what is known of this one, too.

    :raises ConfigError: the node is in no cluster, or does not reach its store.
    """
    membership = Membership.of(config.state_dir)
    if membership is None:
        raise ConfigError(
            "This node is in no cluster.", hint="`anynode verify` checks a node that is alone."
        )
    check_reach(config)
    members = read_store(config, _members)
    asked_at = time.time()
    own = gather_here(config)
    found = tuple(environment.look_here(config, own))
    own = msgspec.structs.replace(own, findings=found)
    answers = {own.node_id: Answer(facts=own, asked_at=asked_at, heard_at=time.time())}
    others = [one for one in members.members if one.is_up and one.node_id != own.node_id]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        told = pool.map(lambda member: _ask(membership, member), others)
        answers |= {member.node_id: answer for member, answer in zip(others, told, strict=True)}
    here = [answer.facts for answer in answers.values() if answer.facts]
    queues, problem = _depths(config, membership, members)
    store, elsewhere, members = read_store(config, lambda tx: _stored(tx, here))
    now = time.time()
    whole = Whole(
        now=now,
        here=own.node_id,
        is_running_here=is_running(config),
        store=store,
        members=members,
        answers=answers,
        elsewhere=elsewhere,
        ends_at=_ends(membership, members),
        depths=queues,
        problem=problem,
    )
    facts = joined(own, store, elsewhere.get(own.node_id, {}), now=now, is_up=whole.is_running_here)
    return whole, facts


def _members(tx: Transaction) -> Members:
    return store_members.answer(tx, GetMembers(node_id="", known_revision=-1))


def _stored(
    tx: Transaction, here: Iterable[NodeFacts]
) -> tuple[StoreFacts, dict[str, Elsewhere], Members]:
    elsewhere = {one.node_id: ports_elsewhere(tx, one) for one in here}
    return store_facts.read(tx), elsewhere, _members(tx)


def _ask(membership: Membership, member: Member) -> Answer:
    asked_at = time.time()
    try:
        context = membership.client_context()
        facts = peer_client.ask(member, context, "GET", FACTS, None, NodeFacts)
    except AnynodeError as error:
        return Answer(problem=error.message)
    if facts.node_id != member.node_id:
        return Answer(problem=f"It says that it is node {facts.node_id}.")
    return Answer(facts=facts, asked_at=asked_at, heard_at=time.time())


def _depths(
    config: Config, membership: Membership, members: Members
) -> tuple[tuple[Depth, ...], str]:
    urls, tls = bus.urls_of(config), membership.bus_tls
    if urls == [bus.LOCAL]:
        return (), ""
    names = [queue.name for queue in topology.shared_queues()]
    names += [topology.node_queue(one.node_id).name for one in members.members]
    try:
        context = bus.tls_context(tls) if tls else None
        return tuple(depths(urls, names, context)), ""
    except Unavailable as error:
        return (), error.message


def _ends(membership: Membership, members: Members) -> dict[str, float]:
    """Return when the certificates of the authority and of the members end."""
    texts = {one.name: one.certificate for one in members.members if one.certificate}
    texts["the cluster's authority"] = (membership.folder / AUTHORITY).read_text()
    return {
        whose: certificates.read_certificate(text).not_valid_after_utc.timestamp()
        for whose, text in texts.items()
    }


# -- comparing ------------------------------------------------------------------------------------


def compare(whole: Whole, *, progress_s: float, message_s: float) -> Iterator[Finding]:
    """Yield what does not fit together in a cluster; pure."""
    yield from _stored_findings(whole, progress_s=progress_s, message_s=message_s)
    for member in whole.members.members:
        found = list(_of_node(whole, member, message_s=message_s))
        yield from _named(member.name, found)
    yield from _running_twice(whole)
    yield from _addresses_twice(whole)
    yield from _placed_on_members(whole)
    yield from _certificates(whole)
    yield from _queues(whole)


def _named(name: str, found: Iterable[Finding]) -> Iterator[Finding]:
    """Say of findings on which node they are."""
    for one in found:
        subject = one.subject if one.subject == name else f"{name}: {one.subject}"
        yield msgspec.structs.replace(one, subject=subject)


def _own_name(whole: Whole) -> str:
    names = {one.node_id: one.name for one in whole.members.members}
    return names.get(whole.here, whole.here)


def _stored_findings(whole: Whole, *, progress_s: float, message_s: float) -> Iterator[Finding]:
    """Yield what does not fit together in the store, but for what waits for a node that is down."""
    facts = Facts(
        now=whole.now,
        node_id=whole.here,
        is_running=whole.is_running_here,
        store=whole.store,
    )
    down = {one.node_id for one in whole.members.members if not one.is_up}
    waiting = {one.instance_id for one in whole.store.placements if one.node_id in down}
    waiting |= {
        entry.message_id
        for entry in whole.store.outbox
        if entry.topic.partition(".")[2] in down and not entry.is_dead
    }
    excused = {codes.NO_PROGRESS.code, codes.MESSAGE_STUCK.code}
    for found in invariants.stored(facts, progress_s=progress_s, message_s=message_s):
        if found.code not in excused or found.subject not in waiting:
            yield found


def _of_node(whole: Whole, member: Member, *, message_s: float) -> Iterator[Finding]:
    if not member.is_up and member.node_id != whole.here:
        yield codes.NODE_DOWN.found(member.name, f"{member.name} is down.")
        return
    answer = whole.answers.get(member.node_id, Answer(problem="It has come up just now."))
    facts = whole.facts_of(member.node_id)
    if answer.facts is None or facts is None:
        text = f"Could not look at node {member.name}: {answer.problem}"
        yield codes.UNREAD.found(member.name, text)
        return
    yield from answer.facts.findings
    yield from invariants.on_node(facts, message_s=message_s)
    yield from _takes_part(whole, member, answer, answer.facts)
    if member.node_id != whole.here:
        yield from environment.strangers(facts)
        heard = replace(facts, now=whole.now)
        yield from environment.as_member(member.name, member.roles, heard)


def _takes_part(
    whole: Whole, member: Member, answer: Answer, facts: NodeFacts
) -> Iterator[Finding]:
    """Compare the clock of a node, and the list of members that it goes by, with ours."""
    revision = whole.members.revision
    if facts.members_revision != revision:
        text = (
            f"{member.name} goes by revision {facts.members_revision} of the members, "
            f"and the store has {revision}."
        )
        yield codes.MEMBERS_DIFFER.found(member.name, text)
    ahead_s = facts.ended_at - answer.heard_at
    behind_s = answer.asked_at - facts.began_at
    for apart_s, word in ((ahead_s, "ahead of"), (behind_s, "behind")):
        if apart_s > CLOCKS_APART_S:
            text = f"The clock of {member.name} is {apart_s:.0f} s {word} that of this node."
            yield codes.CLOCKS_APART.found(member.name, text)


def _running_twice(whole: Whole) -> Iterator[Finding]:
    """Find instances that run on more than one node."""
    nodes: dict[str, list[str]] = {}
    for member in whole.members.members:
        facts = whole.facts_of(member.node_id)
        for fact in (facts.hypervisor or {}).values() if facts else ():
            if fact.power in (PowerState.RUNNING, PowerState.PAUSED):
                where = f"{member.name} (epoch {fact.epoch})"
                nodes.setdefault(fact.instance_id, []).append(where)
    for instance_id, places in sorted(nodes.items()):
        if len(places) > 1:
            text = f"{instance_id} runs on {' and on '.join(places)}."
            yield codes.RUNS_TWICE.found(instance_id, text)


def _addresses_twice(whole: Whole) -> Iterator[Finding]:
    """Find MACs and addresses that several ports, or one port on several nodes, have in use."""
    users: dict[str, set[str]] = {}
    for member in whole.members.members:
        facts = whole.facts_of(member.node_id)
        for record in facts.ports.values() if facts else ():
            if record.is_attached:
                port = record.port
                who = f"{port.port_id} on {member.name}"
                users.setdefault(port.mac, set()).add(who)
                for address in port.addresses:
                    users.setdefault(f"{address} in {port.network_id}", set()).add(who)
    for what, uses in sorted(users.items()):
        if len(uses) > 1:
            text = f"{what} is used by {' and by '.join(sorted(uses))}."
            yield codes.ADDRESS_TWICE.found(what, text)


def _placed_on_members(whole: Whole) -> Iterator[Finding]:
    known = {one.node_id for one in whole.members.members}
    for one in whole.store.placements:
        if one.node_id not in known:
            text = f"{one.instance_id} belongs on node {one.node_id}, which is no member."
            yield codes.NODE_UNKNOWN.found(one.instance_id, text)


def _certificates(whole: Whole) -> Iterator[Finding]:
    for whose, ends_at in sorted(whole.ends_at.items()):
        left_s = ends_at - whole.now
        if left_s < CERTIFICATE_LEFT_S:
            text = f"The certificate of {whose} ends in {left_s / 86400:.0f} days."
            yield codes.CERTIFICATE_ENDS.found(whose, text)


def _queues(whole: Whole) -> Iterator[Finding]:
    if whole.problem:
        text = f"Could not look at the queues of the broker: {whole.problem}"
        yield codes.UNREAD.found("the broker's queues", text)
    down = {topology.node_queue(one.node_id).name for one in whole.members.members if not one.is_up}
    for one in whole.depths:
        waiting, takers = one.messages or 0, one.consumers or 0
        if not waiting or one.queue in down:
            continue
        if one.queue == topology.DEAD_QUEUE:
            text = f"{waiting} messages that the broker has given up wait for a controller."
            yield codes.DEAD_WAITS.found(one.queue, text)
        elif not takers:
            text = f"{waiting} messages wait in the queue {one.queue}, and nobody takes them."
            yield codes.NOT_TAKEN.found(one.queue, text)
