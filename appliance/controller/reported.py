"""How much of what a node tells is written: it is believed about its own copies, not at any length.

Texts are cut, not refused: a report with a long reason is a report, and its node would repeat it
for ever. What is longer than a name or a number can be is refused with the message itself.
"""

from __future__ import annotations

import threading
from collections import Counter

from msgspec.structs import replace

from appliance.errors import InputError
from appliance.messages import Report
from appliance.model import Reason, TimelineEntry
from appliance.world import Clock

STATES = frozenset({"running", "stopped", "gone", "failed", "pending"})
LONGEST_TEXT = 1000
LONGEST_NAME = 64
LONGEST_OUTCOME = 16
MOST_CAUSES = 10
MOST_ENTRIES = 100
"""Entries of one report; a launch on one node has a dozen steps."""

MOST_AN_HOUR = 500
"""Entries of one instance that a controller writes within an hour: some thirty starts."""

_HOUR_S = 3600.0

COMPUTE = "compute"
"""The role that reports."""


class Told:
    """How many entries of each instance's timeline were written this hour."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._hour = 0
        self._entries: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, message: Report) -> tuple[TimelineEntry, ...]:
        """Return the entries of a report that its instance may still have.

        For reports of who has the instance: another shall not use them up.
        """
        if not message.entries:
            return ()
        with self._lock:
            hour = int(self._clock.monotonic() // _HOUR_S)
            if hour != self._hour:
                self._hour = hour
                self._entries.clear()
            left = MOST_AN_HOUR - self._entries[message.instance_id]
            entries = message.entries[:left]
            self._entries[message.instance_id] += len(entries)
        return entries


def fitting(message: Report) -> Report:
    """Return a report with texts that can be written, and with no entries but the node's own.

    :raises InputError: it says what no instance can be.
    """
    if message.state not in STATES:
        raise InputError(f"No instance can be {message.state!r}.")
    own = [
        one
        for one in message.entries[:MOST_ENTRIES]
        if (one.instance_id, one.epoch) == (message.instance_id, message.epoch)
        and one.role == COMPUTE
    ]
    reason = message.reason and _reason(message.reason)
    return replace(message, reason=reason, entries=tuple(_entry(one) for one in own))


def _reason(reason: Reason) -> Reason:
    return Reason(code=cut(reason.code, LONGEST_NAME), message=cut(reason.message))


def _entry(entry: TimelineEntry) -> TimelineEntry:
    return replace(
        entry,
        request_id=cut(entry.request_id, LONGEST_NAME),
        node=cut(entry.node, LONGEST_NAME),
        name=cut(entry.name, LONGEST_NAME),
        outcome=cut(entry.outcome, LONGEST_OUTCOME),
        detail=cut(entry.detail),
        causes=tuple(cut(one) for one in entry.causes[:MOST_CAUSES]),
    )


def cut(text: str, longest: int = LONGEST_TEXT) -> str:
    """Return the beginning of a text, without what no store takes."""
    return text.replace("\0", "")[:longest]
