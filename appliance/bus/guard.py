"""Who may say what on a bus that others reach, too.

The broker vouches for the name of the login that sent a message. A hypervisor's says only what a
node has to say, and of itself only; what changes a node is signed with the key of a control node,
so that neither a login nor the broker is enough to give orders.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from appliance.bus.topology import CONTROL, HYPERVISOR, MEMBER_TOPIC, SHARED_TOPICS
from appliance.errors import AnynodeError, Denied, Stale
from appliance.messages import KINDS, Message
from appliance.world import Clock

log = logging.getLogger(__name__)

VALID_S = 3600
"""Seconds for which a signature is good, longer than clocks are apart. What comes later is dropped:
a node that was away asks what it shall hold, and gets its orders anew."""

SIGNATURE, EXPIRES_AT = "signature", "expires_at"
"""Headers of what is signed."""


class Signer(Protocol):
    """A node's key, and the certificates of the others."""

    def sign(self, key: str, kind: str, message_id: str, body: bytes, expires_at: int) -> bytes:
        """Return a signature over all of it.

        :param key: the routing key: what was signed for one node is worth nothing at another.
        :param message_id: of an answer the id of its question.
        :param expires_at: seconds since the epoch.
        """
        ...

    def check(
        self, key: str, kind: str, message_id: str, body: bytes, expires_at: int, signature: bytes
    ) -> str:
        """Return the id of the control node that has signed this.

        Whether it has expired is for the caller to see.

        :raises Denied: nobody has who may: it is forged, or its signer is no control node any more.
        """
        ...


class Sent(NamedTuple):
    """What of a message is vouched for."""

    key: str
    kind: str
    message_id: str
    body: bytes
    login: str | None
    headers: Mapping[str, Any]


class Sender(NamedTuple):
    """Who has sent a message."""

    node_id: str
    is_control: bool


class Guard:
    """Signs what leaves and checks what comes.

    :param login: the name with which this process is at the broker.
    :param signer: ``None`` where nothing is signed.
    """

    def __init__(self, login: str, node_id: str, signer: Signer | None, clock: Clock) -> None:
        self._login = login
        self._node_id = node_id
        self._signer = signer
        self._clock = clock
        self.refused: Counter[tuple[str, str]] = Counter()

    def headers(self, key: str, kind: str, message_id: str, body: bytes) -> dict[str, Any]:
        """Return the headers that vouch for a message; none where none are asked for."""
        if self._signer is None or self._login.startswith(HYPERVISOR) or not _is_signed(key):
            return {}
        expires_at = int(self._clock.now()) + VALID_S
        signature = self._signer.sign(key, kind, message_id, body, expires_at)
        return {SIGNATURE: signature, EXPIRES_AT: expires_at}

    def sender(self, login: str | None) -> Sender:
        """Return who has a login. A login that is like this process's own is trusted like it.

        :raises Denied: there is none, or it belongs to no node.
        """
        if not login:
            raise Denied("A message came without the name of its sender.")
        if login.startswith((CONTROL, HYPERVISOR)):
            return Sender(login[len(CONTROL) :], login.startswith(CONTROL))
        if login == self._login:
            return Sender(self._node_id, True)
        raise Denied(f"A message came from {login!r}, who is no node.")

    def is_control(self, login: str | None) -> bool:
        """Say whether a login is one that may say anything."""
        try:
            return self.sender(login).is_control
        except Denied:
            return False

    def check(self, sent: Sent, message: Message) -> None:
        """See that a message may come from whom it comes.

        :raises Denied: it may not.
        :raises Stale: its signature has expired.
        """
        try:
            sender = self.sender(sent.login)
            if not sender.is_control:
                self._check_hypervisor(sender, sent, message)
            elif _is_signed(sent.key):
                self._check_signature(sender, sent)
        except Denied as error:
            self.refuse(sent, error)
            raise

    def check_answer(self, sent: Sent, topic: str) -> None:
        """See that an answer comes from whom a question was put to.

        :raises Denied: it does not.
        :raises Stale: its signature has expired.
        """
        try:
            sender = self.sender(sent.login)
            if topic in SHARED_TOPICS:
                if not sender.is_control:
                    raise Denied(f"Node {sender.node_id} does not answer for the {topic}.")
                self._check_signature(sender, sent)
            elif sender.node_id != topic.partition(".")[2] and sent.login != self._login:
                raise Denied(f"Node {sender.node_id} does not answer for {topic}.")
        except Denied as error:
            self.refuse(sent, error)
            raise

    def _check_hypervisor(self, sender: Sender, sent: Sent, message: Message) -> None:
        topic = sent.key.partition(".")[2]
        if topic not in SHARED_TOPICS or not message.from_hypervisor:
            raise Denied(f"Node {sender.node_id} may not say {sent.kind} to {topic}.")
        named = getattr(message, "node_id", sender.node_id)
        if named != sender.node_id:
            raise Denied(f"Node {sender.node_id} may not say {sent.kind} for node {named}.")

    def _check_signature(self, sender: Sender, sent: Sent) -> None:
        if self._signer is None:
            return
        signature, expires_at = sent.headers.get(SIGNATURE), sent.headers.get(EXPIRES_AT)
        if not isinstance(signature, bytes) or not isinstance(expires_at, int):
            raise Denied(f"{sent.kind} to {sent.key} is not signed.")
        signed_by = self._signer.check(*sent[:4], expires_at, signature)
        if sent.login != self._login and signed_by != sender.node_id:
            raise Denied(f"{sent.kind} from {sender.node_id} is signed by {signed_by}.")
        if self._clock.now() > expires_at:
            raise Stale(f"{sent.kind} to {sent.key} came after its signature had expired.")

    def refuse(self, sent: Sent, error: AnynodeError) -> None:
        """Count, and say the first of a kind: a flood of them shall not be one of the log, too."""
        about = (sent.login or "", sent.kind if sent.kind in KINDS else "")
        if len(self.refused) > 1000:
            self.refused.clear()
        self.refused[about] += 1
        if self.refused[about] == 1:
            log.warning("refused a message of %s: %s", sent.login or "nobody", error)


def _is_signed(key: str) -> bool:
    """Say whether a message of that routing key changes a node."""
    verb, _, topic = key.partition(".")
    return verb == "reply" or "." in topic or topic == MEMBER_TOPIC
