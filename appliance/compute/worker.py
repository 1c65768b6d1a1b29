"""Carrying out orders: journal first, then the steps, then a report, kept until confirmed."""

from __future__ import annotations

import logging
import threading

from msgspec.structs import replace

from appliance.bus import Delivery
from appliance.compute.attempt import Attempt
from appliance.compute.launch import LAUNCH, REJOIN, REMOVAL, STOP
from appliance.compute.orders import Verdict, judge
from appliance.compute.record import (
    HELD,
    REBOOT,
    REPORT,
    TOMBSTONE,
    Held,
    OwedReport,
    Tombstone,
    held_by,
    report_key,
)
from appliance.compute.subject import Drivers
from appliance.errors import AnynodeError, Stale
from appliance.journal import Journal
from appliance.messages import Order, Report, ReportConfirmed
from appliance.model import Reason, TimelineEntry
from appliance.steps import Failure

log = logging.getLogger(__name__)

REPEAT_S = 10.0
"""Seconds after which a report that was not confirmed is sent again; doubled each time."""

LONGEST_PAUSE_S = 300.0


class Worker:
    """The instances of one node: their records, and the work on them, one at a time each."""

    def __init__(self, drivers: Drivers, journal: Journal) -> None:
        self._drivers = drivers
        self._parts = drivers.parts
        self._journal = journal
        self._lock = threading.Lock()
        self._queued: set[str] = set()
        self._waiting: set[str] = set()
        self._sent_at: dict[str, tuple[float, float]] = {}
        # Waiting for an instance to shut down takes no slot from launches and removals.
        self._slots = threading.BoundedSemaphore(self._parts.config.compute.parallel_launches)
        self._held = journal.all(HELD, Held)
        self._tombstones = journal.all(TOMBSTONE, Tombstone)

    def held(self) -> dict[str, Held]:
        """Return the instances that this node holds."""
        with self._lock:
            return dict(self._held)

    def order(self, order: Order, delivery: Delivery | None = None) -> None:
        """Take an order: it is done once the duty to carry it out is in the journal."""
        with self._lock:
            held = self._held.get(order.instance_id)
            verdict = judge(order, held, self._tombstones.get(order.instance_id))
            log.debug("order %s for %s: %s", order.verb, order.instance_id, verdict)
            if verdict is Verdict.WORK and order.verb == "reboot":
                self._journal.put(REBOOT, order.instance_id, order)
            elif verdict is Verdict.WORK:
                self._put(held_by(order, before=held))
            elif verdict is Verdict.REMOVE_OLD_FIRST and held:
                self._put(_to_be_replaced(held, order))
            elif verdict is Verdict.REPORT_AGAIN and held and order.revision > held.revision:
                self._put(replace(held, revision=order.revision))
        match verdict:
            case Verdict.WORK if order.verb == "reboot":
                self._parts.work.submit(order.instance_id, lambda: self._reboot(order))
            case Verdict.WORK | Verdict.REMOVE_OLD_FIRST:
                self.resume(order.instance_id)
            case Verdict.REPORT_AGAIN if held:
                self._report_again(held)
            case Verdict.REPORT_GONE:
                self._finish(_unknown(order), "gone", None)
            case Verdict.REFUSE:
                self._refuse(order)

    def _refuse(self, order: Order) -> None:
        """Say that a launch failed: why it did when it did, else that it came too late."""
        owed = self._owed(order.instance_id, order.epoch)
        if owed:
            self._send(owed)
            return
        reason = Reason(
            code="Client.UserInitiatedShutdown",
            message="It was terminated before the order reached the node.",
        )
        self._finish(_unknown(order), "failed", reason)

    def resume(self, instance_id: str) -> None:
        """Carry out what the journal says of an instance."""
        with self._lock:
            if instance_id in self._queued:
                return
            self._queued.add(instance_id)
        self._parts.work.submit(instance_id, lambda: self._work(instance_id))

    def _put(self, held: Held) -> None:
        self._journal.put(HELD, held.instance_id, held)
        self._held[held.instance_id] = held

    def save(self, held: Held, *, before: Held) -> None:
        """Write an instance's record in place of what it was before.

        :raises Stale: a newer order has come; its record stays.
        """
        with self._lock:
            now = self._held.get(held.instance_id)
            if now is None or not now.is_of_same_order(before):
                raise Stale(f"A newer order for {held.instance_id} has come.")
            self._put(held)

    def _work(self, instance_id: str) -> None:
        with self._lock:
            self._queued.discard(instance_id)
            held = self._held.get(instance_id)
        if held is None or held.state != "working":
            return
        run = Attempt(self._drivers, held, self)
        try:
            self._carry_out(run)
        except Stale as stale:
            log.info("work on %s was overtaken: %s", instance_id, stale)

    def _carry_out(self, run: Attempt) -> None:
        match run.held.verb:
            case "stop":
                self._stop(run)
            case verb:
                with self._slots:
                    if self._parts.work.is_stopping:
                        log.info("work on %s waits for the next start", run.held.instance_id)
                    elif verb == "run":
                        self._launch(run)
                    else:
                        self._remove(run)

    def _launch(self, run: Attempt) -> None:
        held = run.held
        try:
            runs_already = self._drivers.runs(held.instance_id, held.epoch)
        except AnynodeError as error:
            self._say_why_it_waits(run, error)
            raise
        self._waiting.discard(held.instance_id)
        # What was reported to run is not given up because the node cannot look after it now.
        is_kept_running = runs_already and held.was_reported
        was_begun = runs_already or held.binding is not None
        failure = run.steps(
            REJOIN if runs_already else LAUNCH,
            earlier=LAUNCH if was_begun and not is_kept_running else (),
        )
        if failure is None:
            self._settle(run, "running", is_kept=True)
        elif run.is_overtaken():
            log.info("launch of %s was overtaken", held.instance_id)
        elif is_kept_running or self._parts.work.is_stopping:
            # A launch that the end of the program cut off is taken up at its next start.
            log.warning("launch of %s waits: %s", held.instance_id, failure.sentence)
        else:
            self._launch_failed(run, failure)

    def _say_why_it_waits(self, run: Attempt, error: AnynodeError) -> None:
        """Show in its timeline, once, why a launch has not begun."""
        if run.held.instance_id not in self._waiting:
            self._waiting.add(run.held.instance_id)
            run.note_failure("wait", error)
            self.send_interim(run.held, run.entries)

    def _launch_failed(self, run: Attempt, failure: Failure) -> None:
        log.warning("launch of %s failed: %s", run.held.instance_id, failure.sentence)
        reason = Reason(code="Server.InternalError", message=failure.sentence[:1000])
        if isinstance(failure.error, AnynodeError) and failure.error.exact_code.startswith(
            "Insufficient"
        ):
            reason = replace(reason, code=f"Server.{failure.error.exact_code}")
        if run.held.is_kept and failure.is_clean:
            self._settle(run, "stopped", reason=reason, is_asked=False)
        elif run.held.is_kept:
            self.save(replace(run.held, verb="stop", failure=reason), before=run.held)
        elif failure.is_clean:
            self._finish(run.held, "failed", reason, run)
        else:
            self.save(replace(run.held, verb="remove", failure=reason), before=run.held)

    def _stop(self, run: Attempt) -> None:
        failure = run.steps(STOP)
        if failure is None:
            reason = run.held.failure
            self._settle(run, "stopped", reason=reason, is_asked=reason is None)
        elif not run.is_overtaken():
            log.warning("stop of %s: %s", run.held.instance_id, failure.sentence)

    def _remove(self, run: Attempt) -> None:
        failure = run.steps(REMOVAL)
        if failure is None:
            reason = run.held.failure
            ended = self._finish(run.held, "failed" if reason else "gone", reason, run)
            if ended and ended.successor:
                self.order(ended.successor)
        else:
            log.warning("removal of %s: %s", run.held.instance_id, failure.sentence)

    def _settle(
        self,
        run: Attempt,
        state: str,
        *,
        reason: Reason | None = None,
        is_asked: bool = True,
        is_kept: bool | None = None,
    ) -> None:
        """Write where an instance has come to, unless a newer order has come, and report it."""
        with self._lock:
            now = self._held.get(run.held.instance_id)
            if now is None or not now.is_of_same_order(run.held):
                return
            kept = now.is_kept if is_kept is None else is_kept
            settled = replace(now, state=state, is_kept=kept, failure=None, verb=_verb_of(state))
            report = self._owe(settled, state, reason, is_asked, run.entries)
        self._send(report)

    def _owe(
        self,
        held: Held,
        state: str,
        reason: Reason | None,
        is_asked: bool,
        entries: list[TimelineEntry],
    ) -> Report:
        """Write a record and the report of it in one change, so that neither is lost alone."""
        numbered = replace(held, seq=held.seq + 1)
        report = self._make_report(numbered, state, reason, is_asked, entries)
        owed = OwedReport(report=report, sent_at=self._parts.world.clock.now())
        key = report_key(held.instance_id, held.epoch)
        self._journal.change([(HELD, held.instance_id, numbered), (REPORT, key, owed)])
        self._held[held.instance_id] = numbered
        return report

    def _report(self, held: Held, state: str) -> None:
        with self._lock:
            now = self._held.get(held.instance_id)
            if now is None or now.epoch != held.epoch:
                return
            report = self._owe(now, state, None, True, [])
        self._send(report)

    def _report_again(self, held: Held) -> None:
        """Repeat what the controller has not confirmed, with its reason; or say it anew."""
        owed = self._owed(held.instance_id, held.epoch)
        if owed and owed.state == held.state:
            self._send(owed)
        else:
            self._report(held, held.state)

    def _owed(self, instance_id: str, epoch: int) -> Report | None:
        owed = self._journal.get(REPORT, report_key(instance_id, epoch), OwedReport)
        return owed.report if owed else None

    def _finish(
        self, held: Held, state: str, reason: Reason | None, run: Attempt | None = None
    ) -> Held | None:
        """Forget an instance of which nothing is left, refuse late orders for it, report it.

        Return the record that was forgotten; ``None`` when there was none, or a newer order has
        come meanwhile, which then is the one to report.
        """
        clock = self._parts.world.clock
        report = self._make_report(
            replace(held, seq=held.seq + 1), state, reason, True, run.entries if run else []
        )
        owed = OwedReport(report=report, sent_at=clock.now())
        with self._lock:
            now = self._held.get(held.instance_id)
            is_ours = now is not None and now.epoch == held.epoch
            if now is not None and is_ours and not now.is_of_same_order(held):
                return None
            known = self._tombstones.get(held.instance_id)
            tombstone = Tombstone(
                instance_id=held.instance_id,
                epoch=max(held.epoch, known.epoch if known else 0),
                made_at=clock.now(),
            )
            changes = [
                (TOMBSTONE, held.instance_id, tombstone),
                (REPORT, report_key(held.instance_id, held.epoch), owed),
            ]
            self._journal.change([*changes, (HELD, held.instance_id, None)] if is_ours else changes)
            if is_ours:
                del self._held[held.instance_id]
            self._tombstones[held.instance_id] = tombstone
        self._send(report)
        return now if is_ours else None

    def _make_report(
        self,
        held: Held,
        state: str,
        reason: Reason | None,
        is_asked: bool,
        entries: list[TimelineEntry],
    ) -> Report:
        return Report(
            instance_id=held.instance_id,
            node_id=self._parts.node_id,
            epoch=held.epoch,
            seq=held.seq,
            revision=held.revision,
            state=state,
            is_asked=is_asked,
            reason=reason,
            entries=tuple(entries),
            request_id=held.request_id,
        )

    def _send(self, report: Report) -> None:
        key = report_key(report.instance_id, report.epoch)
        now = self._parts.world.clock.monotonic()
        with self._lock:
            _, pause_s = self._sent_at.get(key, (now, 0.0))
            self._sent_at[key] = (now, min(max(2 * pause_s, REPEAT_S), LONGEST_PAUSE_S))
        for entry in report.entries:
            self._parts.observers.instance_event(entry)
        self._parts.world.crash(f"report.{report.state}.before")
        try:
            self._parts.bus.cast("controller", report)
        except AnynodeError as error:
            log.warning("report of %s waits: %s", report.instance_id, error)

    def send_interim(self, held: Held, entries: list[TimelineEntry]) -> None:
        """Show how far a launch has come; it may get lost."""
        report = self._make_report(held, "pending", None, True, entries)
        try:
            self._parts.bus.cast("controller", report)
        except AnynodeError as error:
            log.debug("interim report of %s is lost: %s", held.instance_id, error)

    def confirmed(self, message: ReportConfirmed, delivery: Delivery) -> None:
        """Stop repeating a report."""
        key = report_key(message.instance_id, message.epoch)
        with self._lock:
            owed = self._journal.get(REPORT, key, OwedReport)
            if owed and owed.report.seq <= message.seq:
                self._journal.delete(REPORT, key)
                self._sent_at.pop(key, None)

    def repeat_reports(self) -> None:
        """Send again what has not been confirmed, ever more rarely."""
        now = self._parts.world.clock.monotonic()
        for key, owed in self._journal.all(REPORT, OwedReport).items():
            sent_at, pause_s = self._sent_at.get(key, (now, 0.0))
            if now >= sent_at + pause_s:
                self._send(owed.report)

    def retry(self) -> None:
        """Take up again what is not finished and is not being worked on."""
        for held in self.held().values():
            if held.state == "working":
                self.resume(held.instance_id)

    def went_off(self, instance_id: str, reason: Reason) -> None:
        """Deal with an instance that is off although nobody on this node asked for it.

        What was seen may be outdated: it may have been stopped, and started again, since.
        """
        seen = self.held().get(instance_id)
        if seen is None or seen.state != "running" or self._drivers.runs(instance_id):
            return
        with self._lock:
            held = self._held.get(instance_id)
            if held != seen:
                return
            self._put(replace(held, verb="stop", state="working", failure=reason))
        self.resume(instance_id)

    def went_on(self, instance_id: str) -> None:
        """Stop an instance that somebody has started behind this node's back."""
        with self._lock:
            held = self._held.get(instance_id)
            if held is None or held.state != "stopped":
                return
            self._put(replace(held, verb="stop", state="working"))
        self.resume(instance_id)

    def _reboot(self, order: Order) -> None:
        self._parts.world.crash("reboot.before")
        try:
            self._drivers.compute.reboot(order.instance_id, is_forced=order.is_forced)
        except AnynodeError as error:
            log.warning("reboot of %s: %s", order.instance_id, error)
        self._parts.world.crash("reboot.after")
        self._journal.delete(REBOOT, order.instance_id)

    def take_up_reboots(self) -> None:
        """Carry out the reboots that the end of the program cut off."""
        for order in self._journal.all(REBOOT, Order).values():
            self._parts.work.submit(order.instance_id, lambda order=order: self._reboot(order))  # type: ignore[misc]

    def adopt(self, held: Held) -> None:
        """Take up an instance that the hypervisor has and a lost journal has not."""
        with self._lock:
            if held.instance_id not in self._held:
                self._put(held)

    def rejoin(self, held: Held) -> None:
        """Work on an instance that runs as if it had yet to run: the node has lost its ports."""
        with self._lock:
            if self._held.get(held.instance_id) != held:
                return
            self._put(replace(held, state="working"))
        self.resume(held.instance_id)

    def drop_tombstones(self, age_s: float) -> None:
        """Forget tombstones that are older than any order can be."""
        oldest = self._parts.world.clock.now() - age_s
        with self._lock:
            old = [key for key, item in self._tombstones.items() if item.made_at < oldest]
            self._journal.change([(TOMBSTONE, key, None) for key in old])
            for key in old:
                del self._tombstones[key]


def _verb_of(state: str) -> str:
    return "run" if state == "running" else "stop"


def _to_be_replaced(held: Held, order: Order) -> Held:
    """Return the record of an older copy that makes room for an order."""
    return replace(
        held, verb="remove", state="working", sets_aside=True, failure=None, successor=order
    )


def _unknown(order: Order) -> Held:
    return Held(
        instance_id=order.instance_id,
        epoch=order.epoch,
        revision=order.revision,
        verb="remove",
        state="working",
        request_id=order.request_id,
    )
