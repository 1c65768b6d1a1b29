"""How roles talk: one contract, whatever carries the messages.

* ``cast``: at least once, in no promised order, never lost: it is written to the outbox in the
  transaction of the state it belongs to (:meth:`appliance.store.Transaction.cast`).
* ``call``: a question with an answer and a deadline.
* ``announce``: a hint that may get lost.

Topics ``scheduler``, ``controller`` and ``network`` are served by any number of nodes; the topics
of :func:`appliance.messages.node_topic` reach one node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from appliance.messages import Message
from appliance.role import Role
from appliance.store import Transaction

T = TypeVar("T")
M = TypeVar("M", bound=Message)


class Delivery(Protocol):
    """One arrival of a cast."""

    @property
    def message_id(self) -> str:
        """The message's id, the same at each arrival."""
        ...

    def once(self, work: Callable[[Transaction], None]) -> None:
        """Run ``work`` in a transaction unless this message has already taken effect.

        That it has is written in the same transaction.
        """
        ...


class Bus(Protocol):
    """What a node sends and receives with."""

    def serve(self, role: Role) -> None:
        """Let a role take its messages, from :meth:`start` on or at once."""
        ...

    def retire(self, topic: str, deadline_s: float) -> None:
        """Let a role finish what is under way, and take no more; safe to repeat.

        What waits stays for whoever serves the topic next.
        """
        ...

    def start(self) -> None:
        """Begin to deliver."""
        ...

    def stop(self, deadline_s: float) -> None:
        """Finish what is under way and deliver no more; what waits stays in the outbox."""
        ...

    def cast(self, topic: str, message: Message) -> None:
        """Send a message that belongs to no transaction of the store.

        :raises Unavailable: nobody durable has taken it; the sender must keep and repeat it.
        """
        ...

    def call(self, topic: str, question: Message, answer: type[M], deadline_s: float) -> M:
        """Ask and wait for the answer.

        :raises Unavailable: no answer within ``deadline_s``; whether it took effect is unknown.
        :raises AnynodeError: the error that the one asked has raised.
        """
        ...

    def announce(self, topic: str, message: Message) -> None:
        """Send a hint to all who serve the topic or have it as their group's; it may get lost."""
        ...

    def well_for_s(self) -> float:
        """Return for how many seconds messages have got through without a gap; 0: they do not.

        Whoever draws conclusions from silence asks this first.
        """
        ...
