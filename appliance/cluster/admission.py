"""How a control node lets machines in, and what it tells members that they are entitled to."""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from appliance import seal
from appliance.bus import topology
from appliance.bus.urls import with_login
from appliance.cluster import authority as authorities
from appliance.cluster import brokers, certificates, decided
from appliance.cluster.certificates import Identity
from appliance.cluster.decided import Decided
from appliance.cluster.logins import stored_access
from appliance.cluster.management import Access
from appliance.cluster.peer_messages import (
    VERSIONS,
    BusLoginAnswer,
    BusLoginRequest,
    JoinAnswer,
    JoinRequest,
    MembershipAnswer,
    MembershipRequest,
    RenewAnswer,
    RenewRequest,
    SettingsAnswer,
)
from appliance.config import Config
from appliance.errors import AnynodeError, Conflict, Denied, InputError
from appliance.messages import GetMembers, Members
from appliance.model import Member
from appliance.role import STORE_ROLES
from appliance.seal import Seal
from appliance.store import Store, Transaction, audit, cluster_facts, join_tokens, members
from appliance.store import setup as store_setup
from appliance.store.nodes import Node

log = logging.getLogger(__name__)

ROLES = ("datapath", "compute")
"""What a node begins with that has joined: nothing that reaches the store."""

_NODE_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_ZONE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_LARGEST = 1 << 40


class Logins(Protocol):
    """The nodes' logins at the broker; every method is safe to repeat."""

    def admit(self, node_id: str, *, is_control: bool) -> str:
        """Make a node's login, or give it a new password; return the password."""
        ...

    def retire(self, node_id: str, *, is_control: bool) -> None:
        """Remove one kind of login of a node and end its connections."""
        ...

    def remove(self, node_id: str) -> None:
        """Remove all that a node has at the broker."""
        ...


class Admission:
    """What a control node answers strangers who have a token, and members.

    :param config: the settings of this node.
    :param logins: returns the logins at a broker that is administered so.
    """

    def __init__(self, store: Store, config: Config, logins: Callable[[Access], Logins]) -> None:
        self._store = store
        self._config = config
        self._logins = logins
        self._authority = ""

    @property
    def _key_path(self) -> Path:
        return seal.key_path(self._config.state_dir)

    def _seal(self) -> Seal:
        return seal.load(self._key_path)

    def _logins_now(self, sealing: Seal) -> Logins:
        """Return the logins at the broker that messages are sent over."""
        return self._logins(self._store.read(lambda tx: stored_access(tx, sealing)))

    def authority(self) -> str:
        """Return the certificate of the cluster's authority, PEM, as everybody may see it.

        :raises Conflict: there is no cluster yet.
        """
        if not self._authority:
            found = self._store.read(lambda tx: cluster_facts.find(tx, cluster_facts.AUTHORITY))
            if found is None:
                raise Conflict("There is no cluster here yet.")
            self._authority = found
        return self._authority

    def join(self, request: JoinRequest) -> JoinAnswer:
        """Let a machine in: the token is used up in the transaction that makes it a member.

        The same machine, which is one with the same key, may ask again with the same token until
        that has expired; it gets the same certificate, and a new password.

        :raises Denied: the token does not let it in.
        :raises InputError: what it says of itself cannot be.
        :raises Conflict: its name, its address or its id is another's.
        :raises Unavailable: the store or the broker is away; the token is as good as before.
        """
        _check_request(request)
        sealing = self._seal()
        member, is_new = self._store.transaction(lambda tx: self._enrol(tx, sealing, request))
        try:
            password = self._logins_now(sealing).admit(request.node_id, is_control=False)
        except AnynodeError as error:
            log.warning("node %s could not be admitted: %s", request.name, error.message)
            if is_new:
                self._store.transaction(lambda tx: _withdraw(tx, request))
            raise
        log.info("node %s, %s, has joined from %s", member.name, member.node_id, member.address)
        return self._store.read(lambda tx: _join_answer(tx, sealing, member, password))

    def _enrol(self, tx: Transaction, sealing: Seal, request: JoinRequest) -> tuple[Member, bool]:
        """Write a machine down as a member; return it, and whether it is one since now."""
        key = certificates.read_request(request.certificate_request)
        is_new = join_tokens.use(
            tx,
            request.token_id,
            request.secret,
            node_id=request.node_id,
            node_name=request.name,
        )
        known = members.find(tx, request.node_id)
        if known is not None:
            last = certificates.read_certificate(known.certificate)
            if certificates.same_key(key, last):
                return known, False
            if not is_new:
                raise Denied(
                    "This token was used before; each lets one machine join.", code="Token.Used"
                )
        if members.is_known(tx, request.node_id):
            raise Conflict(
                f"There is, or was, a node with the id {request.node_id}.",
                hint="Delete node_id in the state folder and join again.",
                code="Node.Known",
            )
        made = authorities.get(tx, sealing).certify(
            key, request.node_id, is_control=False, now=tx.now
        )
        node = Node(node_id=request.node_id, name=request.name, zone=request.zone, roles=ROLES)
        members.enrol(
            tx,
            node,
            certificate=certificates.text_of(made),
            address=decided.joined_address(request.address, request.port),
            approved=(request.vcpus, request.memory_mib, request.disk_gib),
        )
        store_setup.prepare_zone(tx, self._config, request.zone)
        members.changed(tx)
        subject = f"{request.name} {request.node_id} with token {request.token_id}"
        audit.record_command(tx, f"node {request.name}", "JoinNode", subject)
        found = members.find(tx, request.node_id)
        assert found is not None
        return found, True

    def membership(self, caller: Identity, request: MembershipRequest) -> MembershipAnswer:
        """Say whether a node is a member, and who else; give it a login where it knows none.

        :raises Unavailable: the store is away; or the node knows another broker than the
            cluster's, and that does not answer.
        """
        sealing = self._seal()
        question = GetMembers(node_id=caller.node_id, known_revision=request.known_revision)

        def look(tx: Transaction) -> tuple[Members, Decided] | None:
            is_known = members.find(tx, caller.node_id) is not None
            if not is_known or members.is_revoked(tx, caller.serial):
                return None
            return members.answer(tx, question), decided.get(tx, sealing)

        found = self._store.read(look)
        if found is None:
            return MembershipAnswer(is_member=False)
        known, what = found
        answer = MembershipAnswer(is_member=True, members=known, bus_is_ours=what.bus_is_ours)
        if not request.bus_urls or request.bus_urls == what.bus_urls:
            return answer
        password = self._logins_now(sealing).admit(caller.node_id, is_control=caller.is_control)
        login = topology.login_of(caller.node_id, is_control=caller.is_control)
        url = with_login(what.bus_urls, login, password)
        return msgspec.structs.replace(answer, bus_url=url)

    def settings(self, caller: Identity) -> SettingsAnswer:
        """Return what a member is entitled to by its certificate.

        :raises Denied: it is a member no more.
        """
        sealing = self._seal()

        def look(tx: Transaction) -> SettingsAnswer:
            member, what = _check_caller(tx, caller), decided.get(tx, sealing)
            told = decided.settings_of(
                what,
                member,
                members.revision(tx),
                is_control=caller.is_control,
            )
            keys = seal.text_of(self._key_path) if caller.is_control else ""
            return SettingsAnswer(
                settings=told, sealing_keys=keys, bus_urls=what.bus_urls, also_urls=what.also_urls
            )

        return self._store.read(look)

    def bus_login(self, caller: Identity, request: BusLoginRequest) -> BusLoginAnswer:
        """Give a member a login, or a new password, at a broker that all shall hear.

        :raises Denied: it is a member no more.
        :raises Conflict: nodes shall hear another broker by now.
        :raises Unavailable: the store or the broker is away; to be repeated.
        """
        sealing, urls = self._seal(), request.bus_urls

        def look(tx: Transaction) -> Access:
            _check_caller(tx, caller)
            return brokers.access_to(tx, sealing, urls)

        access = self._store.read(look)
        password = self._logins(access).admit(caller.node_id, is_control=caller.is_control)
        login = topology.login_of(caller.node_id, is_control=caller.is_control)
        return BusLoginAnswer(bus_url=with_login(urls, login, password))

    def renew(self, caller: Identity, request: RenewRequest) -> RenewAnswer:
        """Return a member's next certificate, of the kind that its roles ask for.

        The old one goes on until :meth:`settled`. Safe to repeat: there is no further certificate
        while the last one is young and fits.

        :raises Denied: it is a member no more.
        :raises InputError: that is no request.
        :raises Unavailable: the store or the broker is away; to be repeated.
        """
        sealing = self._seal()
        text = request.certificate_request
        member = self._store.transaction(lambda tx: _renew(tx, sealing, caller, text))
        if member.is_control == caller.is_control:
            return RenewAnswer(certificate=member.certificate)
        password = self._logins_now(sealing).admit(member.node_id, is_control=member.is_control)
        urls = self._store.read(lambda tx: decided.get(tx, sealing)).bus_urls
        login = topology.login_of(member.node_id, is_control=member.is_control)
        return RenewAnswer(
            certificate=member.certificate, bus_url=with_login(urls, login, password)
        )

    def settled(self, caller: Identity) -> None:
        """End what a member had before its newest certificate, which it shows now.

        :raises Denied: it is a member no more.
        """

        def is_due(tx: Transaction) -> bool:
            newest = _identity(_check_caller(tx, caller))
            return newest.serial == caller.serial and members.has_superseded(tx, caller.node_id)

        if not self._store.read(is_due):
            return
        sealing = self._seal()
        for access in self._store.read(lambda tx: brokers.all_access(tx, sealing)):
            self._logins(access).retire(caller.node_id, is_control=not caller.is_control)

        def revoke(tx: Transaction) -> None:
            if members.revoke_superseded(tx, caller.node_id):
                members.changed(tx)

        self._store.transaction(revoke)


def _check_request(request: JoinRequest) -> None:
    """Refuse what a machine cannot be.

    :raises InputError: it says something of the kind.
    """
    if not set(VERSIONS).intersection(request.versions):
        raise InputError(
            f"This cluster speaks versions {VERSIONS} to new nodes, and the machine speaks "
            f"{request.versions[:10]}.",
            hint="Install the same release on both.",
        )
    for pattern, value, what in (
        (_NODE_ID, request.node_id, "id of a node"),
        (_NAME, request.name, "name of a node: letters, digits, dots and dashes, at most 63"),
        (_ZONE, request.zone, "name of a zone: letters, digits and dashes, at most 63"),
    ):
        if not pattern.fullmatch(value):
            raise InputError(f"{value[:100]!r} is no {what}.")
    try:
        address = ipaddress.ip_address(request.address)
    except ValueError as error:
        raise InputError(f"{request.address[:100]!r} is no IP address.") from error
    if address.is_unspecified or address.is_multicast or not 0 < request.port <= 65535:
        raise InputError(f"No node can be reached at {address}, port {request.port}.")
    if not all(
        0 <= one < _LARGEST for one in (request.vcpus, request.memory_mib, request.disk_gib)
    ):
        raise InputError("A machine cannot offer that much, or less than nothing.")


def _withdraw(tx: Transaction, request: JoinRequest) -> None:
    members.withdraw(tx, request.node_id)
    members.changed(tx)
    join_tokens.give_back(tx, request.token_id, request.node_id)


def _join_answer(tx: Transaction, sealing: Seal, member: Member, password: str) -> JoinAnswer:
    what = decided.get(tx, sealing)
    login = topology.login_of(member.node_id, is_control=False)
    known = members.answer(tx, GetMembers(node_id=member.node_id, known_revision=-1))
    told = decided.settings_of(
        what,
        member,
        known.revision,
        is_control=False,
        bus_url=with_login(what.bus_urls, login, password),
    )
    return JoinAnswer(
        certificate=member.certificate,
        authority=authorities.get(tx, sealing).text,
        settings=told,
        members=known,
    )


def _check_caller(tx: Transaction, caller: Identity) -> Member:
    """Return the member that calls.

    :raises Denied: it is one no more.
    """
    member = members.find(tx, caller.node_id)
    if member is None or members.is_revoked(tx, caller.serial):
        raise Denied(
            f"Node {caller.node_id} is a member no more, or its certificate was revoked.",
            hint="`anynode join` with a new token makes it one again.",
        )
    return member


def _identity(member: Member) -> Identity:
    return certificates.identity_of(certificates.read_certificate(member.certificate))


def _renew(tx: Transaction, sealing: Seal, caller: Identity, text: str) -> Member:
    """Return a member with its next certificate, made unless the last one fits."""
    member = _check_caller(tx, caller)
    key = certificates.read_request(text)
    last = certificates.read_certificate(member.certificate)
    before = certificates.identity_of(last)
    is_control = bool(STORE_ROLES.intersection(member.roles))
    is_same = certificates.same_key(key, last) and before.is_control == is_control
    if is_same and not before.is_half_over(tx.now):
        return member
    host = member.address.rpartition(":")[0].strip("[]")
    made = authorities.get(tx, sealing).certify(
        key, member.node_id, is_control=is_control, addresses=[host], now=tx.now
    )
    members.supersede(tx, before)
    members.certify(
        tx, member.node_id, certificate=certificates.text_of(made), is_control=is_control
    )
    members.changed(tx)
    log.info("node %s has a new certificate", member.name)
    found = members.find(tx, member.node_id)
    assert found is not None
    return found
