"""What members ask each other at the peer service, and what they answer: JSON, like messages.

Unknown fields are ignored and new fields have defaults.
"""

from __future__ import annotations

from msgspec import Struct

from appliance.cluster.settings import MemberSettings
from appliance.messages import Members

JOIN, SETTINGS, RENEW, SETTLED = "/join", "/settings", "/renew", "/settled"
MEMBERSHIP = "/membership"
BUS_LOGIN = "/bus-login"
FACTS = "/facts"

VERSIONS = (1,)
"""Forms of these questions that this program understands."""


class PeerMessage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all questions and answers."""


class JoinRequest(PeerMessage, frozen=True, kw_only=True):
    """A machine wants to become a member. What it offers is after its ratios; 0: nothing said.

    ``certificate_request`` is PEM; ``address`` is that of its peer service, without the port.
    """

    token_id: str
    secret: str
    certificate_request: str
    node_id: str
    name: str
    zone: str
    address: str
    port: int
    vcpus: int = 0
    memory_mib: int = 0
    disk_gib: int = 0
    release: str = ""
    versions: tuple[int, ...] = VERSIONS

    def __repr__(self) -> str:
        return f"JoinRequest(node_id={self.node_id!r}, token_id={self.token_id!r})"


class JoinAnswer(PeerMessage, frozen=True, kw_only=True):
    """What makes the machine a member; certificates are PEM."""

    certificate: str
    authority: str
    settings: MemberSettings
    members: Members


class SettingsAnswer(PeerMessage, frozen=True, kw_only=True):
    """What a member is entitled to. ``sealing_keys`` is the key file, for control nodes only.

    ``bus_urls`` and ``also_urls`` are the brokers to be heard, without logins.
    """

    settings: MemberSettings
    sealing_keys: str = ""
    bus_urls: str = ""
    also_urls: str = ""


class BusLoginRequest(PeerMessage, frozen=True, kw_only=True):
    """A member has no login at a broker that it is to hear; its URLs are without one."""

    bus_urls: str


class BusLoginAnswer(PeerMessage, frozen=True, kw_only=True):
    """The URLs with the login, which is new."""

    bus_url: str


class RenewRequest(PeerMessage, frozen=True, kw_only=True):
    """A member wants its next certificate; the request is PEM."""

    certificate_request: str


class RenewAnswer(PeerMessage, frozen=True, kw_only=True):
    """The certificate, PEM, and the bus with a new login where the node's kind has changed."""

    certificate: str
    bus_url: str = ""


class MembershipRequest(PeerMessage, frozen=True, kw_only=True):
    """Is the caller a member still? ``bus_urls`` is the broker that it knows, without a login."""

    known_revision: int = -1
    bus_urls: str = ""


class MembershipAnswer(PeerMessage, frozen=True, kw_only=True):
    """Whether the caller is a member, and who is, without members when it knows that.

    ``bus_url`` is the broker with a new login for the caller where it knows another one.
    """

    is_member: bool
    members: Members | None = None
    bus_url: str = ""
    bus_is_ours: bool = True


class Trouble(PeerMessage, frozen=True, kw_only=True):
    """Why a question was not answered."""

    message: str
    code: str = ""
    hint: str = ""
