"""What a benchmark is and what it answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec


class Figure(msgspec.Struct, frozen=True):
    """One measured value. ``target`` is the most that it may be; ``None`` where less is no aim."""

    value: float
    unit: str
    target: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether the value is not above its target."""
        return self.target is None or self.value <= self.target


Figures = dict[str, Figure]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Measures figures that belong together.

    ``programs`` and ``files`` are what the machine must have. ``measure`` is told whether to be
    quick: then it goes through everything with little work, and its answer means nothing.
    """

    name: str
    what: str
    measure: Callable[[bool], Figures]
    needs_root: bool = False
    programs: Sequence[str] = ()
    files: Sequence[Path] = ()


def cpu_of(pid: int) -> float:
    """Return the CPU seconds that a process has used, threads that have ended included."""
    # The number of a process's clock, as clock_getcpuclockid(3) makes it.
    return time.clock_gettime((~pid << 3) | 2)


def ms(seconds: float, target: float | None = None) -> Figure:
    """Return a duration in milliseconds."""
    return Figure(round(seconds * 1e3, 3), "ms", target)
