"""What a role is made of: handlers of messages, periodic work, services."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from appliance.bus import Delivery
    from appliance.messages import Message

STORE_ROLES = frozenset({"api", "controller", "scheduler", "network"})
"""The roles that reach the store; the others never do."""

CastHandler = Callable[[Any, "Delivery"], None]
"""Takes a cast and its delivery; returns once the work, or the duty to do it, is durable."""

CallHandler = Callable[[Any], "Message | None"]
"""Takes a question and returns the answer."""


@dataclass(frozen=True, kw_only=True)
class Periodic:
    """Work that is done again and again; a run that raises is logged and tried at the next time."""

    name: str
    every_s: float
    run: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Role:
    """A role as a node runs it.

    ``topic`` is where its casts and calls arrive; hints arrive there and at ``group_topic``, which
    it shares with others of its kind. ``start`` runs before the first message and may
    take long; ``stop`` ends what ``start`` began. Both are safe to repeat. ``port`` tells the TCP
    port that it listens on from then on, 0 for none.
    """

    name: str
    topic: str
    group_topic: str = ""
    casts: Mapping[type[Message], CastHandler] = field(default_factory=dict)
    calls: Mapping[type[Message], CallHandler] = field(default_factory=dict)
    hears: Mapping[type[Message], Callable[[Any], None]] = field(default_factory=dict)
    periodic: tuple[Periodic, ...] = ()
    start: Callable[[], None] = lambda: None
    stop: Callable[[], None] = lambda: None
    port: Callable[[], int] = lambda: 0
