"""Virtual time: what happens when, one thing after the other."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

BEGIN = 1_700_000_000.0
"""The time at which every history begins, seconds since the epoch."""


class Owner(Protocol):
    """What an event belongs to: it does not happen once its owner is dead."""

    @property
    def is_dead(self) -> bool:
        """Whether it has ended."""
        ...


@dataclass(order=True)
class Event:
    """Something that will happen."""

    at: float
    number: int
    work: Callable[[], None] = field(compare=False)
    owner: Owner | None = field(compare=False, default=None)
    interrupts: bool = field(compare=False, default=False)


class Clock:
    """The time of a history. Whoever sleeps moves it on; others are late then, as they may be."""

    def __init__(self) -> None:
        self.at = BEGIN

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at - BEGIN

    def sleep(self, seconds: float) -> None:
        self.at += seconds


class Loop:
    """Events in the order of their time; those of the same time in the order of their making."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._events: list[Event] = []
        self._numbers = itertools.count()

    def after(
        self,
        delay_s: float,
        work: Callable[[], None],
        owner: Owner | None = None,
        *,
        interrupts: bool = False,
    ) -> None:
        """Let something happen later.

        :param interrupts: whether it may happen in the middle of the steps of a launch.
        """
        event = Event(
            at=self.clock.at + delay_s,
            number=next(self._numbers),
            work=work,
            owner=owner,
            interrupts=interrupts,
        )
        heapq.heappush(self._events, event)

    def run_next(self, until: float) -> bool:
        """Let the next thing happen; ``False`` when there is none before ``until``."""
        while self._events and self._events[0].at <= until:
            event = heapq.heappop(self._events)
            if event.owner is not None and event.owner.is_dead:
                continue
            self.clock.at = max(self.clock.at, event.at)
            event.work()
            return True
        return False

    def interrupt(self, within_s: float) -> None:
        """Let the next thing happen that may interrupt another, if it is due so soon."""
        until = self.clock.at + within_s
        due = [e for e in self._events if e.interrupts and e.at <= until]
        if not due:
            return
        event = min(due)
        self._events.remove(event)
        heapq.heapify(self._events)
        if event.owner is None or not event.owner.is_dead:
            self.clock.at = max(self.clock.at, event.at)
            event.work()
