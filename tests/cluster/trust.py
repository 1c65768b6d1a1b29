"""A control node's peer service on loopback, with a real store and TLS and a broker that is not."""

from __future__ import annotations

import http.client
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

from appliance import seal
from appliance.bus.urls import with_login
from appliance.cluster import certificates, logins, peer_service, settings, tokens
from appliance.cluster.admission import Admission
from appliance.cluster.doors import OPEN, Doors
from appliance.cluster.entitlement import Entitlement
from appliance.cluster.join import Joining, Offer, Wishes, joining_folder_of
from appliance.cluster.management import Access
from appliance.cluster.membership import Membership, folder_of
from appliance.cluster.papers import ClusterPapers
from appliance.cluster.tokens import Token
from appliance.config import (
    BusSettings,
    ClusterSettings,
    Config,
    NetworkSettings,
    NodeSettings,
    StoreSettings,
)
from appliance.errors import Unavailable
from appliance.messages import GetMembers
from appliance.store import Store, Transaction, join_tokens, members, migrations
from appliance.store import setup as store_setup
from appliance.store.nodes import Node as NodeRow
from appliance.world import World
from tests.services.postgresql import free_port

T = TypeVar("T")
FIRST_ID = "00000000-0000-4000-8000-000000000001"
BUS = "amqps://192.0.2.1:5671/anynode"


class SetClock:
    """A clock that a test sets forward; it goes on by itself."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now(self) -> float:
        import time

        return time.time() + self.ahead_s

    def monotonic(self) -> float:
        import time

        return time.monotonic() + self.ahead_s

    def sleep(self, seconds: float) -> None:
        self.ahead_s += seconds


class FakeLogins:
    """The logins at a broker that may be away."""

    def __init__(self) -> None:
        self.is_away = False
        self.passwords: dict[tuple[str, bool], str] = {}
        self.made = 0

    def admit(self, node_id: str, *, is_control: bool) -> str:
        self._check()
        self.made += 1
        password = self.passwords[node_id, is_control] = f"secret-password-{self.made}"
        return password

    def retire(self, node_id: str, *, is_control: bool) -> None:
        self._check()
        self.passwords.pop((node_id, is_control), None)

    def remove(self, node_id: str) -> None:
        for is_control in (True, False):
            self.retire(node_id, is_control=is_control)

    def _check(self) -> None:
        if self.is_away:
            raise Unavailable("The broker is away.")


@cache
def _migrated() -> bytes:
    """Return the file of a store that has all tables, and nothing in them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.sqlite"
        store = Store(f"sqlite:///{path}", World())
        migrations.upgrade(store)
        store.close()
        return path.read_bytes()


def config_of(folder: Path, name: str, port: int) -> Config:
    """Return the settings of a machine that is in no cluster."""
    return Config(
        node=NodeSettings(
            name=name, state_dir=str(folder / name / "state"), run_dir=str(folder / name / "run")
        ),
        cluster=ClusterSettings(port=port),
        network=NetworkSettings(type="vxlan"),
    )


class ControlNode:
    """The first node of a cluster: it can let others in, and answers members."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = SetClock()
        self.world = World(clock=self.clock)
        self.logins = FakeLogins()
        self.port = free_port()
        lone = config_of(folder, "first", self.port)
        state_dir = lone.state_dir
        state_dir.mkdir(parents=True)
        url = f"sqlite:///{folder}/cluster.sqlite"
        (folder / "cluster.sqlite").write_bytes(_migrated())
        self.store = Store(url, self.world)
        self.cluster_folder = folder_of(state_dir)
        self.cluster_folder.mkdir(mode=0o700)
        self._found(lone, url)
        access = Access(urls=("https://admin:pw@192.0.2.1:15671",), vhost="anynode")
        sealing = seal.load(seal.key_path(state_dir))
        self.change(lambda tx: logins.keep_access(tx, sealing, access))
        self.config = settings.overlay(lone)
        self.membership = Membership(self.cluster_folder)
        self.admission = Admission(self.store, self.config, lambda _access: self.logins)
        self.membership.doors.update(Doors(self.admission, self.clock).apps())
        self.membership.open_doors.update(OPEN)
        self.server = peer_service.make_server(self.membership, self.config)
        self.server.open()

    def _found(self, lone: Config, url: str) -> None:
        whole = Config(
            node=lone.node,
            network=lone.network,
            cluster=ClusterSettings(address="127.0.0.1", port=self.port),
            store=StoreSettings(url=url),
            bus=BusSettings(url=with_login(BUS, f"c-{FIRST_ID}", "first-password")),
        )
        sealing = seal.load(seal.key_path(lone.state_dir))
        papers, row = (
            ClusterPapers(),
            NodeRow(node_id=FIRST_ID, name="first", zone=lone.node.zone, roles=lone.node.roles),
        )
        self.change(
            lambda tx: papers.certify(tx, sealing, self.cluster_folder, "127.0.0.1", FIRST_ID)
        )
        self.change(lambda tx: store_setup.join(tx, row))
        self.change(lambda tx: papers.write_settings(tx, self.cluster_folder, whole, FIRST_ID))

    def close(self) -> None:
        self.server.close()
        self.store.close()

    def change(self, work: Callable[[Transaction], T]) -> T:
        return self.store.transaction(work)

    def read(self, work: Callable[[Transaction], T]) -> T:
        return self.store.read(work)

    @property
    def authority(self) -> str:
        return (self.cluster_folder / "authority.pem").read_text()

    def token(self, *, valid_s: float = 3600.0, node_name: str = "") -> Token:
        """Make a token that this node's store knows."""
        fingerprint = certificates.fingerprint(certificates.read_certificate(self.authority))
        made = tokens.make(f"127.0.0.1:{self.port}", fingerprint)
        self.change(
            lambda tx: join_tokens.create(
                tx, made, created_by="test", valid_s=valid_s, node_name=node_name
            )
        )
        return made

    def state_of(self, token: Token) -> str:
        found = self.read(join_tokens.list_all)
        return next(one.state for one in found if one.token_id == token.token_id)

    def names(self) -> list[str]:
        """Return the names of all members."""
        told = self.read(lambda tx: members.answer(tx, GetMembers(node_id="", known_revision=-1)))
        return [one.name for one in told.members]

    def tell(self, *others: Membership) -> None:
        """Let members, this node among them, hear the list of today."""
        told = self.read(lambda tx: members.answer(tx, GetMembers(node_id="", known_revision=-1)))
        for one in (self.membership, *others):
            one.members.take(told)


class Machine:
    """A machine that is in no cluster, or in one."""

    def __init__(self, control: ControlNode, name: str) -> None:
        self.control = control
        self.name = name
        self.config = config_of(control.folder, name, free_port())
        self.state_dir = self.config.state_dir
        self.said: list[str] = []

    def joining(self, token: Token, **wishes: str) -> Joining:
        return Joining(
            config=self.config,
            config_path=None,
            token=token,
            wishes=Wishes(**wishes),  # type: ignore[arg-type]
            offer=lambda config: Offer(vcpus=8, memory_mib=2048, disk_gib=40),
            say=self.said.append,
            world=self.control.world,
        )

    def join(self, token: Token, **wishes: str) -> settings.MemberSettings:
        one = self.joining(token, **wishes)
        assert one.check()
        return one.run()

    @property
    def settings(self) -> settings.MemberSettings:
        return settings.read(folder_of(self.state_dir))

    @property
    def membership(self) -> Membership:
        found = Membership.of(self.state_dir)
        assert found is not None
        return found

    def entitlement(self, membership: Membership) -> Entitlement:
        return Entitlement(membership, self.state_dir, self.control.clock)

    def ask(self, path: str, method: str = "GET", *, context: ssl.SSLContext | None = None) -> int:
        """Ask the control node over TLS as this member; return the HTTP status."""
        context = context or self.membership.client_context()
        raw = socket.create_connection(("127.0.0.1", self.control.port), 5)
        wrapped = context.wrap_socket(raw, server_hostname=certificates.server_name(FIRST_ID))
        line = http.client.HTTPConnection("127.0.0.1")
        line.sock = wrapped
        try:
            line.request(method, path)
            return line.getresponse().status
        finally:
            line.close()


class Eavesdropper:
    """Something that pretends to be a cluster, and remembers all that it was told.

    :param context: with whose certificate it answers.
    :param authority: what it shows as the authority's certificate.
    """

    def __init__(self, context: ssl.SSLContext, authority: str) -> None:
        self.heard = b""
        self._context = context
        self._authority = authority.encode()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self._socket.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(raw, server_side=True) as line:
                    line.settimeout(5)
                    while piece := line.recv(65536):
                        self.heard += piece
                        if b"\r\n\r\n" in piece:
                            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(self._authority)}\r\n"
                            line.sendall(f"{head}\r\n".encode() + self._authority)
            except OSError:
                continue

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


def server_context(folder: Path) -> ssl.SSLContext:
    """Return what a server answers with that has the papers in a folder."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "node.pem", folder / "node.key")
    return context


def nothing_is_left(machine: Machine) -> bool:
    """Say whether a machine is as if it had never tried to join."""
    return (
        not folder_of(machine.state_dir).exists()
        and not joining_folder_of(machine.state_dir).exists()
    )
