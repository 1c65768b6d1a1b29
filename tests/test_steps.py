"""Steps run in order; when one fails, it and those before it are undone in reverse."""

from __future__ import annotations

import pytest

from appliance.errors import Unavailable
from appliance.steps import Step, StepResult, run_steps, undo_steps
from appliance.world import World


class Trace:
    """Notes what is done, and fails where it is told to."""

    def __init__(self, *failing: str) -> None:
        self.done: list[str] = []
        self.results: list[StepResult] = []
        self.failing = failing

    def do(self, name: str) -> None:
        self.done.append(name)
        if name in self.failing:
            raise Unavailable(f"{name} failed.") from OSError("the cause")


def step(name: str, *, has_undo: bool = True) -> Step[Trace]:
    return Step(
        name=name,
        do=lambda trace: trace.do(name),
        undo=(lambda trace: trace.do(f"-{name}")) if has_undo else None,
        no_undo="" if has_undo else "there is nothing to undo",
    )


STEPS = (step("a"), step("b", has_undo=False), step("c"), step("d"))


def outcomes(trace: Trace) -> list[tuple[str, str]]:
    return [(result.name, result.outcome) for result in trace.results]


def test_all_go_well() -> None:
    trace = Trace()
    assert run_steps(STEPS, trace, world=World(), record=trace.results.append) is None
    assert trace.done == ["a", "b", "c", "d"]
    assert outcomes(trace) == [(name, "ok") for name in "abcd"]


@pytest.mark.parametrize(
    ("failing", "done"),
    [
        ("a", ["a", "-a"]),
        ("b", ["a", "b", "-a"]),
        ("c", ["a", "b", "c", "-c", "-a"]),
        ("d", ["a", "b", "c", "d", "-d", "-c", "-a"]),
    ],
)
def test_what_was_done_is_undone(failing: str, done: list[str]) -> None:
    trace = Trace(failing)
    failure = run_steps(STEPS, trace, world=World(), record=trace.results.append)
    assert trace.done == done
    assert failure
    assert (failure.step, failure.is_clean) == (failing, True)
    assert failure.sentence == f"Step {failing} failed: {failing} failed. OSError: the cause"
    failed = next(result for result in trace.results if result.name == failing)
    assert (failed.outcome, failed.causes) == (
        "failed",
        (f"{failing} failed.", "OSError: the cause"),
    )
    assert outcomes(trace)[-1] == ("undo a", "undone")


@pytest.mark.parametrize("failing", ["a", "c"])
def test_what_an_earlier_run_may_have_done_is_undone_too(failing: str) -> None:
    trace = Trace(failing)
    run_steps(STEPS, trace, world=World(), record=trace.results.append, earlier=STEPS)
    assert trace.done[-3:] == ["-d", "-c", "-a"]
    assert trace.done.count("-c") == 1


def test_an_undo_that_fails_does_not_keep_the_others_from_it() -> None:
    trace = Trace("d", "-c")
    failure = run_steps(STEPS, trace, world=World(), record=trace.results.append)
    assert failure
    assert not failure.is_clean
    assert trace.done[-3:] == ["-d", "-c", "-a"]
    assert outcomes(trace)[-2:] == [("undo c", "failed"), ("undo a", "undone")]


def test_crash_points_surround_each_step() -> None:
    points: list[str] = []
    trace = Trace("c")
    run_steps(STEPS, trace, world=World(crash=points.append), record=trace.results.append)
    assert points == [
        *("step.a.before", "step.a.after", "step.b.before", "step.b.after", "step.c.before"),
        *("undo.c.before", "undo.c.after", "undo.a.before", "undo.a.after"),
    ]


def test_undo_alone() -> None:
    trace = Trace()
    assert undo_steps(STEPS, trace, world=World(), record=trace.results.append)
    assert trace.done == ["-d", "-c", "-a"]


def test_a_missing_undo_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="needs an undo"):
        Step(name="x", do=lambda subject: None)
    with pytest.raises(ValueError, match="needs an undo"):
        Step(name="x", do=lambda subject: None, undo=lambda subject: None, no_undo="why?")
