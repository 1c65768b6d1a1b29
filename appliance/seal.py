"""Sealing of what must be stored but never be readable in the store: secret access keys.

The key is in a file beside the store, not in it. A sealed value names the key that sealed it, so
that a new key can be added while old values are still read.
"""

from __future__ import annotations

import base64
import os
import secrets
from contextlib import suppress
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Struct

from appliance.errors import ConfigError

_FORM = 1
_NONCE_BYTES = 12
_KEY_ID_BYTES = 4
_HEAD_BYTES = 1 + _KEY_ID_BYTES


class _KeyFile(Struct, frozen=True, kw_only=True):
    """The file: every key by its id, in base64, and which of them seals."""

    current: str
    keys: dict[str, str]


class Seal:
    """Seals and opens with the keys of one file."""

    def __init__(self, keys: _KeyFile) -> None:
        self._current = keys.current
        self._keys = {key_id: base64.b64decode(key) for key_id, key in keys.keys.items()}

    def close(self, clear: bytes, purpose: str) -> bytes:
        """Return ``clear`` sealed; it opens for the same purpose only."""
        head = bytes([_FORM]) + bytes.fromhex(self._current)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = AESGCM(self._keys[self._current]).encrypt(nonce, clear, head + purpose.encode())
        return head + nonce + sealed

    def open(self, sealed: bytes, purpose: str) -> bytes:
        """Return what was sealed.

        :raises ConfigError: the key that sealed it is not in the file, or the value was altered.
        """
        head, rest = sealed[:_HEAD_BYTES], sealed[_HEAD_BYTES:]
        key = self._keys.get(head[1:].hex())
        if head[:1] != bytes([_FORM]) or key is None:
            raise ConfigError(
                f"The key that sealed {purpose.partition(':')[0]} is not in this node's key file.",
                hint="Copy the key file of the node that sealed it.",
            )
        try:
            return AESGCM(key).decrypt(
                rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], head + purpose.encode()
            )
        except (InvalidTag, ValueError) as error:
            raise ConfigError(
                f"A sealed {purpose.partition(':')[0]} in the store was altered."
            ) from error


def key_path(state_dir: Path) -> Path:
    """Return where a node keeps its key file."""
    return state_dir / "seal.json"


def load(path: Path) -> Seal:
    """Return the seal of a key file, made with one new key where there is none.

    :raises ConfigError: the file cannot be read or written, or others may read it.
    """
    try:
        if not path.exists():
            _make(path)
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise ConfigError(
                f"The key file {path} is open to others (mode {mode:04o}).",
                hint=f"Run: chmod 600 {path}",
            )
        return Seal(_read(path))
    except OSError as error:
        raise ConfigError(f"Could not use the key file {path}: {error.strerror}.") from error


def rotate(path: Path) -> Seal:
    """Add a new key that seals from now on; the old ones still open what they sealed.

    :raises ConfigError: the file cannot be read or written; the old file stays.
    """
    try:
        keys = _with_new_key(_read(path).keys)
        _write_beside(path, keys).replace(path)
    except OSError as error:
        raise ConfigError(f"Could not renew the key file {path}: {error.strerror}.") from error
    return Seal(keys)


def text_of(path: Path) -> str:
    """Return a key file as another node of the cluster takes it over: a secret.

    :raises ConfigError: it cannot be read.
    """
    load(path)
    return path.read_text(encoding="ascii")


def adopt(path: Path, text: str) -> None:
    """Take over the keys of another node of the cluster; own ones still open what they sealed.

    Safe to repeat; nothing is written when they are there already.

    :raises ConfigError: that is no key file, or this node's cannot be read or written.
    """
    try:
        given = msgspec.json.decode(text, type=_KeyFile)
    except msgspec.DecodeError as error:
        raise ConfigError("What came as a key file is none.") from error
    try:
        own = _read(path) if path.exists() else _KeyFile(current="", keys={})
        wanted = _KeyFile(current=given.current, keys={**own.keys, **given.keys})
        if wanted != own:
            _write_beside(path, wanted).replace(path)
    except OSError as error:
        raise ConfigError(f"Could not write the key file {path}: {error.strerror}.") from error


def _make(path: Path) -> None:
    beside = _write_beside(path, _with_new_key({}))
    try:
        os.link(beside, path)
    except FileExistsError:
        return  # another process of this node was first; its key counts
    finally:
        beside.unlink()


def _with_new_key(keys: dict[str, str]) -> _KeyFile:
    key_id = secrets.token_hex(_KEY_ID_BYTES)
    key = base64.b64encode(AESGCM.generate_key(256)).decode()
    return _KeyFile(current=key_id, keys={**keys, key_id: key})


def _read(path: Path) -> _KeyFile:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_KeyFile)
    except msgspec.DecodeError as error:
        raise ConfigError(f"The key file {path} is damaged.") from error


def _write_beside(path: Path, keys: _KeyFile) -> Path:
    """Write a whole file under another name, so that nobody ever reads half of one."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(keys))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    return beside
