"""One call of an action, as the functions that carry it out see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from appliance.api.ec2 import errors
from appliance.model import Identity
from appliance.node import NodeParts
from appliance.store import Store, Transaction, audit

T = TypeVar("T")

REPEATABLE_S = 2.0
"""Seconds for which an identical signature may be a client's retry: dates have whole seconds."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """Who asks for what. ``host`` is the name that the client has for this API."""

    action: str
    identity: Identity
    request_id: str
    source: str
    host: str
    started_at: float
    started: float
    parts: NodeParts

    @property
    def project_id(self) -> str:
        """The project whose resources the call is about."""
        return self.identity.project_id

    @property
    def store(self) -> Store:
        """The cluster's state."""
        return self.parts.need_store()

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Return what ``work`` reads on one consistent view."""
        return self.store.read(work)

    def change(
        self,
        work: Callable[[Transaction], T],
        subject: Callable[[T], str] | str,
        *,
        when_repeated: Callable[[Transaction], T] | None = None,
    ) -> T:
        """Run ``work`` in one transaction, with its line in the audit log, and return its answer.

        The same signed request takes effect again only while it may be a client's own retry, and
        then by ``when_repeated`` where it is given.

        :param subject: what is changed, for the audit log.
        :raises Ec2Error: the signed request was answered before; nothing is changed.
        """

        def audited(tx: Transaction) -> T:
            is_repeat = self._is_repeat(tx)
            answer = when_repeated(tx) if is_repeat and when_repeated else work(tx)
            audit.record(
                tx,
                deed_of(
                    self.identity,
                    action=self.action,
                    subject=subject if isinstance(subject, str) else subject(answer),
                    request_id=self.request_id,
                    source=self.source,
                ),
            )
            return answer

        return self.store.transaction(audited)

    def _is_repeat(self, tx: Transaction) -> bool:
        """Say whether the same signed request took effect a moment ago; it does so now if not."""
        digest = self.identity.request_digest
        if not digest:
            return False
        fate, settled_at = audit.fate_of(tx, digest) or ("", tx.now)
        # The clock of another node may be ahead: a request that it settled is no newer for that.
        if abs(tx.now - settled_at) > REPEATABLE_S:
            raise errors.request_expired("It was answered before; sign it anew to repeat it.")
        if fate != audit.CARRIED_OUT:
            audit.settle_fate(tx, digest, audit.CARRIED_OUT)
        return fate == audit.CARRIED_OUT


def deed_of(
    identity: Identity,
    *,
    action: str,
    subject: str,
    request_id: str,
    source: str,
    result: str = audit.OK,
) -> audit.Deed:
    """Return a caller's deed for the audit log."""
    return audit.Deed(
        actor=identity.user_name,
        user_id=identity.user_id,
        access_key_id=identity.access_key_id,
        project_id=identity.project_id,
        action=action,
        subject=subject,
        request_id=request_id,
        source=source,
        result=result,
    )
