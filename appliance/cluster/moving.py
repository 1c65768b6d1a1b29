"""How the messages of a cluster move to another broker while it works.

Three steps, each of which all nodes that are up have taken before the next begins: they hear both
brokers; they send over the new one; they leave the old one. A node that is down learns at its
return where messages go by then, at the door of a control node.

Where a move stands is what the store says that nodes shall hear, and nothing else: so it goes on
from wherever it was cut off, and turns around at any point. Moving back is a move like any other.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from msgspec.structs import replace

from appliance.bus import TlsFiles, tls_context, topology
from appliance.bus.depth import depths
from appliance.bus.urls import split, without_login
from appliance.cluster import brokers, carrier, decided
from appliance.cluster.brokers import Broker, Move
from appliance.cluster.logins import Logins
from appliance.cluster.management import Access, Management
from appliance.config import without_password
from appliance.errors import Conflict, Denied, InputError, Unavailable
from appliance.seal import Seal
from appliance.store import Store, Transaction, audit, nodes
from appliance.store.nodes import NodeStatus

T = TypeVar("T")
Say = Callable[[str], None]

OLDEST = (3, 10)
"""The oldest release of RabbitMQ whose quorum queues do what is asked of them."""

WAIT_S = 180.0
"""Seconds within which all nodes that are up take a step; one that is dead is down before that."""

DRAIN_S = 30.0
"""Seconds for which the old broker's queues may become empty by themselves."""

_POLL_S = 0.2
_SAY_EVERY_S = 5.0


def broker_of(urls: str, admin_urls: str) -> Broker:
    """Return a broker that is the operator's.

    :raises InputError: a URL is none, or messages would go over the network in the clear.
    """
    if not admin_urls:
        raise InputError(
            "Each node gets a login of its own at the new broker.",
            hint="Name its management API: --admin-url https://admin:password@host:15671.",
        )
    plain = without_login(urls)
    for url in split(plain):
        _check_url(url)
    vhosts = {urlsplit(url).path for url in split(plain)}
    if len(vhosts) != 1:
        raise InputError("The URLs name several virtual hosts; there is one.")
    vhost = unquote(vhosts.pop().removeprefix("/")) or "/"
    access = Access(urls=tuple(split(admin_urls)), vhost=vhost)
    return Broker(urls=plain, is_ours=False, access=access)


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("amqp", "amqps") or not parts.hostname:
        raise InputError(
            f"Messages cannot go over {without_password(url)}.",
            hint="It looks like amqps://broker.example/anynode; several have commas between.",
        )
    if parts.scheme == "amqp" and not _is_here(parts.hostname):
        raise InputError(
            f"Over {without_password(url)} messages and passwords would go in the clear.",
            hint="Let the broker listen with TLS, and name it as amqps://…",
        )


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass
class Moving:
    """One move, or what is left of it.

    :param target: where messages shall go.
    :param own_tls: how a broker is met that the cluster's authority vouches for.
    :param say: called with a line when something was done, or is waited for.
    :param is_back: whether that is where they came from.
    :param is_lost: the old broker is gone for good, with all that was in it.
    """

    store: Store
    seal: Seal
    target: Broker
    own_tls: TlsFiles
    actor: str
    say: Say = lambda text: None
    is_back: bool = False
    is_lost: bool = False
    wait_s: float = WAIT_S
    passed: Callable[[str], None] = field(default=lambda point: None)

    # -- before -------------------------------------------------------------------------------

    def check(self) -> None:
        """Look whether messages can go over the new broker; nothing is changed.

        :raises AnynodeError: they cannot, and why.
        """
        now = self._read(lambda tx: brokers.current(tx, self.seal))
        move = self._read(lambda tx: brokers.last_move(tx, self.seal))
        if move and not move.is_done:
            under_way = {move.source.urls: "back", move.target.urls: "on"}
            if self.target.urls not in under_way:
                raise Conflict(
                    f"A move from {move.source.urls} to {move.target.urls} is under way.",
                    hint="Without a URL this command goes on with it; --back turns it around.",
                )
        self._check_target()
        if now.urls != self.target.urls and not self.is_lost:
            self._check_other(now)

    def _check_target(self) -> None:
        management = Management(self.target.access)
        version = management.version()
        if _numbers(version) < OLDEST:
            raise InputError(
                f"The new broker is RabbitMQ {version}; {'.'.join(map(str, OLDEST))} is the oldest "
                "that will do."
            )
        if "administrator" not in management.own_tags():
            raise Denied(
                "The login of the management API does not administer the new broker.",
                hint="Give it the tag `administrator`.",
            )
        alarms = management.alarms()
        if alarms:
            raise Unavailable(f"The new broker takes no messages now: {', '.join(alarms)}.")
        known = {topology.node_queue(one.node_id).name for one in self._read(nodes.status)}
        strange = [one for one in management.queues() if one.startswith("node.")]
        if not known.issuperset(strange):
            raise Conflict(
                f"The virtual host {self.target.access.vhost} of the new broker has queues of "
                f"nodes that are not of this cluster: {', '.join(sorted({*strange} - known)[:3])}.",
                hint="Each cluster needs a virtual host of its own. Queues of a node that was "
                "removed may be deleted there.",
            )
        with carrier.login_at(self.target) as urls:
            for url in urls:
                with carrier.channel_at([url], self._tls(self.target)):
                    pass

    def _check_other(self, now: Broker) -> None:
        """See that the old broker answers, and is not the new one under another name.

        :raises Conflict: it is: its logins could not be told from the new ones.
        """
        try:
            old = Management(now.access)
            with carrier.login_at(self.target) as urls:
                name = urlsplit(urls[0]).username or ""
                is_same = unquote(name) in old.users()
        except Unavailable as error:
            raise Unavailable(
                f"The broker in use does not answer: {error.message}",
                hint="Start it, so that nothing that lies there is lost. If it is gone for good, "
                "--lost goes on without it.",
            ) from error
        if is_same:
            raise Conflict(
                "That is the broker that is in use already, under another name or with another "
                "virtual host.",
                hint="One broker knows a node's login once, for all its virtual hosts.",
            )

    # -- the steps ----------------------------------------------------------------------------

    def run(self) -> None:
        """Move all messages; safe to repeat at any point.

        :raises Unavailable: a node that is up did not take a step in time, or a broker is away:
            messages go on over both; calling this again goes on.
        """
        while (step := self._next()) is not None:
            step()

    def _next(self) -> Callable[[], None] | None:
        what, move = self._read(
            lambda tx: (decided.get(tx, self.seal), brokers.last_move(tx, self.seal))
        )
        goal = self.target.urls
        if what.bus_urls != goal and self.is_lost:
            return self._switch_at_once
        if what.bus_urls != goal:
            return self._send if what.also_urls == goal else self._hear
        if what.also_urls:
            return self._leave
        if move and not move.is_done and move.target.urls == goal:
            return self._finish
        return None

    def _hear(self) -> None:
        """Have all nodes hear the new broker, too."""
        logins = Logins(Management(self.target.access))
        logins.prepare(one.node_id for one in self._read(nodes.status))
        self.say(f"made the queues at {self.target.urls}")

        def begin(tx: Transaction) -> None:
            now = brokers.current(tx, self.seal)
            brokers.keep_move(
                tx, self.seal, Move(source=now, target=self.target, is_back=self.is_back)
            )
            brokers.use(tx, self.seal, now, self.target)
            self._audit(tx, "MoveMessages", now)

        self._change(begin)
        self.passed("move.hear")

    def _send(self) -> None:
        """Have all nodes send over the new broker, once all hear it."""
        source = self._source()
        self._wait((source.urls, self.target.urls), "hear both brokers")
        self._change(lambda tx: brokers.use(tx, self.seal, self.target, source))
        self.passed("move.send")

    def _leave(self) -> None:
        """Have all nodes leave the old broker, once all send over the new one."""
        source = self._source()
        if not self.is_lost:
            self._wait((self.target.urls, source.urls), "send over the new one")
            self._drain(source)
        self._change(lambda tx: brokers.use(tx, self.seal, self.target, None))
        self.passed("move.leave")

    def _finish(self) -> None:
        """Take what is left to the new broker, and remove all that the cluster has at the old."""
        source = self._source()
        self._wait((self.target.urls,), "have left the old one")
        known = self._read(nodes.status)
        if not self.is_lost:
            self._clear(source, known)

        def end(tx: Transaction) -> None:
            move = brokers.last_move(tx, self.seal)
            assert move is not None
            brokers.keep_move(tx, self.seal, replace(move, is_done=True))

        self._change(end)
        away = sorted(one.name for one in known if not one.is_up)
        if away:
            self.say(f"{', '.join(away)}: down; asks a control node for the broker when it is back")

    def _clear(self, source: Broker, known: Sequence[NodeStatus]) -> None:
        management = Management(source.access)
        old = Logins(management)
        for one in known:
            # A node that is cut off from the others may be there still.
            for is_control in (False, True):
                old.retire(one.node_id, is_control=is_control)
        queues = self._queues(known)
        with carrier.login_at(source) as old_urls, carrier.login_at(self.target) as new_urls:
            count = carrier.carry(
                queues,
                (old_urls, self._tls(source)),
                (new_urls, self._tls(self.target)),
                self.passed,
            )
        self.passed("move.carry")
        for name in queues:
            management.remove_queue(name)
        self.say(f"took {count} messages along, and removed logins and queues at {source.urls}")

    def _switch_at_once(self) -> None:
        """Go over to the new broker from one that is gone, with what was in it."""
        Logins(Management(self.target.access)).prepare(
            one.node_id for one in self._read(nodes.status)
        )

        def switch(tx: Transaction) -> None:
            now = brokers.current(tx, self.seal)
            brokers.keep_move(
                tx, self.seal, Move(source=now, target=self.target, is_back=self.is_back)
            )
            brokers.use(tx, self.seal, self.target, None)
            self._audit(tx, "MoveMessages", now)

        self._change(switch)
        self.say("nodes ask at the doors of control nodes, which takes them up to half a minute")

    # -- what steps wait for ------------------------------------------------------------------

    def _wait(self, buses: tuple[str, ...], deed: str) -> None:
        """Wait until all nodes that are up say that they are connected to these brokers.

        :raises Unavailable: some do not in time, and what they say.
        """
        began = told_at = time.monotonic()
        while waiting := self._read(lambda tx: _waiting(tx, buses)):
            now = time.monotonic()
            if now - began > self.wait_s:
                said = "".join(
                    f" {one.name} says: {one.condition.problems['bus']}"
                    for one in waiting
                    if "bus" in one.condition.problems
                )
                raise Unavailable(
                    f"{_names(waiting)} did not {deed} within {self.wait_s:g} s.{said}",
                    hint="Messages go on. Run the command again to go on, with --back to turn "
                    "around, or with --lost when the old broker is gone for good.",
                )
            if now - told_at > _SAY_EVERY_S:
                told_at = now
                self.say(f"waiting for {_names(waiting)} to {deed}")
            time.sleep(_POLL_S)
        self.say(f"all nodes that are up {deed}")

    def _drain(self, source: Broker) -> None:
        """Wait a while until nothing lies in the queues of the old broker that are heard."""
        queues = self._queues([one for one in self._read(nodes.status) if one.is_up])
        tls = self._tls(source)
        began = time.monotonic()
        with carrier.login_at(source) as urls:
            while time.monotonic() - began < DRAIN_S:
                found = depths(urls, queues, tls_context(tls) if tls else None)
                left = {one.queue: one.messages for one in found if one.messages}
                if not left:
                    self.say("nothing waits at the old broker")
                    return
                time.sleep(_POLL_S)
        self.say(f"{sum(left.values())} messages wait at the old broker, and are taken along")

    def _queues(self, known: Sequence[NodeStatus]) -> list[str]:
        queues = (*topology.shared_queues(), *(topology.node_queue(one.node_id) for one in known))
        return [one.name for one in queues]

    def _source(self) -> Broker:
        """Return the broker that messages move from; a move that turned around is noted."""

        def note(tx: Transaction) -> Broker:
            move = brokers.last_move(tx, self.seal)
            if move is None:
                raise Conflict("No move is under way.")
            if move.target.urls != self.target.urls:
                move = Move(source=move.target, target=move.source, is_back=self.is_back)
                brokers.keep_move(tx, self.seal, move)
                self._audit(tx, "MoveMessages", move.source)
            return move.source

        return self._change(note)

    def _audit(self, tx: Transaction, action: str, source: Broker) -> None:
        lost = ", which is lost" if self.is_lost else ""
        subject = f"from {source.urls}{lost} to {self.target.urls}"
        audit.record_command(tx, self.actor, action, subject)

    def _tls(self, broker: Broker) -> TlsFiles | None:
        return self.own_tls if broker.is_ours else None

    def _read(self, work: Callable[[Transaction], T]) -> T:
        return self.store.read(work)

    def _change(self, work: Callable[[Transaction], T]) -> T:
        return self.store.transaction(work)


def _waiting(tx: Transaction, buses: tuple[str, ...]) -> list[NodeStatus]:
    return [one for one in nodes.status(tx) if one.is_up and one.condition.buses != buses]


def _names(found: Sequence[NodeStatus]) -> str:
    return ", ".join(one.name for one in found)


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split(".")[:2]
    return tuple(int(one) for one in parts if one.isdigit())
