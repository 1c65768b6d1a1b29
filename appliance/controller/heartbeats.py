"""Heartbeats: every controller hears them, and the one that sweeps writes them, many at once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec.structs import replace

from appliance.messages import Heartbeat, encode
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

LONGEST_TEXT = 64
LARGEST_CONDITION = 64 * 1024
LARGEST_OFFER = 2**31 - 1
"""What a heartbeat may be: all are written together, and one must not spoil the others'."""

TELL_EVERY_S = 30.0
"""Seconds after which a node's condition is written though only its load has changed."""


class Batch(NamedTuple):
    """Heartbeats to be written, and the nodes whose conditions are written, too."""

    beats: Mapping[str, Beat]
    in_full: frozenset[str]


@dataclass
class Heard:
    """What one controller has heard of the nodes, and what of it is written."""

    silence_s: float
    _waiting: dict[str, Beat] = field(default_factory=dict)
    _written: dict[str, Beat] = field(default_factory=dict)
    _told: dict[str, Beat] = field(default_factory=dict)

    def add(self, beat: Beat) -> bool:
        """Note a heartbeat; say whether it is news: that a node lives, was started, or does else.

        What it does are its roles, those too that do not run.
        """
        self._waiting[beat.node_id] = beat
        before, told = self._written.get(beat.node_id), self._told.get(beat.node_id)
        return (
            before is None
            or before.boot_id != beat.boot_id
            or beat.at - before.at > self.silence_s
            or told is None
            or _deeds(told.condition) != _deeds(beat.condition)
        )

    def batch(self) -> Batch:
        """Return what is to be written now."""
        waiting = dict(self._waiting)
        in_full = frozenset(
            node_id for node_id, beat in waiting.items() if _counts(self._told.get(node_id), beat)
        )
        return Batch(waiting, in_full)

    def note_written(self, batch: Batch, known: Collection[str]) -> None:
        """Note that a batch is written, as far as its nodes are known."""
        for node_id, beat in batch.beats.items():
            if self._waiting.get(node_id) is beat:
                del self._waiting[node_id]
            if node_id not in known:
                continue
            self._written[node_id] = beat
            if node_id in batch.in_full:
                self._told[node_id] = beat

    def forget_written(self) -> None:
        """Trust nothing that is written: another controller writes now."""
        self._written.clear()
        self._told.clear()


def _counts(told: Beat | None, beat: Beat) -> bool:
    """Say whether a heartbeat tells more than that the node is alive."""
    return (
        told is None
        or beat.at - told.at >= TELL_EVERY_S
        or beat.boot_id != told.boot_id
        or _lasting(beat.condition) != _lasting(told.condition)
    )


def _lasting(condition: Condition) -> Condition:
    """Return a condition without what changes all the time."""
    if condition.capacity is None:
        return condition
    lasting = replace(condition.capacity, load_1m=0.0, memory_free_mib=0, disk_free_gib=0)
    return replace(condition, capacity=lasting)


def _deeds(condition: Condition) -> tuple[object, ...]:
    """Return what a node does: an operator may be waiting for it."""
    return condition.roles, condition.problems, condition.buses


class Heartbeats:
    """The heartbeats that one controller hears, on their way to the store.

    A controller without the lease keeps the last heartbeat of each node, so that when it takes
    over it knows who was alive meanwhile.
    """

    def __init__(self, parts: NodeParts) -> None:
        self._parts = parts
        self._heard = Heard(parts.config.controller.node_silence_s)
        self._rests_until = float("-inf")
        self._unsound: set[str] = set()
        self._changing = threading.Lock()
        self._writing = threading.Lock()

    @property
    def lease_s(self) -> float:
        """Seconds for which the lease is taken."""
        sweep_s = self._parts.config.controller.sweep_every_s
        return max(LEASE_SWEEPS * sweep_s, SHORTEST_LEASE_S)

    def hear(self, message: Heartbeat) -> None:
        """Note that a node is alive; what is news of one is written at once.

        One that cannot be written is dropped, as if the node were silent.
        """
        if not _is_sound(message):
            if message.node_id not in self._unsound:
                log.warning("node %s sends heartbeats that cannot be", message.node_id)
                self._unsound.add(message.node_id)
            return
        self._unsound.discard(message.node_id)
        with self._changing:
            is_news = self._heard.add(_beat_of(message, self._parts.world.clock.now()))
        if is_news:
            self.write()

    def write(self) -> None:
        """Write what was heard, if it is this controller that does.

        :raises Unavailable: the store does not answer; it is kept until it does.
        """
        if self._parts.world.clock.monotonic() < self._rests_until:
            return
        with self._writing:
            with self._changing:
                batch = self._heard.batch()
            if not batch.beats:
                return
            known = self._parts.need_store().transaction(lambda tx: self._note(tx, batch))
            if known is not None:
                self._note_written(batch, known)

    def _note(self, tx: Transaction, batch: Batch) -> Collection[str] | None:
        if not self.take_turn(tx):
            return None
        found = nodes.heard(tx, list(batch.beats.values()), batch.in_full)
        if found.risen:
            members.changed(tx)
        return found.node_ids

    def _note_written(self, batch: Batch, known: Collection[str]) -> None:
        with self._changing:
            self._heard.note_written(batch, known)

    def take_turn(self, tx: Transaction) -> bool:
        """Take the lease, or keep it; ``False`` when another controller has it."""
        if leases.take(tx, LEASE, self._parts.node_id, self.lease_s):
            return True
        self._rests_until = self._parts.world.clock.monotonic() + self.lease_s / 2
        with self._changing:
            self._heard.forget_written()
        return False

    def note_all(self, tx: Transaction) -> None:
        """Write in the transaction of a sweep what was heard, before it looks who was not."""
        with self._changing:
            batch = self._heard.batch()
        self._rests_until = float("-inf")
        if nodes.heard(tx, list(batch.beats.values()), batch.in_full).risen:
            members.changed(tx)


def _is_sound(message: Heartbeat) -> bool:
    """Say whether a heartbeat is one that can be written."""
    offered = (message.offered_vcpus, message.offered_memory_mib, message.offered_disk_gib)
    return (
        len(message.boot_id) <= LONGEST_TEXT
        and "\0" not in message.boot_id
        and all(0 <= one <= LARGEST_OFFER for one in offered)
        and len(encode(message)) <= LARGEST_CONDITION
    )


def _beat_of(message: Heartbeat, at: float) -> Beat:
    return Beat(
        node_id=message.node_id,
        boot_id=message.boot_id,
        condition=Condition(
            capacity=message.capacity,
            release=message.release,
            versions=message.versions,
            roles=message.roles,
            problems=message.problems,
            buses=message.buses,
        ),
        offer=Offer(message.offered_vcpus, message.offered_memory_mib, message.offered_disk_gib),
        at=at,
    )
