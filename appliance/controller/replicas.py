"""Images that too few nodes hold get one more, so that they outlive any of them."""

from __future__ import annotations

import logging

from appliance.cluster import image_tickets
from appliance.cluster.membership import Membership
from appliance.messages import FetchImage, Inventory, node_topic
from appliance.model import ImageHolder
from appliance.node import NodeParts
from appliance.store import Transaction, image_locations, leases
from appliance.store.image_locations import Copying

log = logging.getLogger(__name__)

EVERY_S = 30.0
_LEASE_S = 3 * EVERY_S


def note_images(parts: NodeParts, question: Inventory) -> None:
    """Write down which images a node holds, if that has changed; nothing on a lone node."""
    if parts.cluster is None:
        return
    store = parts.need_store()
    known = store.read(lambda tx: image_locations.held_by(tx, question.node_id))
    if known != set(question.images):
        store.transaction(lambda tx: image_locations.write(tx, question.node_id, question.images))


def replicate(parts: NodeParts) -> None:
    """Ask nodes to fetch images that too few hold; nothing on a lone node.

    One controller at a time does. What gets lost is asked for again.
    """
    cluster = parts.cluster
    if cluster is None:
        return

    def look(tx: Transaction) -> list[tuple[Copying, tuple[ImageHolder, ...]]]:
        if not leases.take(tx, "replicas", parts.node_id, _LEASE_S):
            return []
        wanted = image_locations.lonely(tx)
        holders = image_locations.holders(tx, (one.image.sha256 for one in wanted))
        return [(one, tuple(holders.get(one.image.sha256, ()))) for one in wanted]

    for copying, holders in parts.need_store().transaction(look):
        _ask(parts, cluster, copying, holders)


def _ask(
    parts: NodeParts, cluster: Membership, copying: Copying, holders: tuple[ImageHolder, ...]
) -> None:
    image, node_id = copying.image, copying.node_id
    log.info("image %s is to be on node %s, too", image.image_id, node_id)
    now = parts.world.clock.now()
    grant = image_tickets.grant(cluster.signer, image.sha256, node_id, holders, now)
    parts.bus.announce(node_topic("compute", node_id), FetchImage(image=image, grant=grant))
