"""Keys that a user makes for himself."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def make_public_key() -> str:
    """Return the public half of a new key, as ssh-keygen would write it."""
    public = Ed25519PrivateKey.generate().public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() + " user@laptop\n"


def write_public_key(path: Path) -> None:
    """Write the public half of a new key into a file."""
    path.write_text(make_public_key())
