"""What the scheduler plugin says about the instances of a message, before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from appliance.hooks import Scheduler
from appliance.model import (
    Desired,
    InstanceSpec,
    InstanceState,
    NodeView,
    PlacementRequest,
    Ranking,
)
from appliance.node import NodeParts
from appliance.store import Transaction, instances, networks, nodes, placements
from appliance.store.instances import Instance
from appliance.store.placements import Placement


@dataclass(frozen=True, kw_only=True)
class Placing:
    """What placing needs: the parts of the node and the scheduler plugin."""

    parts: NodeParts
    scheduler: Scheduler


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """An instance that wants a node; ``kept`` is the placement of its disk where it has one."""

    instance: Instance
    kept: Placement | None

    @property
    def instance_id(self) -> str:
        """The instance's id."""
        return self.instance.instance_id

    def is_as(self, other: Waiting) -> bool:
        """Say whether what was ranked for one holds for the other."""
        mine, its = self.instance, other.instance
        return (mine.epoch, mine.revision, self.kept) == (its.epoch, its.revision, other.kept)


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """An instance with its ranking; ``filled`` are nodes of an earlier one that filled up."""

    waiting: Waiting
    ranking: Ranking
    filled: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The rankings of a message's instances, made on one view of the store."""

    ranked: Mapping[str, Ranked]
    specs: Mapping[str, InstanceSpec]
    nodes: Mapping[str, NodeView]

    def of(self, waiting: Waiting) -> Ranked | None:
        """Return the ranking of an instance, unless the instance has changed since."""
        ranked = self.ranked.get(waiting.instance_id)
        return ranked if ranked and ranked.waiting.is_as(waiting) else None


def find_waiting(tx: Transaction, instance_ids: Iterable[str]) -> list[Waiting]:
    """Return those of the instances that want a node now."""
    found = [
        instance
        for instance in instances.find(tx, instance_ids)
        if instance.desired is Desired.RUNNING and instance.state is InstanceState.PENDING
    ]
    active = placements.active_of(tx, [instance.instance_id for instance in found])
    return [
        Waiting(instance=instance, kept=kept)
        for instance in found
        for kept in [active.get(instance.instance_id)]
        if kept is None or kept.memory_mib == 0
    ]


def make_plan(
    placing: Placing, instance_ids: Iterable[str], filled: Mapping[str, tuple[str, ...]]
) -> Plan:
    """Rank the nodes for each instance; those ranked later see the others on their first node.

    :param filled: by instance, the nodes that had no room left when they were claimed.
    """

    def read(tx: Transaction) -> tuple[list[Waiting], _Surroundings]:
        waiting = find_waiting(tx, instance_ids)
        ids = [one.instance_id for one in waiting]
        specs = instances.specs(tx, ids)
        return waiting, _Surroundings(
            views=nodes.views(tx),
            failed=placements.failed_nodes_of(tx, ids),
            specs=specs,
            keepers=networks.keepers(
                tx, {port.network_id for spec in specs.values() for port in spec.ports}
            ),
        )

    waiting, around = placing.parts.need_store().read(read)
    board = {view.node_id: view for view in around.views}
    ranked = {}
    for one in waiting:
        full = filled.get(one.instance_id, ())
        excluded = (*around.failed.get(one.instance_id, ()), *full)
        request = _request(placing, one, excluded, around.keepers_of(one))
        ranking = placing.scheduler.rank(request, list(board.values()))
        ranked[one.instance_id] = Ranked(waiting=one, ranking=ranking, filled=full)
        for node_id in ranking.node_ids[:1]:
            board[node_id] = _with_claim(board[node_id], request)
    seen = {view.node_id: view for view in around.views}
    return Plan(ranked=ranked, specs=around.specs, nodes=seen)


@dataclass(frozen=True, kw_only=True)
class _Surroundings:
    views: list[NodeView]
    failed: Mapping[str, tuple[str, ...]]
    specs: Mapping[str, InstanceSpec]
    keepers: Mapping[str, str]

    def keepers_of(self, waiting: Waiting) -> set[str]:
        """Return the nodes that alone have one of the instance's networks."""
        spec = self.specs.get(waiting.instance_id)
        ids = [port.network_id for port in spec.ports] if spec else []
        return {self.keepers[network_id] for network_id in ids if network_id in self.keepers}


def _request(
    placing: Placing, waiting: Waiting, excluded: tuple[str, ...], keepers: set[str]
) -> PlacementRequest:
    instance, kept = waiting.instance, waiting.kept
    pins = {kept.node_id} | keepers if kept else keepers
    if len(pins) > 1:
        # No node has its disk and all its networks.
        excluded = (*excluded, *sorted(pins))
    elif kept:
        excluded = ()
    return PlacementRequest(
        instance_id=instance.instance_id,
        project_id=instance.project_id,
        instance_type=instance.instance_type,
        vcpus=instance.vcpus,
        memory_mib=instance.memory_mib,
        disk_gib=0 if kept else instance.disk_gib,
        zone=instance.zone,
        pinned_node_id=min(pins, default=None),
        excluded_node_ids=tuple(dict.fromkeys(excluded)),
        seed=placing.parts.world.random.getrandbits(32),
    )


def _with_claim(view: NodeView, request: PlacementRequest) -> NodeView:
    return msgspec.structs.replace(
        view,
        vcpus_claimed=view.vcpus_claimed + request.vcpus,
        memory_claimed_mib=view.memory_claimed_mib + request.memory_mib,
        disk_claimed_gib=view.disk_claimed_gib + request.disk_gib,
        instances=view.instances + 1,
    )
