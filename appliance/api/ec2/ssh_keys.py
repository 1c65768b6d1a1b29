"""SSH keys: making them, reading those of others, and their fingerprints in EC2's forms."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from appliance.api.ec2 import errors

RSA, ED25519 = "rsa", "ed25519"
RSA_BITS = 2048
_LEAST_RSA_BITS, _MOST_RSA_BITS = 1024, 16384

LONGEST_KEY = 16 * 1024
_RFC4716 = re.compile(
    rb"---- BEGIN SSH2 PUBLIC KEY ----\s+(.*?)---- END SSH2 PUBLIC KEY ----", re.DOTALL
)

_PublicKey = rsa.RSAPublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True, kw_only=True)
class PublicKey:
    """A public key: ``line`` is OpenSSH's form without a comment."""

    type: str
    line: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """A key just made: ``private`` is shown once and kept nowhere."""

    public: PublicKey
    private: str


def make(kind: str) -> NewKey:
    """Make a key; about 100 ms for RSA.

    Its fingerprint is that of the private key for RSA, as EC2 does.
    """
    plain = serialization.NoEncryption()
    if kind == ED25519:
        edwards = ed25519.Ed25519PrivateKey.generate()
        private = edwards.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, plain
        )
        return NewKey(public=_described(edwards.public_key()), private=private.decode("ascii"))
    key = rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain
    )
    der = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, plain)
    public = PublicKey(
        type=RSA,
        line=_line(key.public_key()),
        fingerprint=_colons(hashlib.sha1(der, usedforsecurity=False).hexdigest()),
    )
    return NewKey(public=public, private=private.decode("ascii"))


def read(material: bytes) -> PublicKey:
    """Return the key of somebody's public key file.

    It may be OpenSSH's line, an RFC 4716 file, PEM, or DER in base64 or plain. The same key has
    the same fingerprint whatever the form.

    :raises Ec2Error: it is none of these, or no RSA or Ed25519 key.
    """
    if len(material) > LONGEST_KEY:
        raise errors.key_format()
    try:
        key = _parsed(material.strip())
    except (ValueError, UnsupportedAlgorithm, binascii.Error) as error:
        raise errors.key_format() from error
    if isinstance(key, rsa.RSAPublicKey):
        if not _LEAST_RSA_BITS <= key.key_size <= _MOST_RSA_BITS:
            raise errors.key_format()
    elif not isinstance(key, ed25519.Ed25519PublicKey):
        raise errors.key_format()
    return _described(key)


def _parsed(text: bytes) -> object:
    if text.startswith(b"-----BEGIN "):
        return serialization.load_pem_public_key(text)
    wrapped = _RFC4716.search(text)
    if wrapped:
        return _parsed_rfc4716(wrapped[1])
    if text.startswith((b"ssh-", b"ecdsa-", b"sk-")):
        if len(text.splitlines()) > 1:
            raise ValueError("more than one line")
        return serialization.load_ssh_public_key(text)
    try:
        decoded = base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error:
        decoded = text
    return serialization.load_der_public_key(decoded)


def _parsed_rfc4716(inside: bytes) -> object:
    lines: list[bytes] = []
    is_header = False
    for line in inside.splitlines():
        if is_header or b":" in line:
            is_header = line.endswith(b"\\")
        else:
            lines.append(line.strip())
    blob = b"".join(lines)
    raw = base64.b64decode(blob, validate=True)
    length = int.from_bytes(raw[:4], "big")
    return serialization.load_ssh_public_key(raw[4 : 4 + length] + b" " + blob)


def _described(key: _PublicKey) -> PublicKey:
    line = _line(key)
    if isinstance(key, rsa.RSAPublicKey):
        der = key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        digest = hashlib.md5(der, usedforsecurity=False).hexdigest()
        return PublicKey(type=RSA, line=line, fingerprint=_colons(digest))
    blob = base64.b64decode(line.split()[1])
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii")
    return PublicKey(type=ED25519, line=line, fingerprint=digest)


def _line(key: _PublicKey) -> str:
    return key.public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    ).decode("ascii")


def _colons(digest: str) -> str:
    return ":".join(digest[i : i + 2] for i in range(0, len(digest), 2))
