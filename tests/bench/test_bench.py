"""Every benchmark runs; what it measures is nobody's business here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.bench import floor, real_node
from tests.bench.__main__ import lacks, main, table
from tests.bench.benchmarks import BENCHMARKS
from tests.bench.figure import Benchmark, Figure, Figures, cpu_of

LONG = ("cluster-takeover", "cluster-heartbeats", "cluster-node")
"""What takes many seconds even in a tiny form: it is gone through with the matrix."""

_QUICK = [one.name for one in BENCHMARKS if one.name not in ("node", *LONG)]
_ALL = [*_QUICK, *(pytest.param(one, marks=pytest.mark.faults("bench: tiny")) for one in LONG)]


@pytest.mark.node
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", _ALL)
def test_a_benchmark_runs_in_a_tiny_form(name: str) -> None:
    benchmark = next(one for one in BENCHMARKS if one.name == name)
    if lacking := lacks(benchmark):
        pytest.skip(lacking)
    figures = benchmark.measure(True)
    assert figures
    assert all(figure.value > 0 and figure.unit for figure in figures.values())


def test_the_real_node_is_known_and_needs_what_it_needs() -> None:
    node = next(one for one in BENCHMARKS if one.name == "node")
    assert node.needs_root
    assert {"libvirtd", "nft"} <= set(node.programs)
    assert callable(real_node.measure)
    assert callable(floor.main)


def test_figures_are_written_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "made" / "bench.json"
    assert main(["--only", "ranking", "--only", "ranking", "--output", str(path)]) == 0
    written = json.loads(path.read_text())
    assert written["filter ranks 10,000 nodes: CPU"].keys() == {"value", "unit", "target"}
    assert written["filter ranks 10,000 nodes: CPU"]["target"] == 20
    said = capsys.readouterr()
    assert "filter ranks 10,000 nodes: CPU" in said.out
    assert "1/1 ranking" in said.err
    assert main(["--markdown", "--output", str(path)]) == 0
    assert "| filter ranks 10,000 nodes: CPU | " in capsys.readouterr().out


def test_quick_rounds_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    assert main(["--quick", "--only", "protocol", "--output", str(path)]) == 0
    assert not path.exists()


def test_the_list_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [one.name for one in BENCHMARKS]


def test_only_a_target_can_be_missed() -> None:
    figures: Figures = {
        "met": Figure(1.0, "ms", 2.0),
        "missed": Figure(3.0, "ms", 2.0),
        "free": Figure(4.0, "1/s"),
    }
    rows = table(figures).splitlines()
    assert [row.endswith("MISSED") for row in rows] == [False, True, False]


def test_what_lacks_is_named() -> None:
    lacking = Benchmark(
        name="x",
        what="x",
        measure=lambda is_quick: {},
        programs=("no-such-program",),
        files=(Path("/no/such/file"),),
    )
    assert lacks(lacking) == "this machine lacks no-such-program, /no/such/file"


def test_the_clock_of_a_process_runs() -> None:
    before = cpu_of(os.getpid())
    sum(range(200_000))
    assert cpu_of(os.getpid()) > before
