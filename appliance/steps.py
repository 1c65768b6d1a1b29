"""Steps: named actions of a launch or a removal, each with its undo.

A list of steps is run in order; when one fails, its own undo and those before it are run in
reverse. Do and undo are both safe to repeat, so that a run can be taken up again after a crash
from the beginning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from appliance.errors import cause_chain
from appliance.world import World

log = logging.getLogger(__name__)
C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class Step(Generic[C]):
    """One action on what a run is about.

    ``do`` may return words for the timeline. A step without ``undo`` says in ``no_undo`` why it
    needs none.
    """

    name: str
    do: Callable[[C], str | None] | Callable[[C], None]
    undo: Callable[[C], None] | None = None
    no_undo: str = ""

    def __post_init__(self) -> None:
        if (self.undo is None) != bool(self.no_undo):
            raise ValueError(f"Step {self.name} needs an undo or a reason why it has none.")


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What came of one do or undo."""

    name: str
    started_at: float
    duration_ms: float
    outcome: str
    detail: str = ""
    causes: tuple[str, ...] = ()


Record = Callable[[StepResult], None]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A step that failed; ``is_clean`` says whether every undo succeeded."""

    step: str
    error: Exception
    is_clean: bool

    @property
    def sentence(self) -> str:
        """What failed and why, the outermost cause last."""
        return f"Step {self.step} failed: {' '.join(cause_chain(self.error))}"


def run_steps(
    steps: Sequence[Step[C]],
    subject: C,
    *,
    world: World,
    record: Record,
    earlier: Sequence[Step[C]] = (),
) -> Failure | None:
    """Do all steps; on a failure undo what was done, in reverse, and return what failed.

    The failed step is undone, too: how far it got is unknown. So are all those ``earlier`` ones
    that a run which a crash cut off may have done.
    """
    for index, step in enumerate(steps):
        try:
            _do(step, subject, world, record)
        except Exception as error:  # noqa: BLE001 - it is what the caller reports
            is_clean = undo_steps(
                earlier or steps[: index + 1], subject, world=world, record=record
            )
            return Failure(step=step.name, error=error, is_clean=is_clean)
    return None


def undo_steps(steps: Sequence[Step[C]], subject: C, *, world: World, record: Record) -> bool:
    """Undo steps in reverse, whether or not they were done; say whether every undo succeeded."""
    is_clean = True
    for step in reversed(steps):
        if step.undo is None:
            continue
        started_at, started = world.clock.now(), world.clock.monotonic()
        outcome = "undone"
        causes: tuple[str, ...] = ()
        try:
            world.crash(f"undo.{step.name}.before")
            step.undo(subject)
            world.crash(f"undo.{step.name}.after")
        except Exception as error:
            log.exception("undo of step %s failed", step.name)
            outcome, causes = "failed", cause_chain(error)
            is_clean = False
        took_ms = (world.clock.monotonic() - started) * 1000
        record(
            StepResult(
                name=f"undo {step.name}",
                started_at=started_at,
                duration_ms=took_ms,
                outcome=outcome,
                causes=causes,
            )
        )
    return is_clean


def _do(step: Step[C], subject: C, world: World, record: Record) -> None:
    started_at, started = world.clock.now(), world.clock.monotonic()
    outcome, detail = "failed", ""
    causes: tuple[str, ...] = ()
    try:
        world.crash(f"step.{step.name}.before")
        detail = step.do(subject) or ""
        world.crash(f"step.{step.name}.after")
        outcome = "ok"
    except Exception as error:
        causes = cause_chain(error)
        raise
    finally:
        record(
            StepResult(
                name=step.name,
                started_at=started_at,
                duration_ms=(world.clock.monotonic() - started) * 1000,
                outcome=outcome,
                detail=detail,
                causes=causes,
            )
        )
