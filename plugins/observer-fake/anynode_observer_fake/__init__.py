"""Observer ``fake``: keeps what it learns in memory, and finds what it is told to find."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from appliance.hookspecs import PluginContext, hookimpl
from appliance.model import Finding, TimelineEntry

api_versions = frozenset({1})


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much it keeps."""

    keep: Annotated[int, Meta(description="number of entries to keep, the newest", ge=1)] = 1000


class Fake:
    """The observer; ``entries`` and ``findings`` are there for tests to read and to set."""

    def __init__(self, keep: int) -> None:
        self.entries: deque[TimelineEntry] = deque(maxlen=keep)
        self.findings: list[Finding] = []

    @hookimpl
    def observer_instance_event(self, entry: TimelineEntry) -> None:
        self.entries.append(entry)

    @hookimpl
    def observer_node_check(self) -> Sequence[Finding]:
        return tuple(self.findings)


def create(settings: Settings, context: PluginContext) -> Fake:
    """Return the observer, with nothing learnt yet."""
    return Fake(settings.keep)
