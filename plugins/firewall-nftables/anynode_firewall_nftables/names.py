"""Names and values that are safe inside nft's text; everything rendered goes through here."""

from __future__ import annotations

import hashlib
import re

from appliance.errors import InputError

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_DEVICE = re.compile(r"[A-Za-z0-9_.-]{1,15}\Z")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")


def checked_network_id(network_id: str) -> str:
    """Return the id, which is kept in the kernel as it is.

    :raises InputError: it has characters that nft would read as something else.
    """
    if not _ID.match(network_id):
        raise InputError(f"The firewall cannot name a network {network_id!r}.")
    return network_id


def checked_device(name: str) -> str:
    """Return the name of a network device.

    :raises InputError: no device can be called so.
    """
    if not _DEVICE.match(name):
        raise InputError(f"There can be no network device called {name!r}.")
    return name


def is_device(name: str) -> bool:
    """Return whether a network device can be called so."""
    return bool(_DEVICE.match(name))


def canonical_mac(mac: str) -> str | None:
    """Return a unicast MAC address in lower case; ``None`` when it is none."""
    mac = mac.lower()
    return mac if _MAC.match(mac) and not int(mac[:2], 16) & 1 else None


def token(identifier: str) -> str:
    """Return the id itself where nft can take it as a name, else a digest of it."""
    if _ID.match(identifier):
        return identifier
    return "x" + hashlib.sha256(identifier.encode(errors="replace")).hexdigest()[:24]
