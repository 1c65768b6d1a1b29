"""What the compute role keeps in its journal: the instances of its node, and what it still owes."""

from __future__ import annotations

from appliance.messages import Order, Report
from appliance.model import Binding, InstanceSpec, Reason, Value

HELD = "held"
TOMBSTONE = "tombstone"
REPORT = "report"
REBOOT = "reboot"


class Held(Value, frozen=True, kw_only=True):
    """An instance that this node holds, or is to hold.

    ``verb`` is what was ordered last: ``run``, ``stop`` or ``remove``. ``state`` is where it is:
    ``working`` (the order is being carried out), ``running``, ``stopped``, or ``off`` (it was
    running before the power went, and waits for the controller's word). ``is_kept`` says that the
    disk holds an owner's data: the instance has run before. ``revision`` is 0 where the hypervisor
    alone knew of it. ``sets_aside`` keeps the disk at a removal, and ``successor`` is the order
    that waits for it. ``binding`` is that of this epoch while it is being launched: ``None`` says
    that nothing was done for it yet.
    """

    instance_id: str
    epoch: int
    revision: int
    verb: str
    state: str
    seq: int = 0
    spec: InstanceSpec | None = None
    binding: Binding | None = None
    is_kept: bool = False
    is_forced: bool = False
    sets_aside: bool = False
    successor: Order | None = None
    request_id: str = ""
    failure: Reason | None = None
    """Why a launch failed whose remains are being removed; ``None`` when that was asked for."""

    @property
    def was_reported(self) -> bool:
        """Whether the controller was told how it is since it was placed here."""
        return self.seq > 0

    def is_of_same_order(self, other: Held) -> bool:
        """Say whether two records of an instance come from the same order."""
        mine = (self.epoch, self.revision, self.verb, self.is_forced)
        return mine == (other.epoch, other.revision, other.verb, other.is_forced)


class Tombstone(Value, frozen=True, kw_only=True):
    """Refuses orders for an instance up to an epoch."""

    instance_id: str
    epoch: int
    made_at: float


class OwedReport(Value, frozen=True, kw_only=True):
    """A report that the controller has not confirmed yet."""

    report: Report
    sent_at: float


def report_key(instance_id: str, epoch: int) -> str:
    """Return the journal's key of a report: one per placement, the newest."""
    return f"{instance_id}@{epoch}"


def held_by(order: Order, *, before: Held | None) -> Held:
    """Return the record of an instance that an order begins to work on."""
    return Held(
        instance_id=order.instance_id,
        epoch=order.epoch,
        revision=order.revision,
        verb=order.verb,
        state="working",
        seq=max(order.seq, before.seq if before and before.epoch == order.epoch else 0),
        spec=order.spec or (before.spec if before else None),
        binding=before.binding if before and _goes_on(order, before) else None,
        # The disk that it goes on with is here, even when the journal was lost.
        is_kept=before.is_kept if before else order.adopts_epoch > 0 or order.verb == "stop",
        is_forced=order.is_forced,
        sets_aside=order.sets_aside,
        request_id=order.request_id,
    )


def _goes_on(order: Order, before: Held) -> bool:
    """Say whether an order is about a placement that was bound, not about one that will be."""
    return order.verb != "run" or order.epoch == before.epoch
