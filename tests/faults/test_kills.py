"""A real node process is killed at every crash point of an instance's life, and goes on later."""

from __future__ import annotations

import pytest

from appliance.compute.launch import LAUNCH, REJOIN, REMOVAL, STOP
from appliance.crash_points import CRASH_AT
from tests.faults import points
from tests.faults.conftest import MakeLife
from tests.faults.life import STATE_S
from tests.faults.points import Place, points_of, undo_points

QUICK = (
    Place("launch", "step.attach-ports.after", 1),
    Place("launch", "step.start.after", 1),
    Place("stop", "step.shut-down.after", 1),
    Place("terminate", "step.forget.after", 1),
)
"""The cases that every run of the tests tries."""

STARTED = "step.start.after"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Enumerate the places where a process can be killed by living a life."""
    if "place" in metafunc.fixturenames:
        metafunc.parametrize("place", [_case(place) for place in _places(metafunc.config)])


def _places(config: pytest.Config) -> tuple[Place, ...]:
    if not points.is_whole_matrix(config):
        return QUICK
    try:
        return points.of_a_life()
    except Exception:
        # Nobody can live here: the test of the enumeration fails and says why.
        return QUICK


def _case(place: Place) -> object:
    is_quick = (place.point, place.nth) in [(one.point, one.nth) for one in QUICK]
    mark = pytest.mark.faults(f"kill: {place.phase}", quick=is_quick)
    return pytest.param(place, id=str(place), marks=mark)


@pytest.mark.faults("kill: enumeration", quick=True)
def test_every_step_and_undo_has_its_crash_points() -> None:
    lived = {place.point for place in points.of_a_life()}
    assert {*points_of(LAUNCH), *points_of(STOP), *points_of(REMOVAL)} <= lived
    assert {*points_of(LAUNCH), *undo_points()} <= points.of_a_failure()


def test_killed(make_life: MakeLife, place: Place) -> None:
    make_life({CRASH_AT: str(place)}).survive()


@pytest.mark.faults("kill: rejoin")
@pytest.mark.parametrize("point", points_of(REJOIN))
def test_killed_while_it_rejoins_what_runs(make_life: MakeLife, point: str) -> None:
    life = make_life({CRASH_AT: STARTED})
    life.lives = [{CRASH_AT: point, **life.node.tracing}]
    life.be_born()
    life.reach("running")
    assert life.deaths == 2
    passed = life.node.trace()
    assert passed[-1] == point
    assert "step.create-disks.before" not in passed, "it rejoins, and does not launch again"
    life.assert_sound()
    life.terminate()
    life.assert_nothing_left()


@pytest.mark.faults("kill: again and again")
@pytest.mark.parametrize("first", [LAUNCH[0].name, LAUNCH[-2].name])
def test_killed_at_each_point_in_turn(make_life: MakeLife, first: str) -> None:
    every = points_of(LAUNCH)
    deadly = every[every.index(f"step.{first}.before") :]
    life = make_life(*({CRASH_AT: point} for point in deadly))
    life.be_born()
    life.reach("running", STATE_S * len(deadly))
    assert life.deaths == len(deadly)
    life.assert_sound()
    life.terminate()
    life.assert_nothing_left()
