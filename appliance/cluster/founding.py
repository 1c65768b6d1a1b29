"""How a lone node, or a fresh machine, becomes the first node of a cluster.

Every step finds what an earlier attempt has made, so that a founding that was interrupted is
continued by beginning it again. What makes a node a member is made in a folder beside the one that
counts. The last step gives it its name: until then the node is a lone node, after that the first
of its cluster, and nothing between.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote, urlsplit

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from appliance import node_folders, node_process, seal
from appliance.bus import topology
from appliance.bus.urls import with_login
from appliance.cluster import logins, services
from appliance.cluster.logins import Logins
from appliance.cluster.management import Access, Management
from appliance.cluster.membership import folder_of
from appliance.cluster.services import postgresql, rabbitmq
from appliance.cluster.services.daemon import Tls
from appliance.cluster.services.postgresql import Postgresql
from appliance.cluster.services.rabbitmq import Rabbitmq
from appliance.config import Config, without_password
from appliance.errors import ConfigError, Conflict, InputError
from appliance.files import sync_folder, write_whole
from appliance.store import Store, Transaction, audit, cluster_secrets, copy, migrations, nodes
from appliance.store import setup as store_setup
from appliance.store.nodes import Node as NodeRow
from appliance.world import World

Say = Callable[[str], None]

_SQLITE = "sqlite:///"
_BACKUP = ".before-cluster"
_MARK = "founding"
_RECORD = "init.json"


class Wishes(Struct, frozen=True, kw_only=True):
    """What the operator asks of a founding; empty: what the settings say, or one of our own."""

    address: str = ""
    name: str = ""
    zone: str = ""
    bus_url: str = ""
    bus_admin_url: str = ""
    store_url: str = ""


class Record(Struct, frozen=True, kw_only=True):
    """What is remembered of a founding; it holds passwords."""

    wishes: Wishes
    is_done: bool = False


def new_folder_of(state_dir: Path) -> Path:
    """Return the folder in which a founding makes that."""
    return state_dir / "cluster-new"


def remembered(folder: Path) -> Record | None:
    """Return what is remembered of a founding in a folder; ``None`` when there was none.

    :raises ConfigError: it cannot be read.
    """
    path = folder / _RECORD
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"Could not read {path}.", hint="Run the command as root.") from error


class Papers(Protocol):
    """What makes a node a member, as a founding has it made."""

    def certify(
        self, tx: Transaction, sealing: seal.Seal, folder: Path, address: str, node_id: str
    ) -> None:
        """Put authority, certificate and key into a folder; those that are there already stay.

        The key of the authority is kept, sealed, in the store.
        """
        ...

    def write_settings(self, tx: Transaction, folder: Path, config: Config, node_id: str) -> None:
        """Write down what the node goes by from now on, and what the cluster has decided for all.

        :param tx: on the cluster's store.
        """
        ...

    def in_force(self, config: Config) -> Config:
        """Return the settings of a node with what was written down for it."""
        ...


def begin(
    config: Config,
    config_path: Path | None,
    wishes: Wishes,
    papers: Papers,
    say: Say,
    actor: str = audit.SETUP,
) -> Founding:
    """Return a founding: a new one, or one that was interrupted, with the wishes it had.

    :param config: the settings of the lone node, without those of a cluster.
    :raises Conflict: this node belongs to a cluster that was begun elsewhere, or the founding that
        was interrupted had other wishes.
    """
    folder, new_folder = folder_of(config.state_dir), new_folder_of(config.state_dir)
    earlier = remembered(folder) or remembered(new_folder)
    if folder.exists() and earlier is None:
        raise Conflict(
            "This node belongs to a cluster that was begun on another node.",
            hint="To begin one of its own, remove it there (`anynode node remove`), then here "
            "(`anynode demo down` removes all that it has).",
        )
    if earlier and wishes not in (Wishes(), earlier.wishes):
        differing = [name for name in Wishes.__struct_fields__ if getattr(wishes, name)]
        raise Conflict(
            "A cluster was begun here with other options than "
            f"{', '.join('--' + name.replace('_', '-') for name in differing)}.",
            hint="Without options `anynode init` goes on with those that it had.",
        )
    known = earlier.wishes if earlier else wishes
    return Founding(config, config_path, known, papers, say, actor)


def found_address(config: Config, wanted: str) -> str:
    """Return the address at which other nodes shall reach this one.

    :raises InputError: this machine does not have it, or no other node could reach it.
    """
    address = wanted or config.cluster.address or _outgoing_address()
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError as error:
        raise InputError(f"{address!r} is no IP address.") from error
    if parsed.is_unspecified or parsed.is_multicast or parsed.is_link_local:
        raise InputError(f"Other nodes cannot reach this one at {address}.")
    family = socket.AF_INET6 if parsed.version == 6 else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((str(parsed), 0))
        except OSError as error:
            raise InputError(
                f"This machine does not have the address {address}.",
                hint="`ip address` shows those that it has.",
            ) from error
    return str(parsed)


def _outgoing_address() -> str:
    """Return the address from which this machine talks to the world."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Nothing is sent: this only asks the kernel for the route (RFC 5737 documents it).
            probe.connect(("192.0.2.1", 9))
        except OSError as error:
            raise InputError(
                "This machine has no route by which its address could be told.",
                hint="Name it with --address: the one at which other nodes reach this one.",
            ) from error
        return str(probe.getsockname()[0])


@dataclass
class Founding:
    """One founding: what it works on, and what it has found out so far.

    :param config: the settings of the lone node.
    :param say: called with a line when something was done or found.
    :param actor: who begins it, for the audit log.
    """

    config: Config
    config_path: Path | None
    wishes: Wishes
    papers: Papers
    say: Say = lambda text: None
    actor: str = audit.SETUP
    world: World = field(default_factory=World)
    address: str = field(default="", init=False)
    node_id: str = field(default="", init=False)
    is_fresh: bool = field(default=False, init=False)
    store_url: str = field(default="", init=False)
    bus_url: str = field(default="", init=False)

    @property
    def state_dir(self) -> Path:
        """The node's state folder."""
        return self.config.state_dir

    @property
    def name(self) -> str:
        """The node's name in the cluster."""
        return self.wishes.name or self.config.node_name

    @property
    def zone(self) -> str:
        """The node's zone in the cluster."""
        return self.wishes.zone or self.config.node.zone

    @property
    def lone_path(self) -> Path | None:
        """The file of the lone node's store; ``None`` when that is no file."""
        url = self.config.store_url
        return Path(url.removeprefix(_SQLITE)) if url.startswith(_SQLITE) else None

    @property
    def given_store_url(self) -> str:
        """The URL of a PostgreSQL that there is; empty: one of the cluster's own is made."""
        return self.wishes.store_url or ("" if self.lone_path else self.config.store_url)

    @property
    def is_switched(self) -> bool:
        """Whether this node is the cluster's already; what is left is to start it."""
        return folder_of(self.state_dir).exists()

    def check(self) -> None:
        """Look whether all of it can be done; nothing is changed.

        :raises AnynodeError: it cannot, and why.
        """
        if self.is_switched:
            return
        self.address = found_address(self.config, self.wishes.address)
        store_setup.check_spans(self.config)
        if self.given_store_url:
            _check_store_url(self.given_store_url)
        else:
            postgresql.check_installed()
        if not self.wishes.bus_url:
            rabbitmq.check_installed()
            return
        _check_bus_url(self.wishes.bus_url)
        if not self.wishes.bus_admin_url:
            raise InputError(
                "At a broker that there is, too, each node gets a login of its own.",
                hint="Name its management API: --bus-admin-url https://admin:password@host:15671.",
            )
        Management(self._given_access()).alarms()

    def _given_access(self) -> Access:
        urls = tuple(self.wishes.bus_admin_url.split(","))
        return Access(urls=urls, vhost=_vhost_of(self.wishes.bus_url))

    def plan(self) -> list[str]:
        """Return what is going to be done, a line each; after :meth:`check`."""
        if self.is_switched:
            return [f"This node, {self.name}, is the first of a cluster already."]
        store = (
            f"the PostgreSQL at {without_password(self.given_store_url)}"
            if self.given_store_url
            else f"a PostgreSQL of its own at {self.address}, port {self.config.cluster.store_port}"
        )
        bus = (
            f"the RabbitMQ at {without_password(self.wishes.bus_url)}"
            if self.wishes.bus_url
            else f"a RabbitMQ of its own at {self.address}, port {self.config.cluster.bus_port} "
            f"(administered at port {self.config.cluster.bus_admin_port})"
        )
        lines = [
            f"Node       {self.name} in zone {self.zone}, for others at {self.address}",
            f"Store      {store}",
            f"Messages   {bus}",
        ]
        if self.lone_path and self.lone_path.exists():
            lines.append(f"Copied     what {self.lone_path} has; it is kept as {self.backup}")
        process = node_process.find(self.config.run_dir)
        if process:
            lines.append(
                f"Restarted  the node (process {process.pid}); its instances go on meanwhile"
            )
        return lines

    @property
    def backup(self) -> Path | None:
        """Where the file of the lone node's store is kept."""
        path = self.lone_path
        return path.with_name(f"{path.name}{_BACKUP}") if path else None

    def run(self) -> node_process.NodeProcess:
        """Do all of it; return the process of the node, which is the cluster's first by then.

        :raises AnynodeError: a step failed. The lone node runs again if it ran before, unless it
            is the cluster's node already; calling this again goes on.
        """
        node_folders.make_folder(self.state_dir)
        node_folders.make_folder(self.config.run_dir)
        if not self.is_switched:
            self._make()
        self._put_aside()
        process = self._start()
        self._remember(folder_of(self.state_dir), is_done=True)
        return process

    def _make(self) -> None:
        """Make all that the cluster needs, then switch over."""
        folder = new_folder_of(self.state_dir)
        folder.mkdir(mode=0o700, exist_ok=True)
        self._remember(folder, is_done=False)
        self.node_id = node_folders.remembered_id(self.state_dir / "node_id", self.world)
        sealing = seal.load(seal.key_path(self.state_dir))
        with contextlib.closing(Store(self.config.store_url, self.world)) as lone:
            migrations.upgrade(lone)
            self.is_fresh = not lone.read(nodes.status)
            lone.transaction(lambda tx: _mark(tx, sealing))
            lone.transaction(
                lambda tx: self.papers.certify(tx, sealing, folder, self.address, self.node_id)
            )
            self.say("made the authority of the cluster and the certificate of this node")
            self._make_store()
            with contextlib.closing(self._open_target()) as target:
                migrations.upgrade(target)
                self._make_bus(lone, sealing)
                with self._stopped():
                    self._copy(lone, target)
                    self._enlist(target)
                    target.transaction(lambda tx: self._settle(tx, folder))
                    folder.rename(folder_of(self.state_dir))
                    sync_folder(self.state_dir)

    def _settle(self, tx: Transaction, folder: Path) -> None:
        """Write down what the cluster is, and who began it."""
        self.papers.write_settings(tx, folder, self.cluster_config, self.node_id)
        store, bus = without_password(self.store_url), without_password(self.bus_url)
        subject = f"{self.name} {self.node_id} at {self.address}, store {store}, messages {bus}"
        audit.record_command(tx, self.actor, "InitCluster", subject)

    def _remember(self, folder: Path, *, is_done: bool) -> None:
        record = Record(wishes=self.wishes, is_done=is_done)
        write_whole(folder / _RECORD, msgspec.json.encode(record))

    @property
    def _tls(self) -> Tls:
        return services.tls_in(new_folder_of(self.state_dir))

    def _make_store(self) -> None:
        """Make the cluster's PostgreSQL, or take the one that there is."""
        if self.given_store_url:
            self.store_url = driver_url(self.given_store_url)
            self.say(f"the store is the PostgreSQL at {without_password(self.store_url)}")
            return
        service = services.store_of(self.state_dir)
        is_new = not service.exists
        made = service.make(
            address=self.address, port=self.config.cluster.store_port, tls=self._tls
        )
        self.store_url = made.url
        self._say_service(service, is_new, f"{made.address}, port {made.port}")

    def _open_target(self) -> Store:
        url = self.store_url
        if not self.given_store_url:
            url = with_authority(url, self._tls.authority)
        return Store(url, self.world)

    def _say_service(self, service: Postgresql | Rabbitmq, is_new: bool, where: str) -> None:
        process = service.process()
        word = "made" if is_new else "found"
        self.say(
            f"{word} {service.name} at {where}: process {process.pid if process else 0}, "
            f"in {service.folder}"
        )

    def _make_bus(self, lone: Store, sealing: seal.Seal) -> None:
        """Make the cluster's RabbitMQ, or take the one that there is, and this node's login."""
        if self.wishes.bus_url:
            access, url = self._given_access(), self.wishes.bus_url
            self.say(f"messages go over the RabbitMQ at {without_password(url)}")
        else:
            service = services.broker_of(self.state_dir)
            is_new = not service.exists
            made = service.make(
                address=self.address,
                port=self.config.cluster.bus_port,
                admin_port=self.config.cluster.bus_admin_port,
                tls=self._tls,
            )
            authority = self._tls.authority.read_text(encoding="ascii")
            access = Access(urls=(made.admin_url,), vhost=rabbitmq.VHOST, authority=authority)
            url = made.bus_url
            self._say_service(service, is_new, f"{made.address}, port {made.port}")
        lone.transaction(lambda tx: logins.keep_access(tx, sealing, access))
        password = Logins(Management(access)).admit(self.node_id, is_control=True)
        name = topology.login_of(self.node_id, is_control=True)
        self.bus_url = with_login(url, name, password)
        self.say(f"made the queues and the login {name} at the broker")

    @contextlib.contextmanager
    def _stopped(self) -> Iterator[None]:
        """Keep the node stopped; when something goes wrong, the lone one runs again."""
        process = node_process.find(self.config.run_dir)
        if process:
            self.say(f"stop the node, process {process.pid}; its instances go on")
            node_process.stop(process)
        try:
            with node_folders.lock(self.config.run_dir):
                yield
        except BaseException:
            if process:
                path = Path(process.config_path) if process.config_path else self.config_path
                again = node_process.start(self.config, path)
                self.say(f"the lone node runs again, process {again.pid}; nothing has changed")
            raise

    def _copy(self, lone: Store, target: Store) -> None:
        """Copy the lone node's store in place of what an earlier attempt has copied."""
        if self.config.store_url in (self.store_url, self.given_store_url):
            return
        mark = lone.read(lambda tx: cluster_secrets.sealed(tx, _MARK))
        if target.read(lambda tx: cluster_secrets.sealed(tx, _MARK)) == mark:
            target.transaction(copy.clear)
        copied = copy.copy(lone, target)
        rows = sum(content.rows for content in copied.values())
        if self.is_fresh:
            return
        self.say(f"copied the store, {rows:,} rows in {len(copied)} tables, and compared both")

    @property
    def cluster_config(self) -> Config:
        """The node's settings as they are in the cluster."""
        config = self.config
        return replace(
            config,
            node=replace(config.node, name=self.name, zone=self.zone),
            store=replace(config.store, url=self.store_url),
            bus=replace(config.bus, url=self.bus_url),
            cluster=replace(config.cluster, address=self.address),
        )

    def _enlist(self, target: Store) -> None:
        """Make the node known in the cluster's store, and the network of its zone."""
        config = self.cluster_config
        row = NodeRow(node_id=self.node_id, name=self.name, zone=self.zone, roles=config.node.roles)
        target.transaction(lambda tx: store_setup.found(tx, config, self.node_id))
        target.transaction(lambda tx: store_setup.join(tx, row))

    def _put_aside(self) -> None:
        """Keep the lone node's store where no node takes it for its own."""
        path, backup = self.lone_path, self.backup
        if path is None or backup is None or not path.exists():
            return
        if self.is_fresh:
            path.unlink()
        else:
            path.replace(backup)
            self.say(f"the lone node's store is kept as {backup}")
        for end in ("-wal", "-shm"):
            path.with_name(path.name + end).unlink(missing_ok=True)

    def _start(self) -> node_process.NodeProcess:
        process = node_process.find(self.config.run_dir)
        if process is None:
            process = node_process.start(self.papers.in_force(self.config), self.config_path)
        self.say(f"the node is up, process {process.pid}, log {process.log_path}")
        return process


def _mark(tx: Transaction, sealing: seal.Seal) -> None:
    """Mark a store as that of this founding; a copy has the same mark."""
    if cluster_secrets.sealed(tx, _MARK) is None:
        cluster_secrets.put(tx, sealing, _MARK, tx.world.ids.uuid().encode())


def driver_url(url: str) -> str:
    """Return the URL of a PostgreSQL with the driver that we use."""
    return re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql+psycopg://", url)


def with_authority(url: str, authority: Path) -> str:
    """Return a store's URL with the certificate that its server is checked against."""
    return f"{url}{'&' if '?' in url else '?'}sslrootcert={quote(str(authority))}"


def _check_store_url(url: str) -> None:
    if not re.match(r"^postgres(ql)?(\+psycopg)?://", url):
        raise InputError(
            f"The store of a cluster cannot be {without_password(url)}.",
            hint="It looks like postgresql://anynode:password@db.example/anynode.",
        )


def _check_bus_url(urls: str) -> None:
    for url in urls.split(","):
        parts = urlsplit(url)
        if parts.scheme not in ("amqp", "amqps") or not parts.hostname:
            raise InputError(
                f"Messages of a cluster cannot go over {without_password(url)}.",
                hint="It looks like amqps://broker.example/anynode.",
            )


def _vhost_of(urls: str) -> str:
    """Return the virtual host of a broker's URL; without one it is the broker's default."""
    return unquote(urlsplit(urls.split(",")[0]).path.removeprefix("/")) or "/"
