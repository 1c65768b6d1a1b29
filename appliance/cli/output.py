"""What commands print: tables and sentences for people, JSON for programs.

What came from users or instances is shown without control characters, so that no name and no
console can command the terminal.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PLAIN_WIDTH = 1000
"""Columns where the output is no terminal: nothing is wrapped or cut for a program."""

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

STATE_STYLES = {
    "running": "green",
    "pending": "yellow",
    "stopping": "yellow",
    "shutting-down": "yellow",
    "stopped": "dim",
    "terminated": "dim",
    "ok": "green",
    "failed": "bold red",
    "refused": "red",
    "undone": "yellow",
    "skipped": "dim",
    "error": "bold red",
    "warning": "yellow",
}


def printable(text: str) -> str:
    """Return a text without escape sequences and control characters, line ends and tabs kept."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n")))


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--json``; it gets ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def print_json(value: object) -> None:
    """Print a value as indented JSON; structs keep all their fields."""
    import msgspec

    encoded = msgspec.json.encode(_whole(value))
    click.echo(msgspec.json.format(encoded, indent=2).decode())


def _whole(value: object) -> object:
    """Return a value with structs as mappings, since those leave out what has its default."""
    import dataclasses

    import msgspec

    if isinstance(value, msgspec.Struct):
        return {name: _whole(getattr(value, name)) for name in value.__struct_fields__}
    if dataclasses.is_dataclass(value):
        return {one.name: _whole(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _whole(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_whole(item) for item in value]
    return value


def console(*, to_stderr: bool = False) -> Console:
    """Return a console: coloured and as wide as the terminal, or plain and wide elsewhere."""
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    is_terminal = stream.isatty()
    return Console(
        file=stream,
        width=None if is_terminal else PLAIN_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )


def make_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table; the columns that end in ``>`` are numbers and stand to the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(
            name.rstrip(">").upper(), justify="right" if name.endswith(">") else "left"
        )
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else styled(str(cell)) for cell in row))
    return table


def styled(text: str) -> Any:
    """Return a cell, coloured where it is a word that has a colour."""
    from rich.text import Text

    return Text(printable(text), style=STATE_STYLES.get(text, ""))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print a table, or the sentence that says that there is nothing."""
    kept = list(rows)
    if not kept:
        click.echo(empty)
        return
    show(make_table(columns, kept))


def show(*renderables: object) -> None:
    """Print what rich can render, without spaces at the ends of lines where it is no terminal."""
    target = console()
    if target.is_terminal:
        target.print(*renderables, sep="\n")
        return
    with target.capture() as capture:
        target.print(*renderables, sep="\n")
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def say(text: str) -> None:
    """Print a sentence."""
    click.echo(printable(text))


def program_name() -> str:
    """Return what to type to run this program again from this folder."""
    called = Path(sys.argv[0])
    if shutil.which("anynode") == str(called.absolute()) or called.name != "anynode":
        return "anynode"
    try:
        return str(called.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(called)


def say_error(message: str, hint: str = "") -> None:
    """Print an error and its hint on standard error."""
    click.echo(f"{click.style('error:', fg='red', bold=True)} {printable(message)}", err=True)
    if hint:
        click.echo(f"{click.style('hint:', fg='cyan')} {printable(hint)}", err=True)


def moment(at: float | None) -> str:
    """Return a time as this machine's clock shows it; nothing for none."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if at else ""


def span(seconds: float) -> str:
    """Return a duration in its two largest units."""
    left = max(int(seconds), 0)
    for unit, size, smaller, smaller_size in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "m", 60),
        ("m", 60, "s", 1),
    ):
        if left >= size:
            rest = left % size // smaller_size
            return f"{left // size}{unit}{rest:02d}{smaller}"
    return f"{left}s"


def milliseconds(duration_ms: float) -> str:
    """Return a duration of a step: milliseconds, seconds from one on."""
    return f"{duration_ms:.0f} ms" if duration_ms < 1000 else f"{duration_ms / 1000:.2f} s"


def size(count_bytes: float) -> str:
    """Return a number of bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count_bytes < 1024:
            return f"{count_bytes:.0f} {unit}" if unit == "B" else f"{count_bytes:.1f} {unit}"
        count_bytes /= 1024
    return f"{count_bytes:.1f} TiB"
