"""Crash points of a real process: named moments at which the environment may interfere.

It is how a test dies, fails or waits at a chosen moment of a node that runs as its owner runs it.
A place is ``point`` or ``point@n``, the n-th time that the process comes there.

``ANYNODE_CRASH_AT``
    A place: this process kills itself there with SIGKILL.
``ANYNODE_FAIL_AT``
    Places, separated by commas: an error is raised there, each time where there is no ``@n``.
``ANYNODE_HOLD_AT``
    A place and a file, ``point=path``: the thread waits there as long as the file exists.
``ANYNODE_CRASH_TRACE``
    A file, to which the name of each point is appended before anything else happens there.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ConfigError
from appliance.world import CrashPoint, no_crash

CRASH_AT = "ANYNODE_CRASH_AT"
FAIL_AT = "ANYNODE_FAIL_AT"
HOLD_AT = "ANYNODE_HOLD_AT"
TRACE = "ANYNODE_CRASH_TRACE"

_HOLD_POLL_S = 0.01


class Rehearsed(Exception):
    """What a step that was told to fail raises."""


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """What happens at a point; each time when ``nth`` is 0."""

    point: str
    nth: int
    act: Callable[[], None]


def from_environment(environment: Mapping[str, str] = os.environ) -> CrashPoint:
    """Return the crash point that the environment asks for.

    :raises ConfigError: one of the variables cannot be read.
    """
    rules = [*_crashes(environment), *_failures(environment), *_holds(environment)]
    trace = environment.get(TRACE, "")
    if not rules and not trace:
        return no_crash
    # Appended by one write each, so that threads do not mix, and a killed process has said all.
    record = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if trace else None
    counts: Counter[str] = Counter()
    lock = threading.Lock()

    def pass_point(point: str) -> None:
        with lock:
            counts[point] += 1
            count = counts[point]
        if record is not None:
            os.write(record, f"{point}\n".encode())
        for rule in rules:
            if rule.point == point and rule.nth in (0, count):
                rule.act()

    return pass_point


def _crashes(environment: Mapping[str, str]) -> Iterator[_Rule]:
    if place := environment.get(CRASH_AT):
        point, nth = _place(CRASH_AT, place)
        yield _Rule(point=point, nth=nth or 1, act=lambda: os.kill(os.getpid(), signal.SIGKILL))


def _failures(environment: Mapping[str, str]) -> Iterator[_Rule]:
    for place in filter(None, environment.get(FAIL_AT, "").split(",")):
        point, nth = _place(FAIL_AT, place)
        yield _Rule(point=point, nth=nth, act=lambda place=place: _fail(place))  # type: ignore[misc]


def _holds(environment: Mapping[str, str]) -> Iterator[_Rule]:
    if value := environment.get(HOLD_AT):
        place, _, path = value.partition("=")
        if not path:
            raise ConfigError(f"{HOLD_AT} is {value!r}, not point=path.")
        point, nth = _place(HOLD_AT, place)
        yield _Rule(point=point, nth=nth or 1, act=lambda: _hold(Path(path)))


def _place(name: str, place: str) -> tuple[str, int]:
    point, _, nth = place.partition("@")
    if not point or (nth and not (nth.isdecimal() and int(nth) > 0)):
        raise ConfigError(f"{name} names {place!r}, not point or point@n.")
    return point, int(nth or 0)


def _fail(place: str) -> None:
    raise Rehearsed(f"told to fail at {place}")


def _hold(path: Path) -> None:
    while path.exists():
        time.sleep(_HOLD_POLL_S)
