"""Connections to libvirtd: opened when needed, opened again when lost, never waited on for ever.

libvirt's calls have no deadline of their own, so each runs on a thread of its own that the caller
waits for so long and no longer. Keep-alive messages end the calls that a dead daemon left behind.

No connection carries two calls at once. libvirt 9's client takes the whole process down, or waits
for ever, when one with several calls under way is closed for want of keep-alive answers.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import libvirt

from appliance.errors import AnynodeError, CommandFailed, Conflict, NotFound, Unavailable

log = logging.getLogger(__name__)
T = TypeVar("T")

_MOST_CALLS = 64
_KEPT_CONNECTIONS = 8
_KEEPALIVE_S = 5
_KEEPALIVE_COUNT = 3

_NOT_FOUND = frozenset({libvirt.VIR_ERR_NO_DOMAIN})
_CONFLICT = frozenset({libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_DOM_EXIST})
_BUSY = frozenset({libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_ERR_NO_CONNECT})

_loop_lock = threading.Lock()
_loop: threading.Thread | None = None


def translated(error: libvirt.libvirtError, attempt: str) -> AnynodeError:
    """Return our error for one of libvirt's; ``attempt`` completes "Could not …"."""
    code = error.get_error_code()
    text = f"Could not {attempt}: {error.get_error_message()}."
    if code in _NOT_FOUND:
        return NotFound(text)
    if code in _CONFLICT:
        return Conflict(text)
    if code in _BUSY:
        return Unavailable(text)
    return CommandFailed(text)


class Connection:
    """Calls to one libvirtd, from any thread.

    One connection is for events alone, and each call has another one to itself. ``on_open`` runs
    with each fresh connection for events before anything else does; ``on_event`` is given domain,
    event and detail of each life-cycle event, on libvirt's event thread. ``revive`` is called when
    libvirtd cannot be reached, and may start it.
    """

    def __init__(
        self,
        uri: str,
        *,
        on_open: Callable[[Any], None],
        on_event: Callable[[Any, int, int], None],
        revive: Callable[[], object] | None = None,
    ) -> None:
        self.uri = uri
        self._revive = revive
        self._on_open = on_open
        self._on_event = on_event
        self._open_lock = threading.Lock()
        self._live: Any = None
        self._idle: list[Any] = []
        self._idle_lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(_MOST_CALLS)

    @property
    def is_alive(self) -> bool:
        """Whether there is a connection and its last sign of life is recent."""
        live = self._live
        return live is not None and _is_alive(live)

    def call(self, attempt: str, work: Callable[[Any], T], *, deadline_s: float) -> T:
        """Return what ``work`` answers when it is given an open connection.

        It is done once more when the connection turns out to be dead, so it must be safe to repeat.

        :param attempt: completes "Could not …".
        :raises Unavailable: libvirtd does not answer, or not within ``deadline_s``; the work may
            still be done later.
        """
        if not self._slots.acquire(blocking=False):
            raise Unavailable(
                f"Could not {attempt}: {_MOST_CALLS} calls wait for libvirtd.", hint=self._hint
            )
        answer: concurrent.futures.Future[T] = concurrent.futures.Future()
        threading.Thread(
            target=self._work, args=(answer, attempt, work), name="libvirt-call", daemon=True
        ).start()
        try:
            return answer.result(deadline_s)
        except concurrent.futures.TimeoutError as error:
            raise Unavailable(
                f"Could not {attempt}: libvirtd did not answer within {deadline_s:g} s.",
                hint=self._hint,
            ) from error

    @property
    def _hint(self) -> str:
        return f"See whether `virsh -c {self.uri} list` answers, and libvirtd's log."

    def _work(
        self, answer: concurrent.futures.Future[T], attempt: str, work: Callable[[Any], T]
    ) -> None:
        try:
            answer.set_result(self._attempt(attempt, work))
        # The error is not swallowed: whoever waits for the answer gets it.
        except BaseException as error:  # noqa: BLE001
            answer.set_exception(error)
        finally:
            self._slots.release()

    def _attempt(self, attempt: str, work: Callable[[Any], T]) -> T:
        for is_last in (False, True):
            self._opened()
            live = None
            try:
                live = self._take()
                return self._use(live, work)
            except libvirt.libvirtError as error:
                if live is not None and _is_alive(live):
                    raise translated(error, attempt) from error
                if is_last:
                    raise Unavailable(
                        f"Could not {attempt}: libvirtd went away: {error.get_error_message()}.",
                        hint=self._hint,
                    ) from error
            log.info("the connection to libvirtd broke; once more with a new one")
        raise AssertionError("unreachable")

    def _take(self) -> Any:
        """Return a connection that nobody else uses."""
        with self._idle_lock:
            while self._idle:
                live = self._idle.pop()
                if _is_alive(live):
                    return live
        live = libvirt.open(self.uri)
        _keep_alive(live)
        return live

    def _use(self, live: Any, work: Callable[[Any], T]) -> T:
        """Work with a connection and keep it for the next call, if there are not enough."""
        try:
            return work(live)
        finally:
            if _is_alive(live):
                with self._idle_lock:
                    if len(self._idle) < _KEPT_CONNECTIONS:
                        self._idle.append(live)

    def _opened(self) -> Any:
        with self._open_lock:
            if self._live is not None and _is_alive(self._live):
                return self._live
            self._live = None
            _run_event_loop()
            try:
                live = self._reached()
                _keep_alive(live)
                live.domainEventRegisterAny(
                    None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None
                )
                self._on_open(live)
            except libvirt.libvirtError as error:
                raise Unavailable(
                    f"libvirtd at {self.uri} does not answer: {error.get_error_message()}.",
                    hint=self._hint,
                ) from error
            log.info("connected to libvirtd at %s", self.uri)
            self._live = live
            return live

    def _reached(self) -> Any:
        try:
            return libvirt.open(self.uri)
        except libvirt.libvirtError:
            if self._revive is None:
                raise
        try:
            self._revive()
        except AnynodeError as error:
            raise Unavailable(
                f"libvirtd at {self.uri} does not answer and cannot be started.", hint=error.hint
            ) from error
        return libvirt.open(self.uri)

    def _lifecycle(self, _live: Any, domain: Any, event: int, detail: int, _opaque: None) -> None:
        self._on_event(domain, event, detail)


def _keep_alive(live: Any) -> None:
    try:
        live.setKeepAlive(_KEEPALIVE_S, _KEEPALIVE_COUNT)
    except libvirt.libvirtError as error:
        # A hypervisor inside this process has no daemon that could fall silent.
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise


def _is_alive(live: Any) -> bool:
    try:
        return bool(live.isAlive())
    except libvirt.libvirtError:
        return False


def _run_event_loop() -> None:
    """Start libvirt's event loop, once per process and before the first connection."""
    global _loop
    with _loop_lock:
        if _loop is not None:
            return
        # libvirt would print each error on standard error as well.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        libvirt.virEventRegisterDefaultImpl()
        _loop = threading.Thread(target=_turn, name="libvirt-events", daemon=True)
        _loop.start()


def _turn() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            log.exception("libvirt's event loop stumbled; it goes on")
            time.sleep(1)
