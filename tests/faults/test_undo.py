"""A step fails and the process is killed while it undoes; it does so again; and all ends well."""

from __future__ import annotations

import pytest

from appliance.compute.launch import LAUNCH, REMOVAL
from appliance.crash_points import CRASH_AT, FAIL_AT
from tests.faults.conftest import MakeLife
from tests.faults.life import Life
from tests.faults.points import points_of, undo_points

LAST = points_of(LAUNCH)[-1]
UNDO_POINTS = undo_points()
QUICK = ("undo.define.after",)
WITH_UNDO = [step for step in LAUNCH if step.undo]


def once(point: str) -> object:
    """Return the parameter of a point that some of the short runs try, too."""
    return pytest.param(point, marks=pytest.mark.faults(quick=point in QUICK))


def assert_failed(life: Life, place: str = LAST) -> None:
    """See that the launch ended for the reason that was made, and nothing is left."""
    life.assert_nothing_left()
    step = place.split(".")[1]
    assert f"Step {step} failed" in life.describe()["StateReason"]["Message"]


def assert_runs_and_goes(life: Life) -> None:
    """See that the launch succeeded in the end, and can be ended."""
    life.reach("running")
    life.assert_sound()
    life.terminate()
    life.assert_nothing_left()


@pytest.mark.faults("undo: killed, then cured")
@pytest.mark.parametrize("point", UNDO_POINTS)
def test_killed_in_the_undo_of_what_then_succeeds(make_life: MakeLife, point: str) -> None:
    life = make_life({FAIL_AT: LAST, CRASH_AT: point})
    life.be_born()
    life.reach("running")
    assert life.deaths == 1
    assert_runs_and_goes(life)


@pytest.mark.faults("undo: killed, then fails on")
@pytest.mark.parametrize("point", UNDO_POINTS)
def test_killed_in_the_undo_of_what_fails_on(make_life: MakeLife, point: str) -> None:
    life = make_life({FAIL_AT: LAST, CRASH_AT: point}, {FAIL_AT: LAST})
    life.be_born()
    assert_failed(life)
    assert life.deaths == 1


@pytest.mark.faults("undo: killed twice")
@pytest.mark.parametrize("point", [once(point) for point in UNDO_POINTS])
def test_killed_in_both_undos(make_life: MakeLife, point: str) -> None:
    dies = {FAIL_AT: LAST, CRASH_AT: point}
    life = make_life(dies, dies, {FAIL_AT: LAST})
    life.be_born()
    assert_failed(life)
    assert life.deaths == 2


@pytest.mark.faults("undo: each step fails")
@pytest.mark.parametrize("point", points_of(WITH_UNDO))
def test_killed_in_the_undo_of_the_step_that_failed(make_life: MakeLife, point: str) -> None:
    name = point.split(".")[1]
    life = make_life({FAIL_AT: point, CRASH_AT: f"undo.{name}.after"}, {FAIL_AT: point})
    life.be_born()
    assert_failed(life, point)
    assert life.deaths == 1


@pytest.mark.faults("undo: fails earlier than it was killed")
@pytest.mark.parametrize("point", points_of(LAUNCH))
def test_killed_and_then_fails_at_the_first_step(make_life: MakeLife, point: str) -> None:
    first = points_of(LAUNCH)[0]
    life = make_life({CRASH_AT: point}, {FAIL_AT: first})
    life.be_born()
    assert_failed(life, first)
    assert life.deaths == 1


@pytest.mark.faults("undo: fails, its removal is killed")
@pytest.mark.parametrize("point", points_of(REMOVAL))
def test_killed_in_the_removal_after_an_undo_that_failed(make_life: MakeLife, point: str) -> None:
    fails = {FAIL_AT: f"{LAST},undo.define.before"}
    life = make_life({**fails, CRASH_AT: point}, fails)
    life.be_born()
    assert_failed(life)
    assert life.deaths == 1


@pytest.mark.faults("undo: of a start")
@pytest.mark.parametrize("point", UNDO_POINTS)
def test_killed_in_the_undo_of_a_start(make_life: MakeLife, point: str) -> None:
    life = make_life({FAIL_AT: f"{LAST}@2", CRASH_AT: point}, {FAIL_AT: LAST})
    life.be_born()
    life.reach("running")
    disk = life.node.config.state_dir / "instances" / life.instance_id / "disk-0.qcow2"
    inode = disk.stat().st_ino
    life.stop()
    life.reach("stopped")
    life.start()
    life.reach("stopped")
    assert life.deaths == 1
    assert life.reach("stopped")["StateReason"]["Message"].startswith("Step start failed")
    life.assert_sound()
    assert disk.stat().st_ino == inode
    life.node.kill()
    life.node.start()
    life.start()
    life.reach("running")
    assert disk.stat().st_ino == inode
    assert_runs_and_goes(life)
