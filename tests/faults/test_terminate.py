"""TerminateInstances arrives while a real node stands at a step; some nodes die right after."""

from __future__ import annotations

import pytest

from appliance.compute.launch import LAUNCH, STOP
from appliance.crash_points import HOLD_AT
from tests.faults.conftest import MakeLife
from tests.faults.life import STATE_S, Life
from tests.faults.points import points_of
from tests.rig import wait_for

ON_THE_WAY = [
    f"bus.{moment}.{kind}" for kind in ("Place", "Order") for moment in ("before", "after")
]
LAUNCH_POINTS = [*ON_THE_WAY, *points_of(LAUNCH)]
QUICK = ("step.inject.before",)


def held_life(make_life: MakeLife, point: str, nth: int = 1) -> Life:
    """Return a life on a node that holds at a place."""
    life = make_life()
    life.node.hold_path.touch()
    life.node.start(**life.node.tracing, **{HOLD_AT: f"{point}@{nth}={life.node.hold_path}"})
    return life


def wait_until_held(life: Life, point: str, nth: int = 1) -> None:
    wait_for(lambda: life.node.trace().count(point) == nth, STATE_S, f"the node to be at {point}")


def assert_terminated(life: Life) -> None:
    life.assert_nothing_left()
    reason = life.describe()["StateReason"]
    assert reason["Code"] == "Client.UserInitiatedShutdown"
    assert life.deaths == 0


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(
            point, marks=pytest.mark.faults("terminate: in a launch", quick=point in QUICK)
        )
        for point in LAUNCH_POINTS
    ],
)
def test_terminated_in_a_launch(make_life: MakeLife, point: str) -> None:
    life = held_life(make_life, point)
    life.be_born()
    wait_until_held(life, point)
    life.terminate()
    life.node.hold_path.unlink()
    assert_terminated(life)


@pytest.mark.faults("terminate: in a launch, then killed")
@pytest.mark.parametrize("point", LAUNCH_POINTS)
def test_terminated_in_a_launch_and_killed(make_life: MakeLife, point: str) -> None:
    life = held_life(make_life, point)
    life.be_born()
    wait_until_held(life, point)
    life.terminate()
    life.node.kill()
    life.node.start()
    assert_terminated(life)


@pytest.mark.faults("terminate: in a stop")
@pytest.mark.parametrize("point", points_of(STOP))
def test_terminated_in_a_stop(make_life: MakeLife, point: str) -> None:
    life = held_life(make_life, point)
    life.be_born()
    life.reach("running")
    life.stop()
    wait_until_held(life, point)
    life.terminate()
    life.node.hold_path.unlink()
    assert_terminated(life)


@pytest.mark.faults("terminate: in a start")
@pytest.mark.parametrize("point", points_of(LAUNCH))
def test_terminated_in_a_start(make_life: MakeLife, point: str) -> None:
    life = held_life(make_life, point, 2)
    life.be_born()
    life.reach("running")
    life.stop()
    life.reach("stopped")
    life.start()
    wait_until_held(life, point, 2)
    life.terminate()
    life.node.hold_path.unlink()
    assert_terminated(life)
