"""The connections of a bus: to the broker that it sends over, and to one that it hears, too.

While a cluster moves to another broker each node hears both, so that nothing is sent where nobody
takes it. A broker is left when all that came from it is settled, and all that was sent to it
confirmed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from appliance.bus.amqp_link import Link

log = logging.getLogger(__name__)

Urls = tuple[str, ...]

CONNECT_S = 2.0
"""Seconds that a move waits for a new connection, so that it is soon known."""

_LEAVE_EVERY_S = 0.05


class Links:
    """Connections by the URLs of their brokers, with the login; the first is sent over.

    :param make: returns the connection to a broker.
    """

    def __init__(self, make: Callable[[Urls], Link], wanted: Sequence[Urls]) -> None:
        self._make = make
        self._lock = threading.RLock()
        self._links = {urls: make(urls) for urls in wanted}
        self._order = tuple(wanted)
        self._leaving: dict[Urls, Link] = {}
        self._wanted: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
        self._is_started = self._is_stopping = False
        self._first = self._links[self._order[0]]

    @property
    def first(self) -> Link:
        """The connection that is sent over."""
        return self._first

    def start(self) -> Link:
        """Connect to all, the first time; return the first."""
        with self._lock:
            if not self._is_started:
                self._is_started = True
                for link in self._links.values():
                    link.start()
            return self._first

    def stop(self, deadline_s: float) -> None:
        """Close all; see :meth:`Link.stop`."""
        with self._lock:
            self._is_stopping = True
            links = [*self._links.values(), *self._leaving.values()]
        for link in links:
            link.stop(deadline_s)

    def want(self, queues: Iterable[str], keys: Iterable[str]) -> None:
        """Consume and bind at each broker; see :meth:`Link.want`."""
        with self._lock:
            self._wanted = (frozenset(queues), frozenset(keys))
            for link in self._links.values():
                link.want(*self._wanted)

    def places(self) -> list[Urls]:
        """Return the brokers that there is a connection to, the one that is sent over first.

        Those that are being left come last.
        """
        with self._lock:
            held = [urls for urls in self._order if self._links[urls].wait_up(0)]
            return [*held, *self._leaving]

    def missing(self) -> list[Urls]:
        """Return the brokers that there shall be a connection to, and is none."""
        with self._lock:
            return [urls for urls in self._order if not self._links[urls].wait_up(0)]

    def move(self, wanted: Sequence[Urls]) -> None:
        """Send over the first of these brokers from now on, and hear all of them. Repeatable.

        A new one is waited for, but not long; one that is left is heard until it is settled.
        """
        new: list[Link] = []
        with self._lock:
            if self._is_stopping or self._order == tuple(wanted):
                return
            for urls in wanted:
                if urls in self._links:
                    continue
                link = self._leaving.pop(urls) if urls in self._leaving else self._make(urls)
                self._links[urls] = link
                link.want(*self._wanted)
                if self._is_started and not link.is_begun:
                    link.start()
                    new.append(link)
            self._order = tuple(wanted)
            self._first = self._links[wanted[0]]
            left = {urls: link for urls, link in self._links.items() if urls not in wanted}
            for urls, link in left.items():
                self._leaving[urls] = self._links.pop(urls)
                threading.Thread(
                    target=self._leave, args=(urls, link), name="leave", daemon=True
                ).start()
        for link in new:
            link.wait_up(CONNECT_S)

    def _leave(self, urls: Urls, link: Link) -> None:
        """Take no more from a broker, and close the connection once nothing is under way."""
        with self._lock:
            if self._leaving.get(urls) is link:
                link.want((), ())
        while not link.is_idle:
            time.sleep(_LEAVE_EVERY_S)
            with self._lock:
                if self._leaving.get(urls) is not link or self._is_stopping:
                    return
        with self._lock:
            if self._leaving.get(urls) is not link:
                return
            del self._leaving[urls]
        link.stop(CONNECT_S)
        log.info("left a message broker")
