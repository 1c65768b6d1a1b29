"""One attempt to carry out an order: its steps, its timeline, and leaving off when overtaken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from appliance.compute.record import Held
from appliance.compute.subject import Drivers, Subject
from appliance.errors import Stale, cause_chain
from appliance.model import TimelineEntry
from appliance.steps import Failure, Step, StepResult, run_steps

INTERIM_S = 1.0
"""Seconds after which a launch that is under way shows its timeline so far."""


PROGRESS_S = 10.0
"""Seconds after which a step that comes on shows that; its time limits run from then."""


class Records(Protocol):
    """The records of a node's instances, as an attempt sees them."""

    def held(self) -> dict[str, Held]:
        """Return all records."""
        ...

    def save(self, held: Held, *, before: Held) -> None:
        """Write one in place of what it was before; raises Stale when a newer order has come."""
        ...

    def send_interim(self, held: Held, entries: list[TimelineEntry]) -> None:
        """Show how far the work has come."""
        ...


class Attempt:
    """A run of steps for an order, with the timeline that it leaves."""

    def __init__(self, drivers: Drivers, held: Held, records: Records) -> None:
        self.held = held
        self.entries: list[TimelineEntry] = []
        self._parts = drivers.parts
        self._records = records
        self._shown_at = self._parts.world.clock.monotonic()
        self._subject = Subject(
            drivers=drivers,
            held=held,
            save=self.save,
            check_wanted=self.check_wanted,
            progress=self._progress,
        )

    def save(self, held: Held) -> None:
        """Write what a step found out, unless a newer order has come."""
        self._records.save(held, before=self.held)
        self.held = self._subject.held = held

    def is_overtaken(self) -> bool:
        """Say whether a newer order has come meanwhile."""
        now = self._records.held().get(self.held.instance_id)
        return now is None or not now.is_of_same_order(self.held)

    def check_wanted(self) -> None:
        """Raise Stale once a newer order has come."""
        if self.is_overtaken():
            raise Stale(f"A newer order for {self.held.instance_id} has come.")

    def _progress(self, done_bytes: int, total_bytes: int) -> None:
        """Show every now and then that a long step comes on, unless it is in vain."""
        now = self._parts.world.clock.monotonic()
        if now - self._shown_at < PROGRESS_S:
            return
        self.check_wanted()
        self._shown_at = now
        self._records.send_interim(self.held, self.entries)

    def steps(
        self, steps: tuple[Step[Subject], ...], *, earlier: tuple[Step[Subject], ...] = ()
    ) -> Failure | None:
        """Run steps, leaving off when a newer order comes; return what failed.

        ``earlier`` are those that an attempt before this one may have done: they are undone, too.
        """
        checked = [_checked(step, self.check_wanted) for step in steps]
        return run_steps(
            checked,
            self._subject,
            world=self._parts.world,
            record=self._record,
            earlier=earlier,
        )

    def note_failure(self, name: str, error: Exception) -> None:
        """Put something that failed, and is no step, on the timeline."""
        now = self._parts.world.clock.now()
        result = StepResult(
            name=name,
            started_at=now,
            duration_ms=0.0,
            outcome="failed",
            causes=cause_chain(error),
        )
        self._record(result)

    def _record(self, result: StepResult) -> None:
        self.entries.append(
            TimelineEntry(
                instance_id=self.held.instance_id,
                epoch=self.held.epoch,
                request_id=self.held.request_id,
                node=self._parts.node_name,
                role="compute",
                name=result.name,
                started_at=result.started_at,
                duration_ms=result.duration_ms,
                outcome=result.outcome,
                detail=result.detail,
                causes=result.causes,
            )
        )
        now = self._parts.world.clock.monotonic()
        if now - self._shown_at >= INTERIM_S:
            self._shown_at = now
            self._records.send_interim(self.held, self.entries)


def _checked(step: Step[Subject], check: Callable[[], None]) -> Step[Subject]:
    """Return a step that first makes sure that it is still wanted."""
    do = step.do

    def checked(subject: Subject) -> str | None:
        check()
        return do(subject)

    return Step(name=step.name, do=checked, undo=step.undo, no_undo=step.no_undo)
