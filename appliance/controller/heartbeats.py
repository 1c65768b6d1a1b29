"""Heartbeats: every controller hears them, and the one that sweeps writes them, many at once."""

from __future__ import annotations

import logging
import threading

from appliance.messages import Heartbeat
from appliance.node import NodeParts
from appliance.store import Transaction, leases, members, nodes
from appliance.store.nodes import Beat, Condition, Offer

log = logging.getLogger(__name__)

LEASE = "sweep"
"""The lease of the controller that looks after nodes and what shows no progress."""

LEASE_SWEEPS = 3
"""Sweeps that the controller which sweeps may miss before another does."""

SHORTEST_LEASE_S = 3.0
WRITE_EVERY_S = 1.0


class Heartbeats:
    """What one controller has heard of the nodes and has not written yet.

    A controller without the lease keeps the last heartbeat of each, so that when it takes over it
    knows who was alive meanwhile.
    """

    def __init__(self, parts: NodeParts) -> None:
        self._parts = parts
        self._heard: dict[str, Beat] = {}
        self._written: set[str] = set()
        self._rests_until = float("-inf")
        self._changing = threading.Lock()
        self._writing = threading.Lock()

    @property
    def lease_s(self) -> float:
        """Seconds for which the lease is taken."""
        sweep_s = self._parts.config.controller.sweep_every_s
        return max(LEASE_SWEEPS * sweep_s, SHORTEST_LEASE_S)

    def hear(self, message: Heartbeat) -> None:
        """Note that a node is alive; the first heartbeat of one is written at once."""
        beat = Beat(
            node_id=message.node_id,
            boot_id=message.boot_id,
            condition=Condition(
                capacity=message.capacity,
                release=message.release,
                versions=message.versions,
                roles=message.roles,
                problems=message.problems,
            ),
            offer=Offer(
                message.offered_vcpus, message.offered_memory_mib, message.offered_disk_gib
            ),
            at=self._parts.world.clock.now(),
        )
        with self._changing:
            self._heard[beat.node_id] = beat
            is_known = beat.node_id in self._written
        if not is_known:
            self.write()

    def write(self) -> None:
        """Write what was heard, if it is this controller that does.

        :raises Unavailable: the store does not answer; it is kept until it does.
        """
        if self._parts.world.clock.monotonic() < self._rests_until:
            return
        with self._writing:
            with self._changing:
                batch = dict(self._heard)
            if batch and self._parts.need_store().transaction(lambda tx: self._note(tx, batch)):
                with self._changing:
                    self._written |= batch.keys()
                    for node_id, beat in batch.items():
                        if self._heard.get(node_id) is beat:
                            del self._heard[node_id]

    def _note(self, tx: Transaction, batch: dict[str, Beat]) -> bool:
        if not self.take_turn(tx):
            return False
        risen = nodes.heard(tx, list(batch.values()))
        if risen:
            members.changed(tx)
        return True

    def take_turn(self, tx: Transaction) -> bool:
        """Take the lease, or keep it; ``False`` when another controller has it."""
        if leases.take(tx, LEASE, self._parts.node_id, self.lease_s):
            return True
        self._rests_until = self._parts.world.clock.monotonic() + self.lease_s / 2
        with self._changing:
            self._written.clear()
        return False

    def note_all(self, tx: Transaction) -> None:
        """Write in the transaction of a sweep what was heard, before it looks who was not."""
        with self._changing:
            batch = list(self._heard.values())
        self._rests_until = float("-inf")
        if nodes.heard(tx, batch):
            members.changed(tx)
