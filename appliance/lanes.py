"""Threads that work on many keys at once and on one key in sequence."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from appliance.ending import end_threads
from appliance.errors import AnynodeError, cause_chain

log = logging.getLogger(__name__)
T = TypeVar("T")


class Lanes:
    """A bounded number of threads; work of the same key runs in the order of submission.

    The empty key stands for no order. Threads start when there is work and end with :meth:`stop`;
    one that does not end does not keep the process from ending.
    """

    def __init__(self, name: str, threads: int) -> None:
        self._name = name
        self._limit = threads
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._ready: deque[tuple[str, Callable[[], None]]] = deque()
        self._waiting: dict[str, deque[Callable[[], None]]] = {}
        self._asked: set[Future[Any]] = set()
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        # Apart, or each end of work would wake every thread that waits for some.
        self._rested = threading.Condition(lock)
        self._running = 0
        self._is_stopping = False

    def submit(self, key: str, work: Callable[[], None]) -> None:
        """Queue work; what it raises is logged. After :meth:`stop` it is dropped."""
        with self._changed:
            if self._is_stopping:
                return
            if key and key in self._waiting:
                self._waiting[key].append(work)
                return
            if key:
                self._waiting[key] = deque()
            self._ready.append((key, work))
            if self._idle >= len(self._ready):
                self._changed.notify()
            elif len(self._threads) < self._limit:
                name = f"{self._name}-{len(self._threads)}"
                thread = threading.Thread(target=self._loop, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()

    def ask(self, work: Callable[[], T]) -> Future[T]:
        """Queue work in no order, and return what it will answer or raise.

        It is cancelled when it has not begun by the time of :meth:`stop`.
        """
        answer: Future[T] = Future()

        def give() -> None:
            if not answer.set_running_or_notify_cancel():
                return
            try:
                answer.set_result(work())
            # The error is not swallowed: whoever waits for the answer gets it.
            except BaseException as error:  # noqa: BLE001
                answer.set_exception(error)

        with self._changed:
            self._asked.add(answer)
        answer.add_done_callback(self._asked.discard)
        self.submit("", give)
        if self.is_stopping:
            answer.cancel()
        return answer

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                while not self._ready:
                    if self._is_stopping:
                        return
                    self._changed.wait()
                self._idle -= 1
                key, work = self._ready.popleft()
                self._running += 1
            try:
                work()
            except AnynodeError as error:
                log.warning("work of %s failed: %s", key or self._name, _words(error))
            except Exception:
                log.exception("work of %s failed", key or self._name)
            finally:
                self._finish(key)

    def _finish(self, key: str) -> None:
        with self._changed:
            self._running -= 1
            if key:
                if self._waiting[key]:
                    self._ready.append((key, self._waiting[key].popleft()))
                    self._changed.notify()
                else:
                    del self._waiting[key]
            if self._is_quiet():
                self._rested.notify_all()

    def _is_quiet(self) -> bool:
        return not self._ready and not self._running

    @property
    def is_stopping(self) -> bool:
        """Whether no more work is taken."""
        with self._changed:
            return self._is_stopping

    def wait_quiet(self, deadline_s: float) -> bool:
        """Wait until there is nothing to do; say whether that came true in time."""
        with self._changed:
            return self._rested.wait_for(self._is_quiet, deadline_s)

    def stop(self, deadline_s: float) -> bool:
        """Take no more work, finish what runs, drop what waits; say whether it ended in time.

        Threads that go on are logged.
        """
        with self._changed:
            self._is_stopping = True
            self._ready.clear()
            for waiting in self._waiting.values():
                waiting.clear()
            self._changed.notify_all()
            if self._is_quiet():
                self._rested.notify_all()
            asked = tuple(self._asked)
        for answer in asked:
            answer.cancel()
        return end_threads(self._threads, deadline_s)


def _words(error: AnynodeError) -> str:
    return " <- ".join(cause_chain(error))
