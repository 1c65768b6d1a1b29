"""What a member is entitled to, kept up to date: its certificate, its login, its settings."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypeVar

import msgspec

from appliance import seal
from appliance.bus.urls import without_login
from appliance.cluster import certificates, peer_client, settings
from appliance.cluster.certificates import Identity
from appliance.cluster.membership import AUTHORITY, CERTIFICATE, Membership
from appliance.cluster.papers import read_or_make_key
from appliance.cluster.peer_messages import (
    BUS_LOGIN,
    RENEW,
    SETTINGS,
    SETTLED,
    BusLoginAnswer,
    BusLoginRequest,
    PeerMessage,
    RenewAnswer,
    RenewRequest,
    SettingsAnswer,
)
from appliance.cluster.settings import MemberSettings
from appliance.errors import Denied
from appliance.files import write_whole
from appliance.model import Member
from appliance.role import STORE_ROLES
from appliance.world import Clock

log = logging.getLogger(__name__)
A = TypeVar("A", bound=PeerMessage)

_YOUNG_S = 86400.0
"""Seconds for which whatever came before a certificate may not have been ended yet."""


class Entitlement:
    """What the cluster has given this node, followed as its list of members changes.

    :param state_dir: the node's, where its sealing keys are.
    """

    def __init__(self, cluster: Membership, state_dir: Path, clock: Clock) -> None:
        self._cluster = cluster
        self._folder = cluster.folder
        self._state_dir = state_dir
        self._clock = clock
        self._is_settled = False

    def follow(self) -> bool:
        """Get what this node lacks of what it is entitled to; say whether there was anything.

        A certificate of the kind that its roles ask for, renewed after half of its time; then the
        settings of that kind. Cheap when nothing has changed; safe to repeat after any failure.

        :raises Unavailable: no control node answers; what there is goes on to count.
        :raises Denied: this node is a member no more.
        """
        told = settings.read(self._folder)
        own = self._cluster.members.get(told.node_id)
        if own is None:
            return False
        identity = self._identity()
        wants_control = bool(STORE_ROLES.intersection(own.roles))
        if identity.is_control != wants_control or identity.is_half_over(self._clock.now()):
            self._renew(own)
            identity = self._identity()
        current = self._cluster.members.current.revision
        if told.revision >= current and told.is_control == identity.is_control:
            self._settle(identity)
            return False
        self._fetch(identity)
        return True

    def _identity(self) -> Identity:
        text = (self._folder / CERTIFICATE).read_bytes()
        return certificates.identity_of(certificates.read_certificate(text))

    def _doors(self) -> list[Member]:
        """Return the control nodes that answer, those that are down last."""
        return [one for one in self._cluster.members.with_role("controller") if one.is_control]

    def _ask(self, method: str, path: str, question: PeerMessage | None, answer: type[A]) -> A:
        context = self._cluster.client_context()
        return peer_client.first_answer(
            self._doors(),
            lambda member: peer_client.ask(member, context, method, path, question, answer),
        )

    def _renew(self, own: Member) -> None:
        """Get the next certificate, and with one of another kind its login."""
        key = read_or_make_key(self._folder)
        question = RenewRequest(certificate_request=certificates.make_request(key, own.node_id))
        answer = self._ask("POST", RENEW, question, RenewAnswer)
        certificate = certificates.read_certificate(answer.certificate)
        authority = certificates.read_certificate((self._folder / AUTHORITY).read_bytes())
        identity = certificates.check(certificate, authority, self._clock.now())
        if identity.node_id != own.node_id or not certificates.same_key(
            key.public_key(), certificate
        ):
            raise Denied("The certificate that came is not for this node.")
        if answer.bus_url:
            told = settings.read(self._folder)
            settings.write(
                self._folder, msgspec.structs.replace(told, bus_url=answer.bus_url, also_url="")
            )
        # The certificate last: until it is there all of this is asked for again.
        text = certificates.text_of(certificate)
        write_whole(self._folder / CERTIFICATE, text.encode(), mode=0o644)
        log.info("this node has a new certificate, as a %s node", _kind(identity))

    def _fetch(self, identity: Identity) -> None:
        """Get the settings that belong to this node's certificate."""
        answer = self._ask("GET", SETTINGS, None, SettingsAnswer)
        before = settings.read(self._folder)
        if answer.settings.node_id != before.node_id:
            raise Denied("The settings that came are not for this node.")
        if answer.sealing_keys:
            seal.adopt(seal.key_path(self._state_dir), answer.sealing_keys)
        changed = msgspec.structs.replace(
            answer.settings,
            bus_url=self._login_at(answer.bus_urls, before) or before.bus_url,
            also_url=self._login_at(answer.also_urls, before),
        )
        settings.write(self._folder, changed)
        if before.is_control and not identity.is_control:
            seal.key_path(self._state_dir).unlink(missing_ok=True)
        self._is_settled = False

    def _login_at(self, urls: str, before: MemberSettings) -> str:
        """Return the URLs of a broker with this node's login: the one that it has, or a new one."""
        known = {without_login(one): one for one in (before.bus_url, before.also_url) if one}
        if not urls or urls in known:
            return known.get(urls, "")
        question = BusLoginRequest(bus_urls=urls)
        return self._ask("POST", BUS_LOGIN, question, BusLoginAnswer).bus_url

    def _settle(self, identity: Identity) -> None:
        """End what was before this node's certificate, once it goes by all that came with it."""
        if not self._is_settled and self._clock.now() - identity.begins_at < _YOUNG_S:
            self._ask("POST", SETTLED, PeerMessage(), PeerMessage)
        self._is_settled = True


def _kind(identity: Identity) -> str:
    return certificates.CONTROL if identity.is_control else certificates.HYPERVISOR
