"""Many histories: whatever is lost, doubled, late, killed or cut off, all comes right again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.history import Broken, History, Template, make_template

BATCH = 25
QUICK = range(0, 150, BATCH)
LONG = range(1000, 4000, BATCH)


@pytest.fixture(scope="module")
def template() -> Iterator[Template]:
    """What all histories begin with, on a file system in memory."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="anynode-simulation.") as name:
        yield make_template(Path(name))


@pytest.mark.parametrize(
    "first",
    [
        *(
            pytest.param(seed, marks=pytest.mark.faults("simulation: histories", quick=True))
            for seed in QUICK
        ),
        *(pytest.param(seed, marks=pytest.mark.faults("simulation: histories")) for seed in LONG),
    ],
)
def test_histories_end_well(template: Template, first: int) -> None:
    for seed in range(first, first + BATCH):
        live(seed, template)


def live(seed: int, template: Template) -> History:
    """Live through one history and remove its files."""
    history = History(seed, template, template.path.parent / str(seed))
    try:
        history.run()
    finally:
        shutil.rmtree(history.directory)
    return history


def test_a_seed_is_one_history(template: Template) -> None:
    assert live(7, template).log == live(7, template).log


def test_a_lost_effect_is_found(template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster whose reports are dropped is broken, and the history says so with its seed."""
    monkeypatch.setattr("appliance.controller.reports.report", lambda *_: None)
    with pytest.raises(Broken, match="seed 3: "):
        live(3, template)


def test_two_copies_are_found_at_once(template: Template) -> None:
    history = History(1, template, template.path.parent / "copies")
    try:
        for machine in history.machines[-2:]:
            machine.running = lambda: {"i-1": 1}  # type: ignore[method-assign]
        with pytest.raises(Broken, match="i-1 runs on n2 and n3"):
            history.run()
    finally:
        shutil.rmtree(history.directory)
