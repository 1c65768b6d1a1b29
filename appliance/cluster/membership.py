"""What makes a node a member: its certificate and key, the others, and what it offers them."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from appliance.bus import Place, TlsFiles
from appliance.bus.urls import split
from appliance.cluster import settings as cluster_settings
from appliance.cluster.members import MemberList
from appliance.cluster.settings import folder_of as folder_of
from appliance.cluster.signatures import NodeSigner
from appliance.config import Config
from appliance.errors import ConfigError
from appliance.files import write_whole
from appliance.model import Member
from appliance.role import STORE_ROLES

AUTHORITY, CERTIFICATE, KEY = "authority.pem", "node.pem", "node.key"
MEMBERS = "members.json"
REMOVAL = "removal.json"

MEMBER_ROLE = "member"
"""The role of every node of a cluster, which no setting names."""

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Removal(Struct, frozen=True, kw_only=True):
    """That a node is a member no more; it learnt so at ``learnt_at``, in seconds of the epoch."""

    learnt_at: float
    told_by: str = ""


class Membership:
    """A node among others.

    ``doors`` are what roles of this node answer at its peer service, by the beginning of the path;
    ``open_doors`` are those that strangers may come to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members = MemberList(folder / MEMBERS)
        self.doors: dict[str, WsgiApp] = {}
        self.open_doors: set[str] = set()
        self._signer = NodeSigner(folder, lambda: self.members.revoked)
        self._contexts: dict[int, tuple[int, ssl.SSLContext]] = {}
        self._removal: Removal | None = None

    @classmethod
    def of(cls, state_dir: Path) -> Membership | None:
        """Return what a node is a member by; ``None`` for a lone node."""
        folder = folder_of(state_dir)
        return cls(folder) if (folder / CERTIFICATE).exists() else None

    @property
    def removal(self) -> Removal | None:
        """That this node was removed from its cluster; ``None`` while it is a member.

        Nothing undoes it but a new join, which brings another folder.
        """
        if self._removal is None:
            self._removal = _read_removal(self.folder / REMOVAL)
        return self._removal

    def note_removal(self, removal: Removal) -> None:
        """Remember that this node was removed."""
        self._removal = removal
        write_whole(self.folder / REMOVAL, msgspec.json.encode(removal))

    @property
    def is_told(self) -> bool:
        """Whether the cluster has told this node what it is entitled to."""
        return (self.folder / cluster_settings.SETTINGS).exists()

    @property
    def bus_tls(self) -> TlsFiles | None:
        """How a broker is met that the cluster's authority vouches for; ``None`` for others."""
        if self.is_told and not cluster_settings.read(self.folder).bus_is_ours:
            return None
        return self.own_tls

    @property
    def also_bus(self) -> Place | None:
        """Another broker that this node hears while messages move; ``None`` at other times."""
        if not self.is_told:
            return None
        told = cluster_settings.read(self.folder)
        if not told.also_url:
            return None
        tls = self.own_tls if told.also_is_ours else None
        return Place(urls=tuple(split(told.also_url)), tls=tls)

    @property
    def own_tls(self) -> TlsFiles:
        """How a broker is met that the cluster's authority vouches for."""
        return TlsFiles(
            authority=self.folder / AUTHORITY,
            certificate=self.folder / CERTIFICATE,
            key=self.folder / KEY,
        )

    def settings_of(self, config: Config, own: Member | None) -> Config:
        """Return a node's settings as the cluster wants them now, its roles with them.

        Those that reach the store come once the node has what they need: settings that name the
        store, which it gets with the certificate of a control node.

        :param own: the node in the list of members; ``None`` when it was removed.
        """
        may_reach_store = bool(own and own.is_control)
        if self.is_told:
            told = cluster_settings.read(self.folder)
            layers = cluster_settings.layers_of(told, self.folder)
            config = cluster_settings.with_layers(config, layers)
            may_reach_store = told.is_control
        roles = own.roles if own else ()
        if not may_reach_store:
            roles = tuple(name for name in roles if name not in STORE_ROLES)
        node = msgspec.structs.replace(config.node, roles=roles)
        return msgspec.structs.replace(config, node=node)

    @property
    def signer(self) -> NodeSigner:
        """What signs messages and checks the signatures of others."""
        return self._signer

    def client_context(self) -> ssl.SSLContext:
        """Return what the node meets the peer services of others with: its newest certificate.

        :raises ConfigError: its certificate, key or authority cannot be used.
        """
        return self._context(ssl.PROTOCOL_TLS_CLIENT, ssl.CERT_REQUIRED)

    def server_context(self) -> ssl.SSLContext:
        """Return what the node meets others with at its own peer service.

        Who shows no certificate is let in so far: `/join` is for strangers.

        :raises ConfigError: its certificate, key or authority cannot be used.
        """
        return self._context(ssl.PROTOCOL_TLS_SERVER, ssl.CERT_OPTIONAL)

    def _context(self, side: ssl._SSLMethod, asks: ssl.VerifyMode) -> ssl.SSLContext:
        try:
            written_at = (self.folder / CERTIFICATE).stat().st_mtime_ns
            known = self._contexts.get(side)
            if known and known[0] == written_at:
                return known[1]
            context = ssl.SSLContext(side)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.verify_mode = asks
            context.load_verify_locations(self.folder / AUTHORITY)
            context.load_cert_chain(self.folder / CERTIFICATE, self.folder / KEY)
        except OSError as error:
            raise ConfigError(
                f"Could not use the certificate of this node in {self.folder}: {error}.",
                hint="Run the command as root; `anynode join` makes it anew.",
            ) from error
        self._contexts[side] = (written_at, context)
        return context


def _read_removal(path: Path) -> Removal | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Removal)
    except (OSError, msgspec.DecodeError):
        return None
