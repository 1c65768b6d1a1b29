"""What a node asks control nodes at their doors when no message gets through.

Its broker may be dead or another by now, or the node a member no more: a broker that refuses a
login does not say why, and is no proof.
"""

from __future__ import annotations

import logging

import msgspec

from appliance.bus.urls import without_login
from appliance.cluster import certificates, peer_client, settings
from appliance.cluster.membership import Membership, Removal
from appliance.cluster.peer_messages import MEMBERSHIP, MembershipAnswer, MembershipRequest
from appliance.errors import Denied
from appliance.model import Member
from appliance.world import Clock

log = logging.getLogger(__name__)


def inquire(cluster: Membership, clock: Clock) -> None:
    """Ask the control nodes, those that are down last, and go by what the first one answers.

    The list of members, another broker with a login there, or that this node was removed: all of
    it is written down. Safe to repeat.

    :raises AnynodeError: no control node has answered.
    """
    told = settings.read(cluster.folder)
    question = MembershipRequest(
        known_revision=cluster.members.current.revision,
        bus_urls=without_login(told.bus_url) if told.bus_url else "",
    )
    asked = [one for one in cluster.members.with_role("controller") if one.is_control]

    def ask(member: Member) -> tuple[Member, MembershipAnswer]:
        return member, _ask(cluster, member, question)

    member, answer = peer_client.first_answer(asked, ask)
    if not answer.is_member:
        cluster.note_removal(Removal(learnt_at=clock.now(), told_by=member.name))
        return
    if answer.members and cluster.members.take(answer.members):
        log.info("revision %d of the members, from %s", answer.members.revision, member.name)
    if answer.bus_url:
        log.warning("the cluster has another message broker, says %s", member.name)
        changed = msgspec.structs.replace(
            told, bus_url=answer.bus_url, bus_is_ours=answer.bus_is_ours, also_url=""
        )
        settings.write(cluster.folder, changed)


def _ask(cluster: Membership, member: Member, question: MembershipRequest) -> MembershipAnswer:
    line = peer_client.connect(member.address, cluster.client_context(), member.node_id)
    try:
        shown = line.sock.getpeercert(binary_form=True)
        identity = certificates.identity_of(certificates.read_der(shown or b""))
        if not identity.is_control or identity.serial in cluster.members.revoked:
            raise Denied(f"{member.name} is no control node any more: its word counts for nothing.")
        return peer_client.asked(line, "POST", MEMBERSHIP, question, MembershipAnswer)
    finally:
        line.close()
