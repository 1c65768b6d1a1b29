"""How a timeline is drawn."""

from __future__ import annotations

import os
import time

import pytest

from appliance.cli import output, timeline_view
from appliance.model import TimelineEntry

AT = 1_700_000_000.0


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def entry(
    name: str,
    start_ms: float,
    took_ms: float,
    outcome: str = "ok",
    detail: str = "",
    causes: tuple[str, ...] = (),
    request_id: str = "r-1",
) -> TimelineEntry:
    return TimelineEntry(
        instance_id="i-1",
        epoch=1,
        request_id=request_id,
        node="n1",
        role="compute",
        name=name,
        started_at=AT + start_ms / 1000,
        duration_ms=took_ms,
        outcome=outcome,
        detail=detail,
        causes=causes,
    )


FAILED = [
    entry("bind", 0, 250, detail="10.64.0.5"),
    entry("define", 250, 500, "failed", causes=("Could not define i-1.", "Error: no\x1b[2J")),
    entry("undo define", 750, 250, "undone"),
    entry("forget", 5000, 10, request_id="r-2"),
]


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = timeline_view.sections(FAILED)
    assert timeline_view.heading(first) == "Request r-1, 2023-11-14 22:13:20, 1.00 s in all"
    assert second.duration_ms == pytest.approx(10, abs=0.01)
    output.show(timeline_view.table(first))
    printed = capsys.readouterr().out.splitlines()
    assert [line.split() for line in printed] == [
        *(["STEP", "ROLE", "NODE", "START", "TOOK", "OUTCOME", "DETAIL"],),
        *(["bind", "compute", "n1", "+0", "ms", "250", "ms", "█" * 6, "ok", "10.64.0.5"],),
        [
            *("define", "compute", "n1", "+250", "ms", "500", "ms", "█" * 12, "failed"),
            *("Could", "not", "define", "i-1."),
        ],
        *(["because:", "Error:", "no"],),
        *(["↶", "define", "compute", "n1", "+750", "ms", "250", "ms", "█" * 6, "undone"],),
    ]
    at = printed[1].index("█")
    assert [line.index("█") - at for line in printed if "█" in line] == [0, 6, 18]


def test_line() -> None:
    assert timeline_view.line(FAILED[1], AT) == (
        "+  250 ms  compute     define             500 ms  failed    "
        "Could not define i-1. because: Error: no"
    )


@pytest.mark.parametrize(
    ("offset", "share", "drawn"),
    [
        (0, 1, "████████"),
        (0, 0, "▏       "),
        (0.5, 0.5, "    ████"),
        (1, 0, "       ▏"),
        (0.9, 0.9, "       █"),
        (0, 0.19, "█▌      "),
    ],
)
def test_bar(offset: float, share: float, drawn: str) -> None:
    assert timeline_view.bar(offset, share, 8) == drawn


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain [red]text[/red]", "plain [red]text[/red]"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07rest", "rest"),
        ("\x1b]52;c;aGk=\x1b\\rest", "rest"),
        ("a\r\nb\tc", "a\nb\tc"),
        ("over\rwrite\b\x00\x9b2J", "overwrite2J"),
        ("\x1b[?25l\x1bcreset", "reset"),
    ],
)
def test_printable(given: str, shown: str) -> None:
    assert output.printable(given) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (59, "59s"), (61, "1m01s"), (3660, "1h01m"), (90000, "1d01h"), (-1, "0s")],
)
def test_span(seconds: float, shown: str) -> None:
    assert output.span(seconds) == shown


def test_sizes() -> None:
    assert [output.size(n) for n in (0, 1023, 1536, 5 << 20, 3 << 30, 5 << 40)] == [
        *("0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.0 GiB", "5.0 TiB")
    ]


def test_colours_are_for_terminals_only(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("a",), [("failed",)], "")
    assert "\x1b" not in capsys.readouterr().out
    assert os.environ.get("FORCE_COLOR") is None
