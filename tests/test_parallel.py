"""Tests dealt to two processes stay with their file, and the table of faults counts them all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.parallel import rank_of, unit_of

ROOT = Path(__file__).resolve().parents[1]

SUITE = """
import os, pathlib, pytest

@pytest.mark.faults("races: some")
@pytest.mark.parametrize("number", range(6))
def test_one(number):
    with open(pathlib.Path(__file__).with_suffix(".pids"), "a") as file:
        file.write(f"{os.getpid()} ")
    assert number != 5
"""


def test_units_and_their_order() -> None:
    assert unit_of("tests/store/test_nodes.py::TestX::test_y[tests/node/]") == (
        "tests/store/test_nodes.py"
    )
    assert unit_of("tests/node/test_a.py::test_x") == unit_of("tests/node/test_b.py::test_x")
    nodes, others = rank_of("tests/node/test_a.py::test_x"), rank_of("tests/api/test_a.py::test_x")
    assert nodes < rank_of("tests/bus/test_a.py::test_x") < others


def test_two_processes(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"test_{name}.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = faults\n")
    plugins = ("tests.parallel", "tests.faults.table")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-n", "2", "-m", "faults"),
            *(word for name in plugins for word in ("-p", name)),
            *("-c", tmp_path / "pytest.ini", tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    of_files = [(tmp_path / f"test_{name}.pids").read_text().split() for name in "abcd"]
    assert [len(pids) for pids in of_files] == [6] * 4
    assert [len(set(pids)) for pids in of_files] == [1] * 4
    assert len({pids[0] for pids in of_files}) == 2
    row = next(line for line in done.stdout.splitlines() if line.startswith("all "))
    assert row.split()[1:5] == ["24", "20", "4", "0"]
