"""A signer for tests: one secret for all control nodes, and everything that is signed is in it."""

from __future__ import annotations

import hashlib
import hmac

from appliance.errors import Denied


class TestSigner:
    """Signs for a node with a secret that only control nodes have; all can check."""

    __test__ = False

    def __init__(self, node_id: str, secret: bytes = b"of control nodes") -> None:
        self._node_id = node_id
        self._secret = secret

    def sign(self, key: str, kind: str, message_id: str, body: bytes, expires_at: int) -> bytes:
        return self._seal(self._node_id, key, kind, message_id, body, expires_at)

    def check(
        self, key: str, kind: str, message_id: str, body: bytes, expires_at: int, signature: bytes
    ) -> str:
        node_id = signature.partition(b" ")[0].decode("ascii")
        expected = self._seal(node_id, key, kind, message_id, body, expires_at)
        if not hmac.compare_digest(expected, signature):
            raise Denied("The signature is none of a control node.")
        return node_id

    def _seal(
        self, node_id: str, key: str, kind: str, message_id: str, body: bytes, expires_at: int
    ) -> bytes:
        parts = (node_id, key, kind, message_id, str(expires_at))
        text = b"\0".join([*(part.encode() for part in parts), body])
        return node_id.encode() + b" " + hmac.new(self._secret, text, hashlib.sha256).digest()
