"""How roles talk: one contract, whatever carries the messages.

* ``cast``: at least once, in no promised order, never lost: it is written to the outbox in the
  transaction of the state it belongs to (:meth:`appliance.store.Transaction.cast`).
* ``call``: a question with an answer and a deadline.
* ``announce``: a hint that may get lost.

Topics ``scheduler``, ``controller`` and ``network`` are served by any number of nodes; the topics
of :func:`appliance.messages.node_topic` reach one node.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from msgspec import Struct

from appliance.config import Config, without_password
from appliance.errors import ConfigError
from appliance.messages import Message
from appliance.role import Role
from appliance.store import Store, Transaction
from appliance.world import World

if TYPE_CHECKING:
    from appliance.bus.guard import Signer

LOCAL = "local:"
"""The URL of a lone node's bus."""

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


class TlsFiles(Struct, frozen=True, kw_only=True):
    """How a broker is met over TLS. Without a certificate of its own a node shows none."""

    authority: Path
    certificate: Path | None = None
    key: Path | None = None


class Place(Struct, frozen=True, kw_only=True):
    """A broker: its URLs with the node's login, and how it is met over TLS."""

    urls: tuple[str, ...]
    tls: TlsFiles | None = None


@runtime_checkable
class MovingBus(Protocol):
    """A bus that can go on over another broker while its roles work."""

    def move(self, place: Place, also: Place | None = None) -> bool:
        """Send over a broker from now on, and hear another, too. Safe to repeat.

        Any other is left, once all that came from it is settled. ``False``: the login is another
        one, for which a bus of its own is to be opened; nothing was changed.

        :raises ConfigError: a file of ``tls`` cannot be used.
        """
        ...

    def places(self) -> tuple[str, ...]:
        """Return the brokers that there is a connection to, without logins, commas between URLs.

        The one that is sent over comes first, those that are being left last.
        """
        ...

    def trouble(self) -> str:
        """Return which broker there is no connection to; empty when all is well."""
        ...


def open(  # noqa: A001 - it is called as bus.open
    config: Config,
    world: World,
    store: Store | None,
    *,
    node_id: str,
    urls: Sequence[str] = (),
    tls: TlsFiles | None = None,
    signer: Signer | None = None,
    declares: bool = True,
    also: Place | None = None,
) -> Bus:
    """Return the bus of a node, which begins to work with :meth:`Bus.start`.

    :param store: where the outbox is; ``None`` on a node whose roles reach no store: its casts are
        then confirmed by the broker, or fail.
    :param urls: brokers of one cluster, each with the node's login, in the order in which they are
        tried; without them those of the setting ``bus.url``, with commas between.
    :param tls: for URLs that begin with ``amqps:``; without it the system's authorities count.
    :param signer: the node's key and the certificates of the others; ``None`` where nothing is
        signed and nothing need be.
    :param declares: whether the login may declare durable queues, as a control node's may. For a
        hypervisor they are declared by who admits it; until then its connection is tried again.
    :param also: a broker that is heard, too, see :class:`MovingBus`.
    :raises ConfigError: a URL is none of a bus, or a file of ``tls`` cannot be used.
    """
    chosen = list(urls) or urls_of(config)
    settings = {"attempts": config.bus.attempts, "lanes": config.bus.lanes}
    if chosen == [LOCAL]:
        from appliance.bus.local import LocalBus

        if store is None:
            raise ConfigError("The bus local: keeps its messages in the store; there is none.")
        return LocalBus(store, world, **settings)
    for url in [*(chosen or [""]), *(also.urls if also else ())]:
        if not url.startswith(("amqp://", "amqps://")):
            raise ConfigError(
                f"There is no bus for {without_password(url)!r}.",
                hint="bus.url is local:, or amqp:// or amqps:// URLs with commas between.",
            )
    for files in (tls, also.tls if also else None):
        if files:
            tls_context(files)
    from appliance.bus.amqp import AmqpBus

    return AmqpBus(
        chosen,
        world,
        store=store,
        node_id=node_id,
        tls=tls,
        signer=signer,
        declares=declares,
        also=also,
        **settings,
    )


def urls_of(config: Config) -> list[str]:
    """Return the URLs of the setting ``bus.url``: brokers, or ``local:`` alone."""
    return [url.strip() for url in config.bus.url.split(",") if url.strip()]


def tls_context(files: TlsFiles) -> ssl.SSLContext:
    """Return what a broker is met with, as the files are now.

    :raises ConfigError: a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=str(files.authority))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if files.certificate:
            context.load_cert_chain(files.certificate, files.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"Could not use {files.authority} for the broker: {error}.") from error
    return context
