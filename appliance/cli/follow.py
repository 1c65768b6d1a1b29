"""Following an instance: its timeline as it grows, until the instance has come to rest."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from appliance.cli import timeline_view
from appliance.cli.output import console, say

if TYPE_CHECKING:
    from appliance.model import TimelineEntry
    from appliance.store import Store
    from appliance.store.overview import InstanceLine

_POLL_S = 0.25
_UNDER_WAY = ("pending", "stopping", "shutting-down")


def read_timeline(
    store: Store, instance_id: str
) -> tuple[InstanceLine | None, list[TimelineEntry]]:
    """Return an instance, ``None`` when only its history is left, and its timeline."""
    from appliance.store import overview, timeline

    return store.read(
        lambda tx: (
            next(iter(overview.list_instances(tx, ids=[instance_id])), None),
            timeline.of_instance(tx, instance_id),
        )
    )


def ending_words(instance_id: str, line: InstanceLine | None) -> str:
    """Return the sentence that says what the instance is now."""
    if line is None:
        return f"{instance_id} is no longer kept; this is its history."
    at = f" at {line.addresses[0]}" if line.addresses else ""
    on = f" on {line.node_name}" if line.node_name and line.state != "terminated" else ""
    reason = f": {line.reason_message}" if line.reason_message else ""
    return f"{instance_id} is {line.state}{on}{at}{reason}"


def follow_timeline(
    store: Store,
    instance_id: str,
    *,
    deadline_s: float | None = None,
    is_last_only: bool = False,
) -> InstanceLine | None:
    """Show a timeline as it grows and return the instance once it has come to rest.

    On a terminal a table is drawn anew, elsewhere each entry is a line.

    :param deadline_s: seconds after which it gives up and returns the instance as it is.
    :param is_last_only: only the last request of the instance.
    """
    target = console()
    shown: _Lines | _Table = _Table(target) if target.is_terminal else _Lines()
    line: InstanceLine | None = None
    with shown:
        for now, entries in _watch(store, instance_id, deadline_s):
            line = now
            kept = timeline_view.sections(entries)
            shown.update(kept[-1:] if is_last_only else kept)
    say(ending_words(instance_id, line))
    return line


def wait_until_settled(store: Store, instance_id: str, deadline_s: float) -> InstanceLine | None:
    """Return an instance once it has come to rest, or as it is after the deadline."""
    return list(_watch(store, instance_id, deadline_s))[-1][0]


def _watch(
    store: Store, instance_id: str, deadline_s: float | None
) -> Iterator[tuple[InstanceLine | None, list[TimelineEntry]]]:
    """Yield an instance and its timeline until it rests, and once more after that."""
    end = time.monotonic() + deadline_s if deadline_s else None
    while True:
        line, entries = read_timeline(store, instance_id)
        yield line, entries
        if line is None or line.state not in _UNDER_WAY:
            break
        if end is not None and time.monotonic() > end:
            break
        time.sleep(_POLL_S)
    yield read_timeline(store, instance_id)


class _Lines:
    """Prints each entry once."""

    def __init__(self) -> None:
        self._shown: set[tuple[object, ...]] = set()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def update(self, sections: Sequence[timeline_view.Section]) -> None:
        """Print what is new."""
        for section in sections:
            for entry in section.entries:
                key = (entry.epoch, entry.role, entry.name, entry.started_at)
                if key not in self._shown:
                    self._shown.add(key)
                    say(timeline_view.line(entry, section.started_at))


class _Table:
    """Draws the tables anew in place."""

    def __init__(self, target: Any) -> None:
        from rich.live import Live

        self._live = Live(console=target, refresh_per_second=8)

    def __enter__(self) -> _Table:
        self._live.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._live.__exit__(*exception)

    def update(self, sections: Sequence[timeline_view.Section]) -> None:
        """Draw what there is now."""
        from rich.console import Group

        parts: list[Any] = []
        for section in sections:
            parts += [timeline_view.heading(section), timeline_view.table(section)]
        self._live.update(Group(*parts))
