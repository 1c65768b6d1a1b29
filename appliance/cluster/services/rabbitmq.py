"""A RabbitMQ of the cluster's own: TLS only, no guest, nothing of Erlang's on the network.

It runs as Debian's user ``rabbitmq`` on a folder of ours. Its settings and the cookie lie in
folders that it cannot write to. Users, virtual host and rights of the one login that administers
it come from a definitions file, which it reads whenever it starts.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import time
from pathlib import Path
from urllib.parse import quote

import msgspec
from msgspec import Struct

from appliance.cluster.services import daemon
from appliance.cluster.services.daemon import Account, Process, Tls
from appliance.errors import ConfigError
from appliance.files import write_whole

log = logging.getLogger(__name__)

PACKAGE = "rabbitmq-server"
VHOST = "anynode"
ADMIN = "anynode-admin"

_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_USER = "rabbitmq"
_NODE = "anynode@localhost"
_START_S = 120.0
_STOP_S = 30.0
_POLL_S = 0.1
_MIB = 1 << 20

_SETTINGS = """\
listeners.tcp = none
listeners.ssl.1 = {address}:{port}
ssl_options.cacertfile = {folder}/tls/authority.pem
ssl_options.certfile = {folder}/tls/node.pem
ssl_options.keyfile = {folder}/tls/node.key
ssl_options.versions.1 = tlsv1.3
ssl_options.versions.2 = tlsv1.2
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
management.ssl.ip = {listener}
management.ssl.port = {admin_port}
management.ssl.cacertfile = {folder}/tls/authority.pem
management.ssl.certfile = {folder}/tls/node.pem
management.ssl.keyfile = {folder}/tls/node.key
management.ssl.versions.1 = tlsv1.3
management.ssl.versions.2 = tlsv1.2
management.disable_stats = true
management_agent.disable_metrics_collector = true
load_definitions = {folder}/conf/definitions.json
vm_memory_high_watermark.absolute = {memory_mib}MiB
disk_free_limit.absolute = 256MiB
heartbeat = 30
max_message_size = 16777216
log.console = false
log.file.level = info
log.file.rotation.size = 10485760
log.file.rotation.count = 5
"""


class Settings(Struct, frozen=True, kw_only=True):
    """What a RabbitMQ of ours was made with; ``password`` is that of the login that administers."""

    address: str
    port: int
    admin_port: int
    password: str

    @property
    def admin_url(self) -> str:
        """The URL of its management API, login included."""
        host = _host(self.address)
        return f"https://{ADMIN}:{quote(self.password, safe='')}@{host}:{self.admin_port}"

    @property
    def bus_url(self) -> str:
        """The URL of the broker, without a login."""
        return f"amqps://{_host(self.address)}:{self.port}/{VHOST}"


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


class Rabbitmq:
    """The RabbitMQ in one folder of this machine; root only.

    :param folder: ``<state folder>/services/rabbitmq``.
    """

    name = "RabbitMQ"

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._record = self.folder / "process.json"
        self._mapper_record = self.folder / "epmd.json"
        self._settings_path = self.folder / "service.json"
        self._printed = self.folder / "printed.log"

    @property
    def exists(self) -> bool:
        """Whether one was made here."""
        return self._settings_path.exists()

    def settings(self) -> Settings:
        """Return what it was made with.

        :raises ConfigError: none was made here.
        """
        try:
            return msgspec.json.decode(self._settings_path.read_bytes(), type=Settings)
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"There is no {self.name} of ours in {self.folder}.") from error

    def make(self, *, address: str, port: int, admin_port: int, tls: Tls) -> Settings:
        """Make one and start it, or find and start the one that is here; safe to repeat.

        :raises ConfigError: a package is missing, a port is taken, or the one that is here has
            another address.
        """
        check_installed()
        if self.exists:
            made = self.settings()
            if (made.address, made.port, made.admin_port) != (address, port, admin_port):
                raise ConfigError(
                    f"{self.name} was made for {made.address}:{made.port} and {made.admin_port}, "
                    f"not for {address}:{port} and {admin_port}."
                )
        else:
            if set(str(self.folder)) & set("'\"\\\n #"):
                raise ConfigError(f"RabbitMQ cannot live in {self.folder}: an odd name.")
            made = Settings(
                address=address,
                port=port,
                admin_port=admin_port,
                password=secrets.token_urlsafe(32),
            )
            daemon.make_folder(self.folder.parent)
            daemon.make_folder(self.folder)
            write_whole(self._settings_path, msgspec.json.encode(made))
        self.ensure(tls)
        return made

    def ensure(self, tls: Tls, deadline_s: float = _START_S) -> bool:
        """Make sure that it runs, with its node's current certificate; say whether it had to start.

        A new certificate is taken up by itself: Erlang reads the files anew every two minutes.

        :raises ConfigError: none was made here.
        :raises CommandFailed: it ended while it started.
        :raises Unavailable: it does not answer within ``deadline_s``; it goes on starting.
        """
        made, account = self.settings(), self._account()
        daemon.put_tls(self.folder / "tls", tls, account)
        process = self.process()
        if process and self._is_ready(made):
            return False
        if process is None:
            self._make_files(made, account)
            process = self._start(account)
        end = time.monotonic() + deadline_s
        while not self._is_ready(made):
            daemon.check_alive(process, self.name, self._printed, end)
            time.sleep(_POLL_S)
        return True

    def _make_files(self, made: Settings, account: Account) -> None:
        readable = Account(name="root", uid=0, gid=account.gid)
        for name in ("conf", "home", "conf/conf.d"):
            daemon.make_folder(self.folder / name, readable, mode=0o750)
        for name in ("mnesia", "log", "run"):
            daemon.make_folder(self.folder / name, account, mode=0o700)
        conf, cookie = self.folder / "conf", self.folder / "home" / ".erlang.cookie"
        text = _SETTINGS.format(
            address=f"{_host(made.address)}",
            listener=made.address,
            port=made.port,
            admin_port=made.admin_port,
            folder=self.folder,
            memory_mib=_memory_mib(),
        )
        daemon.put(conf / "rabbitmq.conf", text.encode(), account)
        daemon.put(conf / "advanced.config", b"[].\n", account)
        daemon.put(conf / "environment", b"", account)
        daemon.put(conf / "enabled_plugins", b"[rabbitmq_management].\n", account)
        daemon.put(conf / "definitions.json", _definitions(made), account)
        if not cookie.exists():
            daemon.put(cookie, secrets.token_hex(32).encode(), account, mode=0o400)

    def _start(self, account: Account) -> Process:
        mapper_port = self._start_mapper(account)
        process = daemon.start(
            self._record,
            daemon.as_user([_SERVER], account),
            log_path=self._printed,
            environment=self._environment(mapper_port, _free_port()),
        )
        log.info("started RabbitMQ, process %d", process.pid)
        return process

    def _start_mapper(self, account: Account) -> int:
        """Start Erlang's port mapper, which the server would else start where nobody ends it."""
        self._stop_mapper()
        port = _free_port()
        command = ["epmd", "-address", "127.0.0.1", "-port", str(port)]
        printed = self.folder / "epmd.log"
        process = daemon.start(
            self._mapper_record, daemon.as_user(command, account), log_path=printed
        )
        end = time.monotonic() + _STOP_S
        while not _answers("127.0.0.1", port):
            daemon.check_alive(process, "Erlang's port mapper", printed, end)
            time.sleep(_POLL_S)
        return port

    def _environment(self, mapper_port: int, distribution_port: int) -> dict[str, str]:
        conf, mnesia = self.folder / "conf", self.folder / "mnesia"
        return {
            "HOME": str(self.folder / "home"),
            # Makes the script become the server instead of waiting for it as a process of its own.
            "RUNNING_UNDER_SYSTEMD": "true",
            "NOTIFY_SOCKET": "",
            "ERL_EPMD_PORT": str(mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP": str(self.folder / "run" / "crash.dump"),
            "ERL_CRASH_DUMP_BYTES": "0",
            "RABBITMQ_NODENAME": _NODE,
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_CONF_ENV_FILE": str(conf / "environment"),
            "RABBITMQ_CONFIG_FILE": str(conf / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(conf / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(conf / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(conf / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "run" / "config"),
            "RABBITMQ_MNESIA_BASE": str(mnesia),
            "RABBITMQ_FEATURE_FLAGS_FILE": str(mnesia / "feature_flags"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self._pid_file),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none "
                f"+sbwtdio none -anynode {self.folder}"
            ),
        }

    @property
    def _pid_file(self) -> Path:
        return self.folder / "run" / "rabbitmq.pid"

    def _is_ready(self, made: Settings) -> bool:
        """Say whether both its doors are open; the broker's is the last of all to open."""
        return all(_answers(made.address, port) for port in (made.port, made.admin_port))

    def process(self) -> Process | None:
        """Return its process; ``None`` when it does not run."""
        return daemon.find(
            self._record,
            pid_file=self._pid_file,
            mark=str(self.folder),
            account=self._account(),
        )

    def stop(self, *, is_orderly: bool = True) -> int | None:
        """End it and its port mapper; return the process id, ``None`` when it did not run.

        :param is_orderly: let it hand in its work, which takes some seconds; else it is killed.
        :raises CommandFailed: it does not end.
        """
        if not self.exists:
            return None
        process = self.process()
        if process:
            steps = ((signal.SIGTERM, _STOP_S),) if is_orderly else ()
            daemon.end(self._record, process, steps)
            log.info("stopped RabbitMQ, process %d", process.pid)
        self._stop_mapper()
        return process.pid if process else None

    def _stop_mapper(self) -> None:
        known = daemon.recorded(self._mapper_record)
        if known:
            daemon.end(self._mapper_record, known, ((signal.SIGTERM, 2.0),))

    def _account(self) -> Account:
        return daemon.account_of(_USER, PACKAGE)


def _definitions(made: Settings) -> bytes:
    """Return the one login that administers, and the virtual host."""
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    return json.dumps(
        {
            "users": [
                {
                    "name": ADMIN,
                    "password_hash": hash_password(made.password),
                    "hashing_algorithm": "rabbit_password_hashing_sha256",
                    "tags": "administrator",
                }
            ],
            "vhosts": [{"name": VHOST}],
            "permissions": [{"user": ADMIN, "vhost": VHOST, **everything}],
        }
    ).encode()


def hash_password(password: str) -> str:
    """Return what RabbitMQ keeps of a password: four bytes of salt, and SHA-256 over both."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def check_installed() -> None:
    """Refuse a machine without RabbitMQ.

    :raises ConfigError: a package is missing.
    """
    if not _SERVER.exists() or shutil.which("epmd") is None:
        raise ConfigError(
            "This machine lacks RabbitMQ.",
            hint=f"Run: apt-get install --no-install-recommends {PACKAGE} (or give --bus-url).",
        )
    daemon.account_of(_USER, PACKAGE)


def _memory_mib() -> int:
    """Return the memory above which publishers wait: a fifth of the machine's, within bounds."""
    machine_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _MIB
    return max(256, min(2048, machine_mib // 5))


def _answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=2):
            return True
    except OSError:
        return False


def _free_port() -> int:
    """Return a port of the loopback address that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
