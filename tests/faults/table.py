"""The table of the faults that were tried: what came of each group, printed and written to var/.

Loaded by the root ``conftest.py``. A test feeds it with ``@pytest.mark.faults("its group")``.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

import msgspec
import pytest

MARKER = "faults"


class Case(msgspec.Struct, kw_only=True):
    """One test that injects a fault. ``outcome`` is passed, failed or skipped."""

    group: str
    name: str
    outcome: str = "passed"
    seconds: float = 0.0

    def note(self, outcome: str, seconds: float) -> None:
        """Add what came of one of its phases: one that fails, fails it."""
        self.seconds += seconds
        if outcome == "failed" or self.outcome == "passed":
            self.outcome = outcome


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a group."""

    group: str
    cases: int
    passed: int
    failed: int
    skipped: int
    seconds: float


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """All rows, their sum, and what failed. ``arguments`` tells a part from the whole matrix."""

    arguments: Sequence[str]
    rows: Sequence[Row]
    total: Row
    failures: Sequence[str]


def tabulate(cases: Iterable[Case], arguments: Sequence[str] = ()) -> Table:
    """Return the table of cases, groups in the order of their names."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    every = [case for group in groups.values() for case in group]
    return Table(
        arguments=arguments,
        rows=[_row(name, groups[name]) for name in sorted(groups)],
        total=_row("all", every),
        failures=sorted(case.name for case in every if case.outcome == "failed"),
    )


def _row(group: str, cases: Sequence[Case]) -> Row:
    outcomes = [case.outcome for case in cases]
    return Row(
        group=group,
        cases=len(cases),
        passed=outcomes.count("passed"),
        failed=outcomes.count("failed"),
        skipped=outcomes.count("skipped"),
        seconds=round(sum(case.seconds for case in cases), 1),
    )


def render(table: Table) -> str:
    """Return the table as text."""
    head = Row.__struct_fields__
    rows = [[str(getattr(row, name)) for name in head] for row in (*table.rows, table.total)]
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(
            word.rjust(width) if i else word.ljust(width)
            for i, (word, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (head, *rows)
    ]
    return "\n".join([*lines, *(f"failed: {name}" for name in table.failures)]) + "\n"


def write(table: Table, folder: Path) -> None:
    """Write the table to ``faults.json`` and ``faults.txt`` in a folder."""
    folder.mkdir(exist_ok=True)
    encoded = msgspec.json.format(msgspec.json.encode(table), indent=2)
    (folder / "faults.json").write_bytes(encoded + b"\n")
    (folder / "faults.txt").write_text(render(table))


_notes = pytest.StashKey["_Notes"]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin an empty table."""
    config.stash[_notes] = _Notes()
    config.pluginmanager.register(config.stash[_notes])


def _group(item: pytest.Item) -> str | None:
    markers = list(item.iter_markers(MARKER))
    named = (marker.args[0] for marker in markers if marker.args)
    return str(next(named, item.path.stem)) if markers else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say in a report that its test is a case; another process may read it."""
    report = yield
    group = _group(item)
    if group is not None:
        report.user_properties.append((MARKER, group))
    return report


class _Notes:
    """Notes what came of each phase of a test that is a case."""

    def __init__(self) -> None:
        self.cases: dict[str, Case] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        group = dict(report.user_properties).get(MARKER)
        if group is not None:
            case = self.cases.setdefault(report.nodeid, Case(group=str(group), name=report.nodeid))
            case.note(report.outcome, report.duration)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print and write the table of a run that asked for the matrix."""
    cases = config.stash[_notes].cases
    if not cases or config.option.markexpr != MARKER:
        return
    table = tabulate(cases.values(), config.invocation_params.args)
    terminalreporter.section(MARKER)
    terminalreporter.write(render(table))
    write(table, config.rootpath / "var")
