"""A timeline as a table: one bar per hop or step, drawn against the time of its request."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.cli.output import make_table, milliseconds, moment, printable, styled

if TYPE_CHECKING:
    from appliance.model import TimelineEntry

BAR_COLUMNS = 24
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_UNDO = "undo "


@dataclass(frozen=True, kw_only=True)
class Section:
    """The hops and steps of one request, with the span of time that they took."""

    request_id: str
    entries: tuple[TimelineEntry, ...]

    @property
    def started_at(self) -> float:
        """When the first began, in seconds since the epoch."""
        return min(entry.started_at for entry in self.entries)

    @property
    def duration_ms(self) -> float:
        """From the first beginning to the last end."""
        end = max(entry.started_at + entry.duration_ms / 1000 for entry in self.entries)
        return (end - self.started_at) * 1000


def sections(entries: Iterable[TimelineEntry]) -> list[Section]:
    """Return the entries by request, in the order in which the requests came."""
    found: dict[str, list[TimelineEntry]] = {}
    for entry in entries:
        found.setdefault(entry.request_id, []).append(entry)
    return [
        Section(request_id=request_id, entries=tuple(items)) for request_id, items in found.items()
    ]


def bar(offset: float, share: float, columns: int = BAR_COLUMNS) -> str:
    """Return a bar that begins at a part of the whole and covers a part of it, both 0 to 1."""
    begin = min(int(offset * columns), columns - 1)
    eighths = max(round(share * columns * 8), 1)
    full, rest = divmod(min(eighths, (columns - begin) * 8), 8)
    drawn = "█" * full + (_EIGHTHS[rest] if rest else "")
    return (" " * begin + drawn).ljust(columns)


def table(section: Section) -> Any:
    """Return the table of one request."""
    rows = [_row(section, entry) for entry in section.entries]
    columns = ("step", "role", "node", "start>", "took>", "", "outcome", "detail")
    return make_table(columns, rows)


def _row(section: Section, entry: TimelineEntry) -> tuple[object, ...]:
    from rich.text import Text

    whole_ms = max(section.duration_ms, 0.001)
    offset_ms = (entry.started_at - section.started_at) * 1000
    drawn = bar(offset_ms / whole_ms, entry.duration_ms / whole_ms)
    colour = {"failed": "red", "refused": "red", "undone": "yellow"}.get(entry.outcome, "cyan")
    return (
        step_words(entry.name),
        entry.role,
        entry.node,
        f"+{milliseconds(offset_ms)}",
        milliseconds(entry.duration_ms),
        Text(drawn, style=colour),
        styled(entry.outcome),
        detail_words(entry),
    )


def step_words(name: str) -> str:
    """Return the name of a step; one that undoes another is marked."""
    return f"↶ {name.removeprefix(_UNDO)}" if name.startswith(_UNDO) else name


def detail_words(entry: TimelineEntry) -> str:
    """Return the detail, or the chain of causes, outermost first, a line each."""
    lines = [entry.detail] if entry.detail else []
    lines += [f"{'because: ' if depth else ''}{text}" for depth, text in enumerate(entry.causes)]
    return printable("\n".join(lines))


def heading(section: Section) -> str:
    """Return the line above a table."""
    request = f"Request {section.request_id}, " if section.request_id else ""
    return f"{request}{moment(section.started_at)}, {milliseconds(section.duration_ms)} in all"


def line(entry: TimelineEntry, started_at: float) -> str:
    """Return an entry as one line, for output that cannot be drawn anew."""
    offset_ms = (entry.started_at - started_at) * 1000
    words = [
        f"+{milliseconds(offset_ms):>8}",
        f"{entry.role:<10}",
        f"{step_words(entry.name):<15}",
        f"{milliseconds(entry.duration_ms):>8}",
        f"{entry.outcome:<8}",
        detail_words(entry).replace("\n", " "),
    ]
    return "  ".join(words).rstrip()
