"""Signatures of nodes over what they say: with the key of their certificate, which goes along.

Whoever checks needs the authority's certificate and the list of what was revoked, and not the
signer's place in its own list of members: that may be older than the signer.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.cluster import certificates
from appliance.cluster.certificates import Identity
from appliance.errors import ConfigError, Denied
from appliance.world import Clock, SystemClock

_FORM = 1
_LARGEST_CERTIFICATE = 4096
_KEPT = 256
_ECDSA = ec.ECDSA(hashes.SHA256())


class NodeSigner:
    """Signs with a node's key and checks what control nodes have signed.

    :param folder: what makes the node a member; a renewed certificate counts at once.
    :param revoked: returns the serial numbers of certificates that no longer count.
    """

    def __init__(
        self,
        folder: Path,
        revoked: Callable[[], Collection[str]],
        clock: Clock | None = None,
    ) -> None:
        self._folder = folder
        self._revoked = revoked
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._own: tuple[int, bytes, ec.EllipticCurvePrivateKey] | None = None
        self._authority: x509.Certificate | None = None
        self._known: OrderedDict[bytes, tuple[Identity, ec.EllipticCurvePublicKey]] = OrderedDict()

    def sign(self, key: str, kind: str, message_id: str, body: bytes, expires_at: int) -> bytes:
        """Return a signature over a message of a bus, with the certificate that belongs to it.

        :raises ConfigError: the node's key or certificate cannot be used.
        """
        return self.sign_parts(_parts(key, kind, message_id, body, expires_at))

    def check(
        self, key: str, kind: str, message_id: str, body: bytes, expires_at: int, signature: bytes
    ) -> str:
        """Return the id of the control node that has signed a message.

        :raises Denied: none has: it is forged, or its signer is no control node, or no more.
        """
        parts = _parts(key, kind, message_id, body, expires_at)
        return self.check_parts(parts, signature).node_id

    def sign_parts(self, parts: tuple[bytes, ...]) -> bytes:
        """Return a signature over some texts, none of which can be taken for part of another."""
        certificate, own_key = self._own_key()
        signature = own_key.sign(_joined(parts), _ECDSA)
        return bytes([_FORM]) + len(certificate).to_bytes(2, "big") + certificate + signature

    def check_parts(self, parts: tuple[bytes, ...], signature: bytes) -> Identity:
        """Return which control node has signed some texts.

        :raises Denied: none has.
        """
        size = int.from_bytes(signature[1:3], "big")
        if signature[:1] != bytes([_FORM]) or not 0 < size <= _LARGEST_CERTIFICATE:
            raise Denied("That is no signature of a node.")
        certificate, signed = signature[3 : 3 + size], signature[3 + size :]
        identity, public_key = self._signer_of(certificate)
        if not identity.is_control:
            raise Denied(f"Node {identity.node_id} is no control node: its signature is worthless.")
        if identity.serial in self._revoked():
            raise Denied(f"The certificate of node {identity.node_id} was revoked.")
        if self._clock.now() > identity.ends_at:
            raise Denied(f"The certificate of node {identity.node_id} has ended.")
        try:
            public_key.verify(signed, _joined(parts), _ECDSA)
        except InvalidSignature as error:
            raise Denied(f"It is not what node {identity.node_id} has signed.") from error
        return identity

    def _own_key(self) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
        path = self._folder / "node.pem"
        try:
            written_at = path.stat().st_mtime_ns
            own = self._own
            if own is None or own[0] != written_at:
                certificate = certificates.read_certificate(path.read_bytes())
                text = certificate.public_bytes(serialization.Encoding.DER)
                key = certificates.read_key((self._folder / "node.key").read_bytes())
                own = self._own = (written_at, text, key)
        except OSError as error:
            raise ConfigError(f"Could not read {error.filename}: {error.strerror}.") from error
        return own[1], own[2]

    def _signer_of(self, certificate: bytes) -> tuple[Identity, ec.EllipticCurvePublicKey]:
        """Return whose certificate that is, checked once and remembered."""
        digest = hashlib.sha256(certificate).digest()
        with self._lock:
            known = self._known.get(digest)
        if known:
            return known
        try:
            loaded = x509.load_der_x509_certificate(certificate)
            public_key = loaded.public_key()
        except certificates.UNREADABLE as error:
            raise Denied("A signature came with what is no certificate.") from error
        # The one part that its signature does not cover: the same may be written in several ways.
        if not certificate.endswith(b"\0" + loaded.signature):
            raise Denied("A signature came with a certificate that was written in another way.")
        identity = certificates.check(loaded, self._read_authority(), self._clock.now())
        if not isinstance(public_key, ec.EllipticCurvePublicKey):
            raise Denied(f"The key of node {identity.node_id} is of another kind than ours.")
        with self._lock:
            self._known[digest] = (identity, public_key)
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return identity, public_key

    def _read_authority(self) -> x509.Certificate:
        if self._authority is None:
            path = self._folder / "authority.pem"
            try:
                self._authority = certificates.read_certificate(path.read_bytes())
            except OSError as error:
                raise ConfigError(f"Could not read {path}: {error.strerror}.") from error
        return self._authority


def _parts(key: str, kind: str, message_id: str, body: bytes, expires_at: int) -> tuple[bytes, ...]:
    head = (b"message", key.encode(), kind.encode(), message_id.encode())
    return (*head, str(expires_at).encode(), body)


def _joined(parts: tuple[bytes, ...]) -> bytes:
    """Return texts as one in which it is plain where each ends."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in (b"anynode-1", *parts))
