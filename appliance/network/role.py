"""Hop 5: answer bindings with addresses, and nodes with the policy that they must enforce."""

from __future__ import annotations

import msgspec

from appliance.cluster import image_tickets
from appliance.cluster.membership import Membership
from appliance.errors import Stale
from appliance.hookspecs import NoSettings, PluginContext, hookimpl
from appliance.messages import Bind, Bound, GetPolicy, PolicyAnswer
from appliance.model import Desired, ImageGrant, TimelineEntry
from appliance.node import NodeParts
from appliance.role import Role
from appliance.store import (
    Transaction,
    confirmations,
    image_locations,
    instances,
    placements,
    policy,
    timeline,
)

api_versions = frozenset({1})


def create(settings: NoSettings, context: PluginContext) -> object:
    """Make the role's plugin."""
    return NetworkRole()


class NetworkRole:
    """The role as a plugin."""

    @hookimpl
    def role_create(self, parts: NodeParts) -> Role:
        """Answer ``Bind`` and ``GetPolicy``."""
        return Role(
            name="network",
            topic="network",
            calls={
                Bind: lambda question: bind(parts, question),
                GetPolicy: lambda question: get_policy(parts, question),
            },
        )


def bind(parts: NodeParts, question: Bind) -> Bound:
    """Commit a placement and answer its addresses.

    :raises Stale: that epoch is no longer current, or the instance is no longer wanted running;
        the node undoes what it has done.
    :raises Conflict: there is no free address.
    """
    started_at, started = parts.world.clock.now(), parts.world.clock.monotonic()

    def commit(tx: Transaction) -> Bound:
        instance = instances.get(tx, question.instance_id)
        if instance is None or instance.epoch != question.epoch:
            raise Stale(f"{question.instance_id} is not at epoch {question.epoch}.")
        if instance.desired is not Desired.RUNNING:
            raise Stale(f"{question.instance_id} is wanted {instance.desired}.")
        if not placements.commit(tx, question.instance_id, question.epoch, question.node_id):
            raise Stale(f"{question.instance_id} is not placed on this node.")
        binding = instances.bind(
            tx,
            question.instance_id,
            question.epoch,
            region=parts.region,
            quarantine_s=parts.config.network.address_quarantine_s,
        )
        took_ms = (parts.world.clock.monotonic() - started) * 1000
        addresses = ", ".join(address for port in binding.ports for address in port.addresses)
        entry = TimelineEntry(
            instance_id=question.instance_id,
            epoch=question.epoch,
            request_id=instance.request_id,
            node=parts.node_name,
            role="network",
            name="bind",
            started_at=started_at,
            duration_ms=took_ms,
            detail=addresses,
        )
        timeline.record(tx, [entry])
        return Bound(binding=binding, request_id=question.request_id)

    store = parts.need_store()
    bound = store.transaction(commit)
    cluster = parts.cluster
    if cluster is None:
        return bound
    # Apart from what was decided: where images are changes all the time, and binds nobody.
    images = store.read(lambda tx: grants(tx, cluster, question))
    return msgspec.structs.replace(bound, images=images)


def grants(tx: Transaction, cluster: Membership, question: Bind) -> tuple[ImageGrant, ...]:
    """Return where the node finds the images of an instance that others hold."""
    wanted = image_locations.wanted_by(tx, question.instance_id)
    found = image_locations.holders(tx, wanted, but=question.node_id)
    return tuple(
        image_tickets.grant(cluster.signer, sha256, question.node_id, tuple(holders), tx.now)
        for sha256, holders in found.items()
    )


def get_policy(parts: NodeParts, question: GetPolicy) -> PolicyAnswer:
    """Answer what a node must change to enforce the policy of today, and note what it has.

    Nodes ask every few seconds; that nothing has changed is found out without a write. What has
    is read apart from what is noted: so it stands in no launch's way, and none in its.

    :raises NotFound: there is no such network, or the node holds nothing in it.
    """

    def look(tx: Transaction) -> tuple[PolicyAnswer, bool, bool]:
        found = confirmations.standing(tx, question)
        is_due = confirmations.is_due(tx, question, found)
        return policy.answer(tx, question, found), is_due, found.confirmed is None

    store = parts.need_store()
    answer, is_due, is_first = store.read(look)
    if is_due:
        store.transaction(lambda tx: confirmations.confirm(tx, question))
    # Whoever was not told of changes yet may have missed one between the two.
    return store.read(look)[0] if is_first else answer
