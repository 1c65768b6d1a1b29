"""What a handler may not make for itself: time, ids, randomness and the moment of a crash.

They are arguments, so that a test or a simulation decides them.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol


class Clock(Protocol):
    """Time as the roles see it."""

    def now(self) -> float:
        """Return seconds since the epoch; for records, never for measuring."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back; for deadlines and durations."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait; a simulation only moves its clock."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Ids(Protocol):
    """Source of names that are never used twice."""

    def ec2(self, prefix: str) -> str:
        """Return an EC2 id: the prefix, a dash and 17 hexadecimal digits."""
        ...

    def uuid(self) -> str:
        """Return a UUID in its usual form; request ids and message ids are of this kind."""
        ...

    def mac(self) -> str:
        """Return a locally administered unicast MAC address."""
        ...


class RandomIds:
    """Ids from the system's own randomness."""

    def ec2(self, prefix: str) -> str:
        return f"{prefix}-0{secrets.token_hex(8)}"

    def uuid(self) -> str:
        return str(uuid.uuid4())

    def mac(self) -> str:
        tail = secrets.token_bytes(4)
        return "06:a0:" + ":".join(f"{byte:02x}" for byte in tail)


class SeededIds:
    """Ids that a seed decides: the same seed gives the same ids in the same order."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def _hex(self, digits: int) -> str:
        with self._lock:
            return f"{self._random.getrandbits(4 * digits):0{digits}x}"

    def ec2(self, prefix: str) -> str:
        return f"{prefix}-{self._hex(17)}"

    def uuid(self) -> str:
        return str(uuid.UUID(hex=self._hex(32), version=4))

    def mac(self) -> str:
        tail = self._hex(8)
        return "06:a0:" + ":".join(tail[i : i + 2] for i in range(0, 8, 2))


CrashPoint = Callable[[str], None]
"""Called with the name of a point in the program; it may never return."""


def no_crash(point: str) -> None:
    """Let the program go on."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Clock, ids, randomness and crash points of a node."""

    clock: Clock = field(default_factory=SystemClock)
    ids: Ids = field(default_factory=RandomIds)
    random: random.Random = field(default_factory=random.SystemRandom)
    crash: CrashPoint = no_crash
