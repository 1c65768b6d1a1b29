"""The command lines of all programs that run in a rig, short-lived ones included."""

from __future__ import annotations

import os
import threading
from types import TracebackType

_EVERY_S = 0.01


class CommandWatch:
    """Collects command lines into ``seen`` while its ``with`` block lasts."""

    def __init__(self, pid: int) -> None:
        self.seen: set[str] = set()
        self._namespace = os.readlink(f"/proc/{pid}/ns/pid")
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> CommandWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(_EVERY_S):
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    if os.readlink(f"/proc/{pid}/ns/pid") == self._namespace:
                        with open(f"/proc/{pid}/cmdline", "rb") as file:
                            self.seen.add(file.read().replace(b"\0", b" ").decode(errors="replace"))
                except OSError:
                    continue
