"""What makes a node a member: its certificate and key, the others, and what it offers them."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.bus import TlsFiles
from appliance.cluster.members import MemberList
from appliance.errors import ConfigError

if TYPE_CHECKING:
    from appliance.bus.guard import Signer

AUTHORITY, CERTIFICATE, KEY = "authority.pem", "node.pem", "node.key"
MEMBERS = "members.json"

MEMBER_ROLE = "member"
"""The role of every node of a cluster, which no setting names."""

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def folder_of(state_dir: Path) -> Path:
    """Return the folder of what makes a node a member."""
    return state_dir / "cluster"


class Membership:
    """A node among others.

    ``doors`` are what roles of this node answer at its peer service, by the beginning of the path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members = MemberList(folder / MEMBERS)
        self.doors: dict[str, WsgiApp] = {}

    @classmethod
    def of(cls, state_dir: Path) -> Membership | None:
        """Return what a node is a member by; ``None`` for a lone node."""
        folder = folder_of(state_dir)
        return cls(folder) if (folder / CERTIFICATE).exists() else None

    @property
    def bus_tls(self) -> TlsFiles:
        """How a broker is met."""
        return TlsFiles(authority=self.folder / AUTHORITY)

    @property
    def signer(self) -> Signer | None:
        """What signs messages and checks the signatures of others."""
        return None

    def client_context(self) -> ssl.SSLContext:
        """Return what the node meets the peer services of others with.

        :raises ConfigError: its certificate, key or authority cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_verify_locations(self.folder / AUTHORITY)
            context.load_cert_chain(self.folder / CERTIFICATE, self.folder / KEY)
        except OSError as error:
            raise ConfigError(
                f"Could not use the certificate of this node in {self.folder}: {error}.",
                hint="Run the command as root; `anynode join` makes it anew.",
            ) from error
        return context
