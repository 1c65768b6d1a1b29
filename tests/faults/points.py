"""The crash points that a real node passes in an instance's life, found by living it."""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec
import pytest

from appliance.compute.launch import LAUNCH
from appliance.compute.subject import Subject
from appliance.crash_points import FAIL_AT
from appliance.steps import Step
from tests.faults.life import Environment, Life, template

MOMENTS = ("before", "after")


class Place(msgspec.Struct, frozen=True, order=True):
    """The n-th time that a process comes to a point, and the part of the life in which it did."""

    phase: str
    point: str
    nth: int

    def __str__(self) -> str:
        return f"{self.point}@{self.nth}"


def points_of(steps: Iterable[Step[Subject]]) -> list[str]:
    """Return the crash points that steps must have."""
    return [f"step.{step.name}.{moment}" for step in steps for moment in MOMENTS]


def undo_points(steps: Iterable[Step[Subject]] = LAUNCH) -> list[str]:
    """Return the crash points that the undos of steps must have."""
    return [f"undo.{step.name}.{moment}" for step in steps if step.undo for moment in MOMENTS]


def _traced(environment: Environment, live: Callable[[Life], None]) -> tuple[Life, list[str]]:
    with tempfile.TemporaryDirectory(prefix="anynode-points.") as folder:
        node = template().copy(Path(folder))
        life = Life(node)
        try:
            node.start(**node.tracing, **environment)
            live(life)
        finally:
            node.kill()
        return life, node.trace()


@functools.cache
def of_a_life() -> tuple[Place, ...]:
    """Return every place that a process comes to in a whole life."""
    life, trace = _traced({}, Life.live)
    starts: Mapping[int, str] = {at: name for name, at in life.phases}
    phase, counts, places = "start of the node", Counter[str](), []
    for at, point in enumerate(trace):
        phase = starts.get(at, phase)
        counts[point] += 1
        places.append(Place(phase, point, counts[point]))
    return tuple(places)


@functools.cache
def of_a_failure() -> frozenset[str]:
    """Return the points that a process passes when the last step of a launch fails."""

    def fail(life: Life) -> None:
        life.be_born()
        life.assert_nothing_left()

    return frozenset(_traced({FAIL_AT: points_of(LAUNCH)[-1]}, fail)[1])


def is_whole_matrix(config: pytest.Config) -> bool:
    """Say whether this run is for the whole matrix, and not for the quick cases alone."""
    return bool(config.option.markexpr == "faults")
