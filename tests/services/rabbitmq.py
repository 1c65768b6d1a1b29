"""A RabbitMQ of the tests' own, on loopback, with the logins that a test asks for.

Loaded by the root ``conftest.py``. ``rabbitmq`` is one broker for the whole session: a test that
harms its broker makes another with :func:`running`. A test that shares it takes a virtual host.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError

from appliance.cluster.logins import Logins
from appliance.cluster.management import Access, Management
from tests.services.postgresql import free_port

PROGRAMS = Path("/usr/lib/rabbitmq/bin")
START_S = 90.0
ADMIN = "admin"

_CONFIG = """\
listeners.tcp.1 = {address}:{port}
management.tcp.ip = {address}
management.tcp.port = {admin_port}
management.disable_stats = true
management_agent.disable_metrics_collector = true
loopback_users = none
default_user = {admin}
default_pass = {password}
disk_free_limit.absolute = 50MB
log.console = false
log.file = rabbit.log
log.file.level = info
"""

_TLS = """\
listeners.ssl.1 = {address}:{tls_port}
ssl_options.cacertfile = {authority}
ssl_options.certfile = {certificate}
ssl_options.keyfile = {key}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
"""


class Broker:
    """A broker in a folder of its own.

    It ends with the thread that started it, so that nothing is left of a killed test run.

    :param tls: files ``authority``, ``certificate`` and ``key`` of a further listener.
    """

    address = "127.0.0.1"
    prefix: Sequence[str] = ()
    """What its commands begin with."""

    def __init__(self, tls: Mapping[str, Path] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="anynode-rabbitmq-", dir="/var/tmp"))
        self.port, self.admin_port, self.tls_port = free_port(), free_port(), free_port()
        self.password = secrets.token_hex(8)
        self._names = {"distribution": free_port(), "mapper": free_port()}
        self._process: subprocess.Popen[bytes] | None = None
        self._mapper: subprocess.Popen[bytes] | None = None
        (self.folder / "home").mkdir()
        cookie = self.folder / "home" / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        text = self._text()
        if tls:
            text += _TLS.format(address=self.address, tls_port=self.tls_port, **tls)
        (self.folder / "rabbit.conf").write_text(text)
        (self.folder / "plugins").write_text("[rabbitmq_management].\n")

    def _text(self) -> str:
        return _CONFIG.format(
            address=self.address,
            port=self.port,
            admin_port=self.admin_port,
            admin=ADMIN,
            password=self.password,
        )

    @property
    def node_name(self) -> str:
        """What it is called among brokers."""
        return f"t{self.port}@localhost"

    @property
    def _environment(self) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if name in ("PATH", "LANG")},
            "HOME": str(self.folder / "home"),
            # Makes the script become the server instead of waiting for it as a process of its own.
            "RUNNING_UNDER_SYSTEMD": "true",
            "NOTIFY_SOCKET": "",
            "ERL_EPMD_PORT": str(self._names["mapper"]),
            "ERL_EPMD_ADDRESS": self.address,
            "ERL_CRASH_DUMP_BYTES": "0",
            "RABBITMQ_NODENAME": self.node_name,
            "RABBITMQ_DIST_PORT": str(self._names["distribution"]),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbit.conf"),
            "RABBITMQ_CONFIG_FILES": str(self.folder / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "none.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "generated"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_FEATURE_FLAGS_FILE": str(self.folder / "feature_flags"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                f"-kernel inet_dist_use_interface {{{self.address.replace('.', ',')}}} "
                "+sbwt none +sbwtdcpu none "
                "+sbwtdio none +S 1:1"
            ),
        }

    def start(self) -> None:
        """Start the broker, and wait until it lets in who administers it."""
        mapper = ["epmd", "-address", self.address, "-port", str(self._names["mapper"])]
        if self._mapper is None:
            self._mapper = self._spawn(mapper)
        self._process = self._spawn([str(PROGRAMS / "rabbitmq-server")])
        deadline = time.monotonic() + START_S
        while not self._answers():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / "printed").open("ab") as log:
            return subprocess.Popen(
                ["/usr/bin/setpriv", "--pdeathsig", "KILL", "--", *self.prefix, *command],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _answers(self) -> bool:
        try:
            with self.connect("/"):
                return True
        except (AMQPError, OSError):
            return False

    def log(self) -> str:
        """Return what the broker has said."""
        found = [self.folder / "printed", *(self.folder / "log").glob("*.log")]
        return "\n".join(path.read_text(errors="replace") for path in found)

    @property
    def pid(self) -> int:
        """The broker's process."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """Kill it as the kernel does when memory runs out."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(START_S)

    def stop(self) -> None:
        """Stop it in its own time."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(START_S)

    def restart(self) -> None:
        """Kill it, and start it again on the same ports with what it has on its disk."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Stop its clock: connections stay, and nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def destroy(self) -> None:
        """End it and remove what it wrote; safe to repeat."""
        for process in (self._process, self._mapper):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait(START_S)
        shutil.rmtree(self.folder, ignore_errors=True)

    def rabbitmqctl(self, *arguments: str) -> str:
        """Run the broker's own tool, which takes some seconds; return what it printed."""
        done = subprocess.run(
            [*self.prefix, str(PROGRAMS / "rabbitmqctl"), "--quiet", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def access(self, vhost: str) -> Access:
        """Return how a virtual host is administered."""
        url = f"http://{ADMIN}:{self.password}@{self.address}:{self.admin_port}"
        return Access(urls=(url,), vhost=vhost)

    def management(self, vhost: str) -> Management:
        """Return a client of the management API."""
        return Management(self.access(vhost))

    def url(
        self, vhost: str, user: str = ADMIN, password: str = "", *, is_tls: bool = False
    ) -> str:
        """Return the URL of a virtual host for a login."""
        scheme, port = ("amqps", self.tls_port) if is_tls else ("amqp", self.port)
        login = f"{user}:{password or self.password}"
        return f"{scheme}://{login}@{self.address}:{port}/{_name(vhost)}"

    @contextmanager
    def connect(self, vhost: str) -> Iterator[pika.BlockingConnection]:
        """Connect as who administers it."""
        connection = pika.BlockingConnection(pika.URLParameters(self.url(vhost)))
        try:
            yield connection
        finally:
            if connection.is_open:
                connection.close()

    def new_vhost(self) -> VirtualHost:
        """Make a virtual host that has nothing in it."""
        name = f"test-{secrets.token_hex(6)}"
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.management(name).import_definitions(
            {
                "vhosts": [{"name": name}],
                "permissions": [{"user": ADMIN, "vhost": name, **everything}],
            }
        )
        return VirtualHost(self, name)


class VirtualHost:
    """A virtual host of a broker, with nodes' logins as a cluster makes them."""

    def __init__(self, broker: Broker, name: str) -> None:
        self.broker = broker
        self.name = name
        self.logins = Logins(broker.management(name))

    @property
    def url(self) -> str:
        """The URL of who administers it, who may do anything."""
        return self.broker.url(self.name)

    @property
    def access(self) -> Access:
        """How it is administered."""
        return self.broker.access(self.name)

    def admit(self, node_id: str, *, is_control: bool) -> str:
        """Make a node's login and its queue; return the URL with the login."""
        self.logins.prepare()
        password = self.logins.admit(node_id, is_control=is_control)
        return self.broker.url(self.name, f"{'c' if is_control else 'h'}-{node_id}", password)

    @contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        """Open a channel as who administers it."""
        with self.broker.connect(self.name) as connection:
            yield connection.channel()

    def depth(self, queue: str) -> int:
        """Return how many messages wait in a queue."""
        with self.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).method.message_count)


def _name(vhost: str) -> str:
    return "%2f" if vhost == "/" else vhost


def require_rabbitmq() -> None:
    """Skip the test when this machine has no RabbitMQ."""
    if not (PROGRAMS / "rabbitmq-server").exists() or shutil.which("epmd") is None:
        pytest.skip("needs rabbitmq-server")


@contextmanager
def running(tls: Mapping[str, Path] | None = None) -> Iterator[Broker]:
    """Run a broker for a while."""
    require_rabbitmq()
    broker = Broker(tls)
    try:
        broker.start()
        yield broker
    finally:
        broker.destroy()


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[Broker]:
    """A broker shared by all tests that do not harm it."""
    with running() as broker:
        yield broker


@pytest.fixture
def vhost(rabbitmq: Broker) -> Iterator[VirtualHost]:
    """A virtual host of the shared broker, gone after the test."""
    made = rabbitmq.new_vhost()
    yield made
    rabbitmq.management(made.name)._ask("DELETE", f"/api/vhosts/{made.name}")
