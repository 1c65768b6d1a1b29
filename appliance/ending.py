"""Ends: of threads, that are waited for so long and no longer, and of the whole process."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable

log = logging.getLogger(__name__)

_SHOWN_CALLS = 8


class Countdown:
    """Seconds that several waits share."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def left_s(self, at_least_s: float = 0.0) -> float:
        """Return the seconds that are left, never fewer than those given."""
        return max(self._until - time.monotonic(), at_least_s)


def end_threads(threads: Iterable[threading.Thread], deadline_s: float) -> bool:
    """Wait for threads that were told to end, the caller's own excepted; say whether they have.

    Those that have not within ``deadline_s`` seconds in all are logged, with where they are.
    """
    others = [thread for thread in threads if thread is not threading.current_thread()]
    countdown = Countdown(deadline_s)
    for thread in others:
        thread.join(countdown.left_s())
    late = [thread for thread in others if thread.is_alive()]
    for thread in late:
        log.warning("the thread %s does not end; it is %s", thread.name, _place_of(thread))
    return not late


def _place_of(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    # The innermost calls are often the standard library's, which do not tell who waits.
    calls = traceback.extract_stack(frame)[-_SHOWN_CALLS:] if frame else []
    places = [f"in {call.name} ({call.filename}:{call.lineno})" for call in reversed(calls)]
    return " called ".join(places) or "about to end"


def end_process() -> None:
    """End this process at once and well, without the interpreter's own end.

    That waits for threads without a limit, and takes the interpreter away from those that run in
    libraries, which the process may not survive.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
