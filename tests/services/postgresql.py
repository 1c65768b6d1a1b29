"""A PostgreSQL of the tests' own, with a new database for whoever asks.

Loaded by the root ``conftest.py``. ``postgresql`` is one server for the whole session: a test that
harms its server makes another with :func:`running`.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from appliance.store import Store, migrations
from appliance.world import World

BINARIES = Path("/usr/lib/postgresql")
SYSTEM_USER = "postgres"
OWNER = "anynode"
"""Who owns the databases, and is nobody otherwise, as on a real server."""

START_S = 60.0
_ROOM_BYTES = 2 << 30
_CHEAP = {
    # What a killed process has written is in the kernel's hands: only a power cut would lose it.
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_wal_size": "128MB",
    "jit": "off",
    "dynamic_shared_memory_type": "mmap",
    "listen_addresses": "127.0.0.1",
}
_PEERS = "tests root postgres\ntests root anynode\n"
_WHO_MAY_COME_IN = "local all all peer map=tests\nhost all all 127.0.0.1/32 scram-sha-256\n"


def binaries() -> Path | None:
    """Return the folder of the newest PostgreSQL's programs; ``None`` when there is none."""
    found = [folder / "bin" for folder in BINARIES.glob("*") if (folder / "bin/initdb").exists()]
    return max(found, key=lambda folder: int(folder.parent.name), default=None)


def free_port() -> int:
    """Return a free port that no outgoing connection gets by chance, also after a restart."""
    for _ in range(100):
        port = random.randrange(15_000, 32_000)
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port was found")


class PostgreSQL:
    """A server in a folder of its own, on a socket there and on a port of loopback.

    It ends with the thread that started it, so that nothing is left of a killed test run.
    """

    def __init__(self, settings: Mapping[str, str] | None = None, *, on_disk: bool = False) -> None:
        found = binaries()
        assert found is not None
        self.programs = found
        self.folder = Path(tempfile.mkdtemp(prefix="anynode-postgresql-", dir=_place(on_disk)))
        shutil.chown(self.folder, SYSTEM_USER, SYSTEM_USER)
        self.data = self.folder / "data"
        self.port = free_port()
        self.password = secrets.token_hex(8)
        self.settings = {**_CHEAP, **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._template: str | None = None
        self._lock = threading.Lock()

    def make(self) -> None:
        """Make the data folder, start, and make the role that owns databases."""
        self.run(
            "initdb",
            f"--pgdata={self.data}",
            "--no-sync",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--auth=reject",
        )
        self._let_in()
        self.start()
        self.execute(
            sql.SQL("CREATE ROLE {} LOGIN REPLICATION CREATEDB PASSWORD {}").format(
                sql.Identifier(OWNER), sql.Literal(self.password)
            )
        )

    def copy_of(self, source: PostgreSQL) -> None:
        """Make the data folder a copy of a server's that streams from it, and start."""
        self.password = source.password
        self.run(
            "pg_basebackup",
            f"--pgdata={self.data}",
            f"--dbname=host={source.folder} port={source.port} user=postgres",
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--no-sync",
        )
        self._let_in()
        self.start()

    def _let_in(self) -> None:
        replication = "local replication all peer map=tests\n"
        (self.data / "pg_hba.conf").write_text(_WHO_MAY_COME_IN + replication)
        (self.data / "pg_ident.conf").write_text(f"tests {SYSTEM_USER} postgres\n{_PEERS}")

    def run(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs as its user; return what it printed."""
        done = subprocess.run(
            [*_as_its_user(), str(self.programs / program), *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = [f"-c{name}={value}" for name, value in self.settings.items()]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *_as_its_user("--pdeathsig", "QUIT"),
                    str(self.programs / "postgres"),
                    f"-D{self.data}",
                    f"-k{self.folder}",
                    f"-p{self.port}",
                    *options,
                ],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while not self._answers():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def log(self) -> str:
        """Return what the server has said."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def pids(self) -> list[int]:
        """The processes of the server, the postmaster first; empty when it does not run."""
        if self._process is None or self._process.poll() is not None:
            return []
        postmaster = self._process.pid
        return [postmaster, *_children(postmaster)]

    def kill(self) -> None:
        """Kill all its processes at once, as the kernel does when memory runs out."""
        for pid in self.pids:
            _send(pid, signal.SIGKILL)
        self._wait()

    def stop(self, *, immediately: bool = False) -> None:
        """Stop it; its clients are thrown out."""
        if self._process is not None and self._process.poll() is None:
            self.resume()
            self._process.send_signal(signal.SIGQUIT if immediately else signal.SIGINT)
            self._wait()

    def restart(self) -> None:
        """Stop it and start it again, on the same port."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Stop the clock of all its processes: connections stay, and nobody answers."""
        for pid in self.pids:
            _send(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let paused processes go on."""
        for pid in reversed(self.pids):
            _send(pid, signal.SIGCONT)

    def promote(self) -> None:
        """Make a copy that streams the primary, and wait until it takes writes."""
        assert self.execute("SELECT pg_promote()") == [(True,)]

    def _wait(self) -> None:
        assert self._process is not None
        postmaster = self._process.pid
        self._process.wait(START_S)
        # A killed postmaster leaves its children to notice that it is gone.
        deadline = time.monotonic() + START_S
        while any(pid != postmaster for pid in self._of_this_folder()):
            assert time.monotonic() < deadline, f"processes are left: {self._of_this_folder()}"
            time.sleep(0.01)

    def _of_this_folder(self) -> list[int]:
        return [pid for pid in map(int, _numbers()) if _is_in(pid, self.data)]

    def destroy(self) -> None:
        """End it and remove what it wrote; safe to repeat."""
        if self._process is not None and self._process.poll() is None:
            self.stop(immediately=True)
        self._release_memory()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _release_memory(self) -> None:
        """Remove the memory segment that a killed server leaves for the next to find."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return
        if len(lines) > 6 and len(lines[6].split()) == 2:
            segment = lines[6].split()[1]
            subprocess.run(["/usr/bin/ipcrm", "-m", segment], capture_output=True, timeout=10)

    def execute(
        self, statement: str | sql.Composed, database: str = "postgres"
    ) -> list[tuple[object, ...]]:
        """Run a statement as the server's superuser, outside of transactions; return its rows."""
        query = statement.encode() if isinstance(statement, str) else statement
        where = f"host={self.folder} port={self.port} user=postgres dbname={database}"
        with psycopg.connect(where, autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(query)
            return cursor.fetchall() if cursor.description else []

    def url(self, database: str) -> str:
        """Return the URL of a database through the socket, which only root may use."""
        return f"postgresql+psycopg://{OWNER}@/{database}?host={self.folder}&port={self.port}"

    def tcp_url(self, database: str) -> str:
        """Return the URL of a database through loopback, with the password."""
        return (
            f"postgresql+psycopg://{OWNER}:{self.password}@127.0.0.1:{self.port}/{database}"
            "?sslmode=disable"
        )

    def new_database(self, *, is_empty: bool = False) -> str:
        """Make a database and return its name; it has this release's tables, or nothing."""
        name = f"test_{secrets.token_hex(6)}"
        self._create(name, "template0" if is_empty else self._migrated())
        return name

    def _create(self, name: str, template: str) -> None:
        self.execute(
            sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}").format(
                sql.Identifier(name), sql.Identifier(OWNER), sql.Identifier(template)
            )
        )

    def _migrated(self) -> str:
        with self._lock:
            if self._template is None:
                self._create("migrated", "template0")
                store = Store(self.url("migrated"), World())
                migrations.upgrade(store)
                store.close()
                self._template = "migrated"
            return self._template

    def drop(self, name: str) -> None:
        """Remove a database, whoever uses it."""
        self.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        )

    @contextmanager
    def database(self, *, is_empty: bool = False) -> Iterator[str]:
        """Make a database for a while; yields its URL."""
        name = self.new_database(is_empty=is_empty)
        try:
            yield self.url(name)
        finally:
            if self.pids:
                self.drop(name)


def _place(on_disk: bool) -> str:
    """Return a folder in memory, if it has room: a new database is 450 new files."""
    if on_disk:
        return "/var/tmp"
    try:
        has_room = shutil.disk_usage("/dev/shm").free >= _ROOM_BYTES
    except OSError:
        has_room = False
    return "/dev/shm" if has_room else "/var/tmp"


def _as_its_user(*more: str) -> list[str]:
    as_user = ["/usr/bin/setpriv", "--reuid", SYSTEM_USER, "--regid", SYSTEM_USER, "--clear-groups"]
    return [*as_user, *more, "--"]


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _numbers() -> Iterator[str]:
    return (name for name in os.listdir("/proc") if name.isdigit())


def _children(parent: int) -> list[int]:
    found = []
    for name in _numbers():
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(name))
    return found


def _is_in(pid: int, folder: Path) -> bool:
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd")) == folder
    except OSError:
        return False


def require_postgresql() -> None:
    """Skip the test when this machine has no PostgreSQL, or may not start one."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if binaries() is None:
        pytest.skip("this machine lacks postgresql")


@contextmanager
def running(
    settings: Mapping[str, str] | None = None, *, on_disk: bool = False
) -> Iterator[PostgreSQL]:
    """Run a server for a while; skips the test when this machine lacks PostgreSQL."""
    require_postgresql()
    server = PostgreSQL(settings, on_disk=on_disk)
    try:
        server.make()
        yield server
    finally:
        server.destroy()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A server that all tests share; each makes databases of its own."""
    with running() as server:
        yield server
