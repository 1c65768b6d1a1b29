"""Claiming room on nodes for many instances with few statements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from appliance.model import Phase
from appliance.scheduler.plan import Ranked
from appliance.store import Transaction, nodes
from appliance.store.placements import Placement


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What came of a ranking: the node that has room, and how many before it had none."""

    ranked: Ranked
    node_id: str | None = None
    lost: int = 0

    @property
    def claims_lost(self) -> int:
        """How many nodes filled up since they were ranked, an earlier ranking's included."""
        return self.lost + len(self.ranked.filled)

    @property
    def epoch(self) -> int:
        """The epoch of the placement that this claim is for."""
        return self.ranked.waiting.instance.epoch + 1

    @property
    def is_outranked(self) -> bool:
        """Whether every node that was named has filled up, and others may be asked for."""
        has_named = bool(self.ranked.ranking.node_ids)
        return self.node_id is None and has_named and self.ranked.waiting.kept is None


def claim_all(tx: Transaction, ranked: Iterable[Ranked]) -> list[Claim]:
    """Claim for each instance the first node of its ranking that has room."""
    claims = []
    by_first: dict[str, list[Ranked]] = defaultdict(list)
    for one in ranked:
        if one.ranking.node_ids:
            by_first[one.ranking.node_ids[0]].append(one)
        else:
            claims.append(Claim(ranked=one))
    crowded: list[Ranked] = []
    # In one order everywhere, so that two schedulers do not wait for each other.
    for node_id, group in sorted(by_first.items()):
        if nodes.claim(tx, node_id, **_room(group)):
            claims += [Claim(ranked=one, node_id=node_id) for one in group]
        else:
            crowded += group
    return claims + [_claim_down(tx, one) for one in crowded]


def give_back(tx: Transaction, claims: Iterable[Claim]) -> None:
    """Give back what was claimed in this transaction."""
    by_node: dict[str, list[Ranked]] = defaultdict(list)
    for claim in claims:
        if claim.node_id:
            by_node[claim.node_id].append(claim.ranked)
    for node_id, group in sorted(by_node.items()):
        nodes.unclaim(tx, node_id, **_room(group))


def placement_of(tx: Transaction, claim: Claim) -> Placement:
    """Return the placement that a claim with a node is for."""
    assert claim.node_id is not None
    instance, kept = claim.ranked.waiting.instance, claim.ranked.waiting.kept
    return Placement(
        instance_id=instance.instance_id,
        epoch=claim.epoch,
        node_id=claim.node_id,
        phase=Phase.CLAIMED,
        vcpus=instance.vcpus,
        memory_mib=instance.memory_mib,
        disk_gib=kept.disk_gib if kept else instance.disk_gib,
        changed_at=tx.now,
        adopts_epoch=kept.epoch if kept else 0,
    )


def _claim_down(tx: Transaction, ranked: Ranked) -> Claim:
    room = _room([ranked])
    for lost, node_id in enumerate(ranked.ranking.node_ids):
        if nodes.claim(tx, node_id, **room):
            return Claim(ranked=ranked, node_id=node_id, lost=lost)
    return Claim(ranked=ranked, lost=len(ranked.ranking.node_ids))


def _room(group: Sequence[Ranked]) -> dict[str, int]:
    """Return what the instances need; of a disk that is kept, the room is claimed already."""
    wanting = [one.waiting.instance for one in group]
    new = [one.waiting.instance for one in group if one.waiting.kept is None]
    return {
        "vcpus": sum(instance.vcpus for instance in wanting),
        "memory_mib": sum(instance.memory_mib for instance in wanting),
        "disk_gib": sum(instance.disk_gib for instance in new),
        "instances": len(new),
    }
