"""What an order means to a node that holds, or does not hold, an instance: a pure decision."""

from __future__ import annotations

import enum

from appliance.compute.record import Held, Tombstone
from appliance.messages import Order


class Verdict(enum.StrEnum):
    """What to do with an order."""

    WORK = "work"
    """Journal it and carry it out."""
    REMOVE_OLD_FIRST = "remove old first"
    """An older copy is here: remove it, then carry the order out."""
    REPORT_AGAIN = "report again"
    """It was carried out before."""
    REPORT_GONE = "report gone"
    """There is nothing here to remove; refuse what comes late."""
    DROP = "drop"
    """It is under way, or was overtaken."""
    REFUSE = "refuse"
    """It was removed before it came; say that it failed."""


_AFTER_REMOVAL = {
    "run": Verdict.REFUSE,
    "stop": Verdict.REPORT_GONE,
    "remove": Verdict.REPORT_GONE,
    "reboot": Verdict.DROP,
}
"""What an order comes to when the instance was removed at its epoch, or at a later one."""

_UNKNOWN = {
    "run": Verdict.WORK,
    # The journal was lost, and the disk may be there: it is taken up, never declared gone.
    "stop": Verdict.WORK,
    "remove": Verdict.REPORT_GONE,
    "reboot": Verdict.DROP,
}
"""What an order comes to when nothing is known of the instance."""


def judge(order: Order, held: Held | None, tombstone: Tombstone | None) -> Verdict:
    """Return what to do with an order for an instance that is held so."""
    if tombstone and tombstone.epoch >= order.epoch and (held is None or order.verb == "run"):
        return _AFTER_REMOVAL[order.verb]
    if held is None:
        return _UNKNOWN[order.verb]
    if order.epoch < held.epoch:
        return Verdict.DROP
    if order.epoch > held.epoch:
        return _newer_epoch(order, held)
    return _same_epoch(order, held)


def _newer_epoch(order: Order, held: Held) -> Verdict:
    if order.verb != "run":
        return Verdict.WORK
    # An older copy, too: a start that failed has placed it anew, and the disk stayed the same.
    if held.is_kept and held.epoch <= order.adopts_epoch:
        return Verdict.WORK
    return Verdict.REMOVE_OLD_FIRST


def _same_epoch(order: Order, held: Held) -> Verdict:
    if order.verb == "reboot":
        return Verdict.WORK if held.state == "running" else Verdict.DROP
    if order.revision < held.revision or held.verb == "remove":
        return Verdict.DROP
    settled = {"run": "running", "stop": "stopped"}
    if order.verb == "run" and held.verb == "stop" and order.revision == held.revision:
        # It went off by itself, and the controller has not heard of it yet.
        return Verdict.REPORT_AGAIN if held.state == "stopped" else Verdict.DROP
    if held.verb == order.verb and held.state == settled.get(order.verb):
        # One that only the hypervisor knew has yet to learn what it is.
        is_known = held.spec is not None or order.verb != "run"
        return Verdict.REPORT_AGAIN if is_known else Verdict.WORK
    if held.verb == order.verb and held.state == "working":
        is_urged = order.is_forced and not held.is_forced
        return Verdict.WORK if is_urged else Verdict.DROP
    return Verdict.WORK
