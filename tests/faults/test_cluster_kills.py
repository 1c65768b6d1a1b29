"""Each process of a cluster is killed at every crash point of a launch and a termination."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from appliance.compute.launch import LAUNCH, REMOVAL
from appliance.crash_points import CRASH_AT, HOLD_AT
from tests.faults.mortals import APIS, STATE_S, Mortals
from tests.faults.points import MOMENTS, points_of

ZONE = "local-1a"
"""That of the hypervisor that dies."""

MOST_LIVES = 12
"""Instances after which the work of two equal nodes has certainly come to the one that dies."""

OF_CONTROL = (
    *(f"bus.{moment}.{kind}" for kind in ("Place", "Report", "Wanted") for moment in MOMENTS),
    "bus.published",
    *(f"store.{moment}-commit" for moment in MOMENTS),
)
OF_HYPERVISOR = (
    *points_of(LAUNCH),
    *points_of(REMOVAL),
    *(f"bus.{moment}.{kind}" for kind in ("Order", "ReportConfirmed") for moment in MOMENTS),
    *("report.running.before", "report.gone.before"),
    *(f"journal.{name}.{moment}-commit" for name in ("compute", "datapath") for moment in MOMENTS),
)
HOW_OFTEN = {
    **dict.fromkeys((f"store.{moment}-commit" for moment in MOMENTS), 20),
    **dict.fromkeys((f"journal.compute.{moment}-commit" for moment in MOMENTS), 10),
    **dict.fromkeys((f"journal.datapath.{moment}-commit" for moment in MOMENTS), 6),
    "bus.published": 3,
}
"""Times that a process comes to a point in one life, where it is more than once for each."""

QUICK = (
    ("n1", "store.after-commit@8"),
    ("n2", "bus.after.Place@1"),
    ("n3", "step.define.after@1"),
    ("n3", "step.forget.after@1"),
)
"""The cases that every run of the tests tries."""


def places(points: Iterable[str]) -> Iterator[str]:
    for point in points:
        is_twice = point.startswith("bus.")
        for nth in range(1, HOW_OFTEN.get(point, 2 if is_twice else 1) + 1):
            yield f"{point}@{nth}"


def cases() -> Iterator[object]:
    of_roles = {"n1": OF_CONTROL, "n2": OF_CONTROL, "n3": OF_HYPERVISOR}
    names = {"n1": "a control node", "n2": "another control node", "n3": "a hypervisor"}
    for node, points in of_roles.items():
        for place in places(points):
            mark = pytest.mark.faults(
                f"cluster: {names[node]} killed", quick=(node, place) in QUICK
            )
            yield pytest.param(node, place, id=f"{node}-{place}", marks=mark)


def live(cluster: Mortals) -> str:
    """Launch an instance and terminate it, and revive whoever dies meanwhile."""

    def revive() -> None:
        for node in cluster.mortals.values():
            node.revive_if_dead()

    ids = cluster.born(via=APIS, zone=ZONE)
    cluster.reach("running", *ids, via=APIS, meanwhile=revive)
    cluster.end(*ids, via=APIS)
    cluster.reach("terminated", *ids, via=APIS, meanwhile=revive)
    return ids[0]


@pytest.mark.faults("cluster: enumeration")
def test_the_matrix_has_every_point_of_a_life(cluster: Mortals) -> None:
    for node in cluster.mortals.values():
        node.kill()
        node.begin(**node.tracing)
    cluster.wait_known(*cluster.nodes)
    for _ in range(4):
        live(cluster)
    cluster.assert_sound()
    passed = {name: {*node.trace()} for name, node in cluster.mortals.items()}
    assert passed["n1"] | passed["n2"] == {*OF_CONTROL}
    assert passed["n3"] == {*OF_HYPERVISOR}
    for node in cluster.mortals.values():
        node.kill()
        node.begin()


@pytest.mark.parametrize(("name", "place"), [*cases()])
def test_killed(cluster: Mortals, name: str, place: str) -> None:
    """Its process dies there, another follows, and nothing is left or lost."""
    node = cluster.mortals[name]
    node.kill()
    node.deaths = 0
    node.begin(**{CRASH_AT: place})
    node.revive_if_dead()
    lived: list[str] = []
    while not node.deaths:
        assert len(lived) < MOST_LIVES, f"{name} never came to {place}"
        lived.append(live(cluster))
        node.revive_if_dead()
    lived.append(live(cluster))
    cluster.assert_sound()
    cluster.assert_gone(*lived)
    cluster.assert_visible(*lived, via=APIS)
    assert node.deaths == 1


ON_THE_WAY = ("bus.before.Order", "bus.after.Order", *points_of(LAUNCH))


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(
            point,
            marks=pytest.mark.faults(
                "cluster: terminated at a second API node", quick=point == "step.inject.before"
            ),
        )
        for point in ON_THE_WAY
    ],
)
def test_t37_terminated_at_another_api_while_a_launch_stands(cluster: Mortals, point: str) -> None:
    node = cluster.mortals["n3"]
    node.kill()
    node.trace_path.unlink(missing_ok=True)
    node.hold_path.touch()
    node.begin(**node.tracing, **{HOLD_AT: f"{point}={node.hold_path}"})
    ids = cluster.born(via=["n1"], zone=ZONE)
    try:
        cluster.wait_for(lambda: point in node.trace(), f"n3 to be at {point}")
        cluster.end(*ids, via=["n2"])
        cluster.end(*ids, via=["n1"])
    finally:
        node.hold_path.unlink()
    (found,) = cluster.reach("terminated", *ids, via=["n2"], seconds=STATE_S).values()
    assert found["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    cluster.assert_sound()
    cluster.assert_gone(*ids)
