"""Tokens with which machines join: ``anynode1.<address>.<fingerprint>.<id>.<secret>``. Pure.

The fingerprint is that of the cluster's authority: whoever joins can tell the cluster from one that
pretends to be it, before it says anything.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import secrets
from dataclasses import dataclass, field

from appliance.errors import InputError

PREFIX = "anynode1"
VALID_S = 3 * 3600.0
"""Seconds for which a token can be used, unless something else is said."""

LONGEST_S = 30 * 86400.0

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[0-9a-f]{10}")
_SECRET = re.compile(r"[A-Za-z0-9_-]{32}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token as the operator carries it; ``address`` is ``host:port`` of a control node."""

    address: str
    fingerprint: str
    token_id: str
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        """What is printed and typed; a secret."""
        return ".".join((PREFIX, self.address, self.fingerprint, self.token_id, self.secret))

    @property
    def host(self) -> str:
        """The host of the address."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port of the address."""
        return int(self.address.rpartition(":")[2])


def make(address: str, fingerprint: str) -> Token:
    """Make a token of a cluster; it is worth nothing before its hash is stored."""
    return Token(
        address=address,
        fingerprint=fingerprint,
        token_id=secrets.token_hex(5),
        secret=secrets.token_urlsafe(24),
    )


def parse(text: str) -> Token:
    """Return the token that was typed; white space around it does not count.

    :raises InputError: it is none; the message does not show it.
    """
    parts = text.strip().rsplit(".", 3)
    prefix, _, address = parts[0].partition(".")
    if len(parts) != 4 or prefix != PREFIX:
        raise _malformed("it does not begin like one, or has too few parts")
    token = Token(address=address, fingerprint=parts[1], token_id=parts[2], secret=parts[3])
    if not _is_address(address):
        raise _malformed("its address is none")
    checks = (
        (_FINGERPRINT, token.fingerprint, "its fingerprint is none"),
        (_ID, token.token_id, "its id is none"),
        (_SECRET, token.secret, "its last part is too long or was cut off"),
    )
    for pattern, part, problem in checks:
        if not pattern.fullmatch(part):
            raise _malformed(problem)
    return token


def _malformed(problem: str) -> InputError:
    return InputError(
        f"That is no token: {problem}.",
        hint="Copy all of what `anynode token create` printed.",
        code="Token.Malformed",
    )


def _is_address(address: str) -> bool:
    host, _, port = address.rpartition(":")
    if not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) <= 65535:
        return False
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            return ipaddress.ip_address(host).version == 6
        except ValueError:
            return False
    return bool(_HOST.fullmatch(host))


def hash_of(secret: str) -> str:
    """Return what is stored of a secret. It is random and long: guessing it has no end."""
    return hashlib.sha256(secret.encode()).hexdigest()
