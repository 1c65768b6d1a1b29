"""Tickets: leave for one node to fetch one image from others, signed by a control node."""

from __future__ import annotations

import base64
import binascii

import msgspec
from msgspec import Struct

from appliance.cluster.signatures import NodeSigner
from appliance.errors import Denied
from appliance.model import ImageGrant, ImageHolder

HEADER = "Anynode-Ticket"
PATH = "/images"

VALID_S = 3600
"""Seconds for which a ticket is good; a node whose fetch takes longer gets another."""


class _Ticket(Struct, frozen=True, array_like=True):
    sha256: str
    node_id: str
    expires_at: int
    signature: bytes


def make(signer: NodeSigner, sha256: str, node_id: str, now: float) -> str:
    """Return a ticket for a node to fetch an image."""
    expires_at = int(now) + VALID_S
    signature = signer.sign_parts(_parts(sha256, node_id, expires_at))
    ticket = _Ticket(sha256, node_id, expires_at, signature)
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(ticket)).decode("ascii")


def grant(
    signer: NodeSigner, sha256: str, node_id: str, holders: tuple[ImageHolder, ...], now: float
) -> ImageGrant:
    """Return leave for a node to fetch an image from those that hold it."""
    return ImageGrant(sha256=sha256, holders=holders, ticket=make(signer, sha256, node_id, now))


def check(signer: NodeSigner, text: str, sha256: str, node_id: str, now: float) -> None:
    """Make sure that a node may fetch an image now.

    :raises Denied: it has no ticket for that.
    """
    try:
        ticket = msgspec.msgpack.decode(base64.urlsafe_b64decode(text), type=_Ticket)
    except (msgspec.DecodeError, binascii.Error, ValueError) as error:
        raise Denied("An image is fetched with a ticket, and that is none.") from error
    if (ticket.sha256, ticket.node_id) != (sha256, node_id):
        raise Denied("The ticket is for another image or another node.")
    if ticket.expires_at < now:
        raise Denied("The ticket has expired.")
    parts = _parts(ticket.sha256, ticket.node_id, ticket.expires_at)
    signer.check_parts(parts, ticket.signature)


def _parts(sha256: str, node_id: str, expires_at: int) -> tuple[bytes, ...]:
    return (b"image", sha256.encode(), node_id.encode(), str(expires_at).encode())
