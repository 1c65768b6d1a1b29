"""What was refused, for the audit log: calls that would change something, and strangers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from appliance.api.ec2.call import deed_of
from appliance.errors import AnynodeError
from appliance.model import Identity
from appliance.node import NodeParts
from appliance.store import Transaction, audit
from appliance.throttle import Buckets

log = logging.getLogger(__name__)

AUTHENTICATE = "Authenticate"
"""The action under which the audit log has those who were not recognised."""

SAME_EVERY_S = 600.0
STRANGERS = 100
STRANGER_EVERY_S = 20.0
"""Strangers that are written down at once, and the seconds after which one more may be."""

_KEPT = 4096
_NAMES = ("KeyName", "GroupName", "Resources", "SecurityGroups")
_LONGEST_NAME = 64


class RefusedCalls:
    """Writes refused requests to the audit log; a log that cannot be written changes no answer."""

    def __init__(self, parts: NodeParts) -> None:
        self._parts = parts
        self._same = Buckets(size=1, refill_s=SAME_EVERY_S, most=_KEPT)
        self._all = Buckets(size=STRANGERS, refill_s=STRANGER_EVERY_S, most=1)
        self._lock = threading.Lock()
        self._left_out = 0

    def call(
        self,
        identity: Identity,
        *,
        action: str,
        params: Mapping[str, Any],
        code: str,
        request_id: str,
        source: str,
        is_good_once: bool,
    ) -> None:
        """Write down a refused call, and that its signature was used.

        :param is_good_once: whether the same signed request is refused from now on.
        """
        digest = identity.request_digest if is_good_once else ""
        deed = deed_of(
            identity,
            action=action,
            subject=" ".join(objects_of(params)),
            result=code,
            request_id=request_id,
            source=source,
        )

        def write(tx: Transaction) -> None:
            audit.record(tx, deed)
            if digest and audit.fate_of(tx, digest) is None:
                audit.settle_fate(tx, digest, audit.REFUSED)

        self._write(write)

    def stranger(
        self, *, claimed: str, code: str, request_id: str, source: str, now: float
    ) -> None:
        """Write down who was not recognised, unless that was done often enough lately.

        :param claimed: the access key that the request named; empty when it named none.
        """
        if not (self._same.take((source, claimed, code), now) and self._all.take("", now)):
            with self._lock:
                self._left_out += 1
            return
        with self._lock:
            left_out, self._left_out = self._left_out, 0
        deed = audit.Deed(
            actor="",
            access_key_id=claimed,
            project_id="",
            action=AUTHENTICATE,
            subject=f"{left_out} more were left out before" if left_out else "",
            result=code,
            request_id=request_id,
            source=source,
        )
        self._write(lambda tx: audit.record(tx, deed))

    def _write(self, work: Any) -> None:
        try:
            self._parts.need_store().transaction(work)
        except AnynodeError as error:
            log.error("could not write to the audit log: %s", error)


def objects_of(params: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a request names: ids and names, never contents such as user data or tags."""
    for name, value in params.items():
        is_name = name.endswith(("Id", "Ids")) or name in _NAMES
        if is_name and isinstance(value, str):
            yield value[:_LONGEST_NAME]
        elif is_name and isinstance(value, list):
            yield from (each[:_LONGEST_NAME] for each in value if isinstance(each, str))
