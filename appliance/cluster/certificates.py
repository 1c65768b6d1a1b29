"""Keys and certificates: what a node proves with who it is, and which of the two kinds it is of.

A certificate's common name is the node's id, its organizational unit the kind. Pure, apart from the
randomness of keys.
"""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from msgspec import Struct

from appliance.errors import ConfigError, Denied, InputError

CONTROL, HYPERVISOR = "control", "hypervisor"
"""The organizational units: nodes that may reach the store, and those that may not."""

_LARGEST_REQUEST = 8192

UNREADABLE = (
    *(ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature),
    *(x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType),
)
"""What cryptography raises for what a stranger may have made up."""


class Identity(Struct, frozen=True, kw_only=True):
    """Who a certificate says its holder is. ``serial`` is hexadecimal, as in lists of revoked ones.

    Times are seconds since the epoch.
    """

    node_id: str
    is_control: bool
    serial: str
    begins_at: float
    ends_at: float

    def is_half_over(self, now: float) -> bool:
        """Say whether it is time to renew the certificate."""
        return now > (self.begins_at + self.ends_at) / 2


def make_key() -> ec.EllipticCurvePrivateKey:
    """Make a key on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def key_text(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a key as PEM, in the clear."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def read_key(text: bytes) -> ec.EllipticCurvePrivateKey:
    """Return the key of a PEM.

    :raises ConfigError: it is no key of ours; the message does not show it.
    """
    try:
        key = serialization.load_pem_private_key(text, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError("The key of a node or of the authority is damaged.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("The key of a node or of the authority is of another kind than ours.")
    return key


def text_of(certificate: x509.Certificate) -> str:
    """Return a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


def read_certificate(text: str | bytes) -> x509.Certificate:
    """Return the certificate of a PEM, the first if there are several.

    :raises InputError: it is none.
    """
    try:
        return x509.load_pem_x509_certificate(text.encode() if isinstance(text, str) else text)
    except UNREADABLE as error:
        raise InputError("That is no certificate.") from error


def read_der(content: bytes) -> x509.Certificate:
    """Return the certificate of a DER.

    :raises Denied: it is none.
    """
    try:
        return x509.load_der_x509_certificate(content)
    except UNREADABLE as error:
        raise Denied("That is no certificate.") from error


def make_request(key: ec.EllipticCurvePrivateKey, node_id: str) -> str:
    """Return a request for a certificate, PEM; it proves that who asks has the key."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node_id)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    signed = request.sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode("ascii")


def read_request(text: str) -> ec.EllipticCurvePublicKey:
    """Return the key that a request asks a certificate for; all else that it says is ignored.

    :raises InputError: it is none, was not signed with that key, or the key is of another kind.
    """
    try:
        if len(text) > _LARGEST_REQUEST:
            raise ValueError("it is too long")
        request = x509.load_pem_x509_csr(text.encode("ascii"))
        is_valid = request.is_signature_valid
        key = request.public_key()
    except UNREADABLE as error:
        raise InputError("That is no request for a certificate.") from error
    if not is_valid:
        raise InputError("The request for a certificate is not signed with its key.")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InputError("A node's key is on the curve P-256.")
    return key


def same_key(one: ec.EllipticCurvePublicKey, certificate: x509.Certificate) -> bool:
    """Say whether a certificate is for that key."""
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return one.public_bytes(*form) == certificate.public_key().public_bytes(*form)


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate, hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def identity_of(certificate: x509.Certificate) -> Identity:
    """Return who a certificate says its holder is; who has signed it is not looked at.

    :raises Denied: it is no node's.
    """
    names = [_only(certificate, oid) for oid in (NameOID.COMMON_NAME, _UNIT)]
    if not names[0] or names[1] not in (CONTROL, HYPERVISOR):
        raise Denied("The certificate is no node's.")
    return Identity(
        node_id=names[0],
        is_control=names[1] == CONTROL,
        serial=serial_text(certificate.serial_number),
        begins_at=certificate.not_valid_before_utc.timestamp(),
        ends_at=certificate.not_valid_after_utc.timestamp(),
    )


_UNIT = NameOID.ORGANIZATIONAL_UNIT_NAME


def _only(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> str:
    """Return the one value of a kind in the subject; nothing when there are none or several."""
    found = certificate.subject.get_attributes_for_oid(oid)
    return str(found[0].value) if len(found) == 1 else ""


def server_name(node_id: str) -> str:
    """Return the name by which a node's certificate is met, wherever the node is."""
    return f"{node_id}.node"


def serial_text(number: int) -> str:
    """Return a serial number as lists of revoked certificates have it."""
    return f"{number:x}"


def check(certificate: x509.Certificate, authority: x509.Certificate, now: float) -> Identity:
    """Return who the holder of a certificate is, once the authority's word for it was checked.

    Whether it was revoked is for the caller to see.

    :raises Denied: another authority has signed it, it was altered, or it is not valid now.
    """
    try:
        certificate.verify_directly_issued_by(authority)
        identity = identity_of(certificate)
    except UNREADABLE as error:
        raise Denied("The cluster's authority has not signed this certificate.") from error
    if not identity.begins_at <= now <= identity.ends_at:
        until = datetime.datetime.fromtimestamp(identity.ends_at, datetime.UTC)
        raise Denied(
            f"The certificate of node {identity.node_id} is valid until {until:%Y-%m-%d %H:%M} UTC "
            "only, or not yet.",
            hint="Look at the clocks of both nodes.",
        )
    return identity
