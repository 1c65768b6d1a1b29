"""How a machine becomes a member of a cluster: by a token, and never by half.

All that makes it one is made in a folder beside the one that counts; the last step gives that its
name. What was interrupted is continued by joining again, with the same token and the same key.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec import Struct

from appliance import node_folders, node_process
from appliance.cluster import certificates, peer_client, settings
from appliance.cluster.membership import Membership
from appliance.cluster.papers import read_or_make_key
from appliance.cluster.peer_client import Line
from appliance.cluster.peer_messages import JOIN, SETTINGS, JoinAnswer, JoinRequest, SettingsAnswer
from appliance.cluster.settings import MemberSettings, folder_of
from appliance.cluster.tokens import Token
from appliance.config import Config
from appliance.errors import AnynodeError, Conflict, Denied, InputError
from appliance.files import sync_folder, write_whole
from appliance.messages import Members
from appliance.store import Store, overview, sqlite_path
from appliance.world import World

Say = Callable[[str], None]

BACKUP = ".before-cluster"
_ID_IS_TAKEN = "Node.Known"

_HEARD_S = 6.0
"""Seconds after which every control node has heard of a new member."""

_PAUSE_S = 0.5


class Wishes(Struct, frozen=True, kw_only=True):
    """What the operator says of the node; empty: what the settings say, or what can be found."""

    name: str = ""
    zone: str = ""
    address: str = ""
    port: int = 0


class Offer(Struct, frozen=True, kw_only=True):
    """What the machine offers to instances, after its ratios."""

    vcpus: int = 0
    memory_mib: int = 0
    disk_gib: int = 0


def joining_folder_of(state_dir: Path) -> Path:
    """Return the folder in which a machine that joins keeps what it has so far."""
    return state_dir / "cluster-joining"


@dataclass
class Joining:
    """One machine that joins.

    :param config: its settings as a lone node.
    :param offer: returns what it offers to instances.
    :param say: called with a line when something was done.
    """

    config: Config
    config_path: Path | None
    token: Token
    wishes: Wishes
    offer: Callable[[Config], Offer]
    say: Say = lambda text: None
    world: World = field(default_factory=World)
    _has_asked: bool = field(default=False, init=False)

    @property
    def _folder(self) -> Path:
        return joining_folder_of(self.config.state_dir)

    @property
    def _lone_store(self) -> Path | None:
        path = sqlite_path(self.config.store_url)
        return path if path and path.exists() else None

    def check(self) -> bool:
        """Say whether there is anything to do, once it was seen that it can be done.

        :returns: ``False`` when this node is a member of that very cluster.
        :raises Conflict: it belongs to another, begins one, or has instances of its own.
        """
        folder = folder_of(self.config.state_dir)
        if folder.exists() and not _was_removed(folder):
            if _fingerprint_in(folder) == self.token.fingerprint:
                return not self._is_member(folder)
            raise Conflict(
                "This node belongs to another cluster.",
                hint="Take it out there first: `anynode node remove` on a control node.",
            )
        if (self.config.state_dir / "cluster-new").exists():
            raise Conflict(
                "A cluster is being begun on this node.", hint="`anynode init` goes on with it."
            )
        self._check_no_instances()
        return True

    def _is_member(self, folder: Path) -> bool:
        """Say whether the cluster still takes this node for a member.

        :raises Unavailable: it does not answer.
        """
        authority = (folder / "authority.pem").read_text(encoding="ascii")
        until = self.world.clock.monotonic() + _HEARD_S
        while True:
            line, _ = peer_client.connect_to_control(self.token.address, authority, folder)
            try:
                peer_client.asked(line, "GET", SETTINGS, None, SettingsAnswer)
                return True
            except Denied:
                # Who was let in a moment ago is not known to all control nodes yet.
                if self.world.clock.monotonic() > until:
                    return False
            finally:
                line.close()
            self.world.clock.sleep(_PAUSE_S)

    def _check_no_instances(self) -> None:
        if not self._lone_store:
            return
        with contextlib.closing(Store(self.config.store_url, self.world)) as store:
            own = store.read(overview.list_instances)
        if own:
            raise Conflict(
                f"This node has instances of its own: {', '.join(one.instance_id for one in own)}.",
                hint="Terminate them first, or let the others join this node: `anynode init`.",
            )

    def run(self) -> MemberSettings:
        """Join, and switch over; the node is to be started then. Safe to repeat.

        :raises Denied: it is another cluster than the token's (nothing was sent), or the token does
            not let this machine in.
        :raises Unavailable: the cluster is away, or the answer did not come; to be repeated with
            the same token.
        """
        is_new = not self._folder.exists()
        self._make_folder()
        try:
            answer = self._admitted()
            self._keep(answer)
        except BaseException as error:
            # Once asked, the cluster may have said yes: then this key is the one that it knows.
            is_refused = isinstance(error, (Denied, Conflict, InputError))
            if is_new and (is_refused or not self._has_asked):
                shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._switch()
        return answer.settings

    def _make_folder(self) -> None:
        node_folders.make_folder(self.config.state_dir)
        node_folders.make_folder(self.config.run_dir)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        own = self.config.state_dir / "node_id"
        if own.exists() and not (self._folder / "node_id").exists():
            write_whole(self._folder / "node_id", own.read_bytes(), mode=0o644)

    @property
    def _node_id(self) -> str:
        return node_folders.remembered_id(self._folder / "node_id", self.world)

    def _admitted(self) -> JoinAnswer:
        """Return what the cluster has given this machine."""
        authority = self._check_authority()
        line, _ = peer_client.connect_to_control(self.token.address, authority)
        try:
            request = self._request(line)
            self.say(f"ask {self.token.address} to let {request.name} in, at {request.address}")
            self._has_asked = True
            try:
                return peer_client.asked(line, "POST", JOIN, request, JoinAnswer)
            except Conflict as error:
                if error.exact_code != _ID_IS_TAKEN:
                    raise
        finally:
            line.close()
        return self._admitted_with_another_id(authority)

    def _admitted_with_another_id(self, authority: str) -> JoinAnswer:
        """Ask again as another node: this machine was one before, or is a copy of one."""
        new_id = self.world.ids.uuid()
        self.say(f"the id of this machine is known there already: it joins as {new_id}")
        write_whole(self._folder / "node_id", f"{new_id}\n".encode(), mode=0o644)
        line, _ = peer_client.connect_to_control(self.token.address, authority)
        try:
            return peer_client.asked(line, "POST", JOIN, self._request(line), JoinAnswer)
        finally:
            line.close()

    def _check_authority(self) -> str:
        """Return the certificate of the token's cluster, PEM.

        :raises Denied: who answers has another.
        """
        shown, authority = peer_client.read_authority(self.token.address), ""
        try:
            certificate = certificates.read_certificate(shown)
            # Without what else was shown: all of it would be taken for an authority's.
            authority = certificates.text_of(certificate)
            found = certificates.fingerprint(certificate)
        except InputError:
            found = "none at all"
        if found != self.token.fingerprint:
            raise Denied(
                f"Who answers at {self.token.address} is not the cluster that the token is from: "
                f"the fingerprint of its authority is {found}, not {self.token.fingerprint}.",
                hint="Somebody may be between, or another cluster lives there; nothing was sent.",
                code="Token.OtherCluster",
            )
        self.say(f"{self.token.address} is of the token's cluster, {found[:16]}…")
        return authority

    def _request(self, line: Line) -> JoinRequest:
        from importlib.metadata import version

        key = read_or_make_key(self._folder)
        node_id = self._node_id
        offer = self.offer(self.config)
        wanted = self.wishes.address or self.config.cluster.address
        return JoinRequest(
            token_id=self.token.token_id,
            secret=self.token.secret,
            certificate_request=certificates.make_request(key, node_id),
            node_id=node_id,
            name=self.wishes.name or self.config.node_name,
            zone=self.wishes.zone or self.config.node.zone,
            # Without a word of the operator's: the one from which the cluster was reached.
            address=wanted or str(line.sock.getsockname()[0]),
            port=self.wishes.port or self.config.cluster.port,
            vcpus=offer.vcpus,
            memory_mib=offer.memory_mib,
            disk_gib=offer.disk_gib,
            release=version("anynode"),
        )

    def _keep(self, answer: JoinAnswer) -> None:
        """Write down what makes this machine a member, once it was checked.

        :raises Denied: the answer does not fit what was asked.
        """
        authority = certificates.read_certificate(answer.authority)
        certificate = certificates.read_certificate(answer.certificate)
        identity = certificates.check(certificate, authority, self.world.clock.now())
        key = read_or_make_key(self._folder)
        if (
            certificates.fingerprint(authority) != self.token.fingerprint
            or identity.node_id != self._node_id
            or not certificates.same_key(key.public_key(), certificate)
        ):
            raise Denied("The cluster's answer does not fit: the certificate is not for this node.")
        for name, one in (("authority.pem", authority), ("node.pem", certificate)):
            write_whole(self._folder / name, certificates.text_of(one).encode(), mode=0o644)
        write_whole(self._folder / "members.json", msgspec.json.encode(answer.members))
        settings.write(self._folder, answer.settings)
        self.say(f"got the certificate of node {identity.node_id}, a login and the settings")

    def _switch(self) -> None:
        """Make this machine the member that it was admitted as."""
        state_dir, folder = self.config.state_dir, folder_of(self.config.state_dir)
        with self._stopped():
            moved = self._put_store_aside()
            try:
                if folder.exists():
                    shutil.rmtree(folder)
                write_whole(state_dir / "node_id", f"{self._node_id}\n".encode(), mode=0o644)
                self._folder.rename(folder)
                sync_folder(state_dir)
            except BaseException:
                if moved and not folder.exists():
                    moved.replace(moved.with_name(moved.name.removesuffix(BACKUP)))
                raise

    @contextlib.contextmanager
    def _stopped(self) -> Iterator[None]:
        """Keep the node stopped; when something goes wrong, the lone one runs again."""
        process = node_process.find(self.config.run_dir)
        if process:
            self.say(f"stop the node, process {process.pid}")
            node_process.stop(process)
        try:
            with node_folders.lock(self.config.run_dir):
                yield
        except BaseException:
            if process:
                path = Path(process.config_path) if process.config_path else self.config_path
                node_process.start(self.config, path)
            raise

    def _put_store_aside(self) -> Path | None:
        """Keep the lone node's store where no node takes it for its own; return where."""
        path = self._lone_store
        if path is None:
            return None
        aside = path.with_name(f"{path.name}{BACKUP}")
        path.replace(aside)
        for end in ("-wal", "-shm"):
            if path.with_name(path.name + end).exists():
                path.with_name(path.name + end).replace(aside.with_name(aside.name + end))
        self.say(f"the lone node's store is kept as {aside}")
        return aside

    def start(self) -> node_process.NodeProcess:
        """Start the node as a member, unless it runs; return when it is up."""
        process = node_process.find(self.config.run_dir)
        if process is None:
            process = node_process.start(settings.overlay(self.config), self.config_path)
        return process


def _was_removed(folder: Path) -> bool:
    """Say whether the cluster has told this node that it is a member no more."""
    if Membership(folder).removal:
        return True
    try:
        told = msgspec.json.decode((folder / "members.json").read_bytes(), type=Members)
        own = settings.read(folder).node_id
    except (OSError, msgspec.DecodeError, AnynodeError):
        return False
    return bool(told.members) and all(one.node_id != own for one in told.members)


def _fingerprint_in(folder: Path) -> str:
    try:
        text = (folder / "authority.pem").read_bytes()
        return certificates.fingerprint(certificates.read_certificate(text))
    except (OSError, InputError):
        return ""
