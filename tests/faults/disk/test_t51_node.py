"""T51: a node whose disk is full, broken or read-only for a while, in one place or everywhere."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from tests.faults.disk.shim import run_case

CODES = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EROFS": errno.EROFS}
PLACES = {
    "instances/": "instances' folders",
    "images/": "image cache",
    "compute.sqlite": "journal",
    "datapath.sqlite": "journal",
    "store.sqlite": "store",
    "": "everything",
}
HARMLESS = {"images/"}
"""Where a launch writes nothing but the time of the use, which only a read-only disk refuses."""

Outcomes = Callable[[str], dict[str, Any]]
run_node = partial(run_case, module="nodes")


@pytest.fixture(scope="module")
def outcomes(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """A function that returns what came of all places with a code; one process runs them all."""

    @cache
    def run(name: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp(name)
        values = ("broken_for_a_while", [*PLACES], CODES[name])
        return dict(run_node(library, folder, *values, deadline_s=280))

    return run


def _params() -> list[Any]:
    return [
        pytest.param(
            *(place, name),
            marks=pytest.mark.faults(f"disk: node, {group}", quick=name == "EIO"),
            id=f"{place or 'everything'}-{name}",
        )
        for place, group in PLACES.items()
        for name in CODES
    ]


@pytest.mark.parametrize(("place", "name"), _params())
def test_t51_a_place_fails_for_a_while(outcomes: Outcomes, place: str, name: str) -> None:
    answer = outcomes(name)[place]
    assert isinstance(answer, dict), answer
    if place not in HARMLESS or name == "EROFS":
        assert answer["hits"] > 0
    if place in ("store.sqlite", ""):
        assert answer["is_refused"]
    if place == "instances/":
        assert answer["states"] == ["terminated", "terminated"]


@pytest.mark.faults("disk: node, really full", quick=True)
def test_t51_a_full_file_system(library: Path, tmp_path: Path) -> None:
    answer = run_node(library, tmp_path, "really_full", deadline_s=120)
    assert answer["is_refused"] or answer["reasons"] or answer["states"]


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("instances", marks=pytest.mark.faults("disk: node, read-only", quick=True)),
        pytest.param("images", marks=pytest.mark.faults("disk: node, read-only")),
    ],
)
def test_t51_a_read_only_file_system(library: Path, tmp_path: Path, place: str) -> None:
    answer = run_node(library, tmp_path, "really_readonly", place, deadline_s=120)
    assert answer["states"] == ["terminated", "terminated"]
    assert all("Read-only file system" in reason for reason in answer["reasons"])


@pytest.mark.faults("disk: API on a full disk", quick=True)
def test_t51_the_api_on_a_full_file_system(library: Path, tmp_path: Path) -> None:
    answer = run_node(library, tmp_path, "api_on_a_full_disk", deadline_s=120)
    assert set(answer["said"]) == {"503 Unavailable"}


@pytest.mark.faults("disk: each write of a life")
@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize(
    "text", ["instances/", "compute.sqlite", "datapath.sqlite", "store.sqlite"]
)
def test_t51_each_write_of_a_launch_and_a_removal_fails_once(
    library: Path, tmp_path: Path, text: str, name: str
) -> None:
    step = 5 if text == "store.sqlite" else 1
    values = ("each_write_of_a_life", text, CODES[name], 1, step)
    assert len(run_node(library, tmp_path, *values, deadline_s=290)) > 3
