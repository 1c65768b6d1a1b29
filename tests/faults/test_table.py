"""The table of faults counts every case once, and one that fails anywhere has failed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.faults.table import Case, Table, render, tabulate, write


def case(group: str, *phases: str) -> Case:
    made = Case(group=group, name=f"{group}-{'-'.join(phases)}")
    for outcome in phases:
        made.note(outcome, 0.5)
    return made


@pytest.mark.parametrize(
    ("phases", "outcome"),
    [
        (("passed", "passed", "passed"), "passed"),
        (("passed", "failed", "passed"), "failed"),
        (("passed", "passed", "failed"), "failed"),
        (("failed", "passed"), "failed"),
        (("skipped", "passed"), "skipped"),
        (("passed", "skipped", "failed"), "failed"),
    ],
)
def test_outcome_of_a_case(phases: tuple[str, ...], outcome: str) -> None:
    assert case("races", *phases).outcome == outcome


def test_table(tmp_path: Path) -> None:
    cases = [case("races", "passed"), case("kill", "failed"), case("kill", "passed", "passed")]
    table = tabulate(cases, ("-m", "faults"))
    assert render(table) == (
        "group  cases  passed  failed  skipped  seconds\n"
        "kill       2       1       1        0      1.5\n"
        "races      1       1       0        0      0.5\n"
        "all        3       2       1        0      2.0\n"
        "failed: kill-failed\n"
    )
    write(table, tmp_path / "var")
    assert (tmp_path / "var" / "faults.txt").read_text() == render(table)
    written = msgspec.json.decode((tmp_path / "var" / "faults.json").read_bytes(), type=Table)
    assert written == msgspec.convert(msgspec.to_builtins(table), Table)
