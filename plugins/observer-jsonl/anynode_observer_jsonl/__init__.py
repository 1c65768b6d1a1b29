"""Observer ``jsonl``: appends every step of every instance to a file, one JSON object a line."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from appliance.errors import ConfigError, Unavailable
from appliance.hookspecs import PluginContext, hookimpl
from appliance.model import Finding, TimelineEntry

api_versions = frozenset({1})


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where it writes, and how much is kept."""

    path: Annotated[
        str, Meta(description="absolute path of the file; empty: in the plugin's state folder")
    ] = ""
    max_mib: Annotated[
        int, Meta(description="MiB at which the file becomes the older one, of two", ge=1)
    ] = 100


class JsonLines:
    """The observer; ``problem`` says why the last line could not be written, if so."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.problem = ""
        self._max_bytes = max_bytes
        self._lock = threading.Lock()

    @hookimpl
    def observer_instance_event(self, entry: TimelineEntry) -> None:
        line = msgspec.json.encode(entry) + b"\n"
        try:
            with self._lock:
                self._append(line)
            self.problem = ""
        except OSError as error:
            self.problem = error.strerror or str(error)
            raise Unavailable(f"Could not append to {self.path}: {self.problem}.") from error

    @hookimpl
    def observer_node_check(self) -> Sequence[Finding]:
        if not self.problem:
            return ()
        return (
            Finding(
                code="OBSERVER.JSONL",
                level="warning",
                message=f"The timeline is not written to {self.path}: {self.problem}.",
                subject=str(self.path),
            ),
        )

    def _append(self, line: bytes) -> None:
        # Opened anew for each line, so that whoever moves the file away gets a whole one.
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, line)
            size = os.fstat(fd).st_size
        finally:
            os.close(fd)
        if size >= self._max_bytes:
            self.path.replace(self.path.with_name(f"{self.path.name}.1"))


def create(settings: Settings, context: PluginContext) -> JsonLines:
    """Return the observer; the file is made with its first line."""
    path = Path(settings.path) if settings.path else context.state_dir / "timeline.jsonl"
    if not path.is_absolute():
        raise ConfigError(f"The path of observer 'jsonl' is not absolute: {settings.path!r}.")
    return JsonLines(path, settings.max_mib << 20)
