"""A PostgreSQL of the cluster's own: one database, one role, TLS, little memory.

It runs as Debian's user ``postgres`` on a folder of ours. Its settings lie beside its data, in a
folder that it cannot write to. Root reaches it as superuser through its unix socket; everybody
else is the cluster's role, over TLS.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import signal
import time
from pathlib import Path
from urllib.parse import quote

import msgspec
from msgspec import Struct

from appliance.cluster.services import daemon
from appliance.cluster.services.daemon import Account, Process, Tls
from appliance.errors import ConfigError, Unavailable
from appliance.files import write_whole
from appliance.run import run

log = logging.getLogger(__name__)

PACKAGE = "postgresql"
DATABASE = "anynode"
ROLE = "anynode"

_PROGRAMS = Path("/usr/lib/postgresql")
_SUPERUSER = "postgres"
_INITDB_S = 120.0
_START_S = 90.0
_STOP_S = 30.0
_POLL_S = 0.05
_LONGEST_SOCKET = 107

_SETTINGS = """\
listen_addresses = '{address}'
port = {port}
unix_socket_directories = '{folder}/socket'
unix_socket_permissions = 0700
data_directory = '{folder}/data'
hba_file = '{folder}/conf/pg_hba.conf'
ident_file = '{folder}/conf/pg_ident.conf'
password_encryption = scram-sha-256
ssl = on
ssl_min_protocol_version = 'TLSv1.2'
ssl_ca_file = '{folder}/tls/authority.pem'
ssl_cert_file = '{folder}/tls/node.pem'
ssl_key_file = '{folder}/tls/node.key'
max_connections = 200
shared_buffers = 64MB
effective_cache_size = 256MB
work_mem = 4MB
maintenance_work_mem = 32MB
wal_buffers = 4MB
min_wal_size = 64MB
max_wal_size = 512MB
max_worker_processes = 4
max_parallel_workers_per_gather = 0
autovacuum_max_workers = 2
jit = off
timezone = 'UTC'
lc_messages = 'C'
logging_collector = on
log_directory = '{folder}/log'
log_filename = 'postgresql-%a.log'
log_truncate_on_rotation = on
log_rotation_age = 1d
log_rotation_size = 0
log_file_mode = 0600
log_parameter_max_length_on_error = 0
log_min_error_statement = panic
"""
"""What is not PostgreSQL's own default. Statements are not logged: they hold users' values."""

_HBA = f"""\
local all {_SUPERUSER} peer map=anynode
hostssl {DATABASE} {ROLE} 0.0.0.0/0 scram-sha-256
hostssl {DATABASE} {ROLE} ::/0 scram-sha-256
"""

_IDENT = f"""\
anynode root {_SUPERUSER}
anynode {_SUPERUSER} {_SUPERUSER}
"""


class Settings(Struct, frozen=True, kw_only=True):
    """What a PostgreSQL of ours was made with; ``password`` is that of the cluster's role."""

    address: str
    port: int
    password: str

    @property
    def url(self) -> str:
        """The store's URL; who opens it adds the authority that the server is checked against."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return (
            f"postgresql+psycopg://{ROLE}:{quote(self.password, safe='')}@{host}:{self.port}"
            f"/{DATABASE}?sslmode=verify-full"
        )


class Postgresql:
    """The PostgreSQL in one folder of this machine; root only.

    :param folder: ``<state folder>/services/postgresql``.
    """

    name = "PostgreSQL"

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._record = self.folder / "process.json"
        self._settings_path = self.folder / "service.json"
        self._whole = self.folder / "data.whole"
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

    def make(self, *, address: str, port: int, tls: Tls) -> Settings:
        """Make one and start it, or find and start the one that is here; safe to repeat.

        :raises ConfigError: a package is missing, the port is taken, or the one that is here has
            another address.
        """
        account = self._account()
        check_installed()
        if self.exists:
            made = self.settings()
            if (made.address, made.port) != (address, port):
                raise ConfigError(
                    f"{self.name} was made for {made.address}:{made.port}, not for "
                    f"{address}:{port}."
                )
        else:
            made = Settings(address=address, port=port, password=secrets.token_urlsafe(32))
            self._make_files(made, account)
        self.ensure(tls)
        self._make_database(made)
        return made

    def _make_files(self, made: Settings, account: Account) -> None:
        socket = self.folder / "socket" / f".s.PGSQL.{made.port}"
        if len(str(socket)) > _LONGEST_SOCKET:
            raise ConfigError(
                f"The state folder's name is too long: {socket} cannot be a socket.",
                hint="Set node.state_dir to a shorter one.",
            )
        if set(str(self.folder)) & set("'\\\n"):
            raise ConfigError(f"PostgreSQL cannot live in {self.folder}: an odd name.")
        daemon.make_folder(self.folder.parent)
        daemon.make_folder(self.folder)
        daemon.make_folder(self.folder / "log", account, mode=0o700)
        daemon.make_folder(self.folder / "socket", account, mode=0o700)
        # Last, for with it the rest counts as made.
        write_whole(self._settings_path, msgspec.json.encode(made))

    def _make_data(self, account: Account) -> None:
        """Make the data, once; what an interrupted attempt left is thrown away."""
        if self._whole.exists():
            return
        data = self.folder / "data"
        if data.exists():
            shutil.rmtree(data)
        daemon.make_folder(data, account, mode=0o700)
        command: list[str | Path] = [
            *(_bin_folder(None) / "initdb", "--pgdata", data, f"--username={_SUPERUSER}"),
            *("--auth-local=peer", "--auth-host=scram-sha-256", "--encoding=UTF8"),
            *("--locale=C.UTF-8", "--data-checksums", "--no-instructions"),
        ]
        run(daemon.as_user(command, account), deadline_s=_INITDB_S)
        write_whole(self._whole, b"")
        log.info("made a PostgreSQL in %s", self.folder)

    def _write_conf(self, made: Settings, account: Account) -> bool:
        conf = self.folder / "conf"
        daemon.make_folder(conf, Account(name="root", uid=0, gid=account.gid), mode=0o750)
        text = _SETTINGS.format(address=made.address, port=made.port, folder=self.folder)
        files = {"postgresql.conf": text, "pg_hba.conf": _HBA, "pg_ident.conf": _IDENT}
        changed = [daemon.put(conf / name, body.encode(), account) for name, body in files.items()]
        return any(changed)

    def ensure(self, tls: Tls, deadline_s: float = _START_S) -> bool:
        """Make sure that it runs, with its node's current certificate; say whether it had to start.

        :raises ConfigError: none was made here, or it cannot start.
        :raises Unavailable: it does not answer within ``deadline_s``; it goes on starting.
        """
        made, account = self.settings(), self._account()
        is_changed = daemon.put_tls(self.folder / "tls", tls, account)
        is_changed |= self._write_conf(made, account)
        process = self.process()
        if process and self._is_ready(process):
            if is_changed:
                os.kill(process.pid, signal.SIGHUP)
            return False
        if process is None:
            self._make_data(account)
            process = self._start(account)
        end = time.monotonic() + deadline_s
        while not self._is_ready(process):
            daemon.check_alive(process, self.name, self._printed, end)
            time.sleep(_POLL_S)
        return True

    def _start(self, account: Account) -> Process:
        conf = self.folder / "conf" / "postgresql.conf"
        programs = _bin_folder(self.folder / "data")
        command: list[str | Path] = [programs / "postgres", "-c", f"config_file={conf}"]
        process = daemon.start(
            self._record, daemon.as_user(command, account), log_path=self._printed
        )
        log.info("started PostgreSQL, process %d", process.pid)
        return process

    def _is_ready(self, process: Process) -> bool:
        """Say whether it takes connections, as it writes down itself."""
        try:
            lines = (self.folder / "data" / "postmaster.pid").read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return False
        return lines[:1] == [str(process.pid)] and lines[7:8] == ["ready   "]

    def _make_database(self, made: Settings) -> None:
        """Make role and database, unless they are there."""
        import psycopg
        from psycopg import sql

        try:
            with psycopg.connect(
                host=str(self.folder / "socket"),
                port=made.port,
                user=_SUPERUSER,
                dbname="postgres",
                autocommit=True,
                connect_timeout=10,
            ) as link:
                # Hashed here, so that the server never sees the password in a statement.
                hashed = link.pgconn.encrypt_password(
                    made.password.encode(), ROLE.encode(), b"scram-sha-256"
                ).decode()
                role, database = sql.Identifier(ROLE), sql.Identifier(DATABASE)
                if not link.execute("SELECT FROM pg_roles WHERE rolname = %s", [ROLE]).fetchall():
                    link.execute(
                        sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                            role, sql.Literal(hashed)
                        )
                    )
                found = link.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE])
                if not found.fetchall():
                    link.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, role))
                for name in ("postgres", "template1", DATABASE):
                    link.execute(
                        sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(
                            sql.Identifier(name)
                        )
                    )
        except psycopg.Error as error:
            raise Unavailable(
                f"Could not make the database of the cluster: {str(error).strip()}.",
                hint=f"Look at {self.folder / 'log'}.",
            ) from error

    def process(self) -> Process | None:
        """Return its process; ``None`` when it does not run."""
        conf = self.folder / "conf" / "postgresql.conf"
        return daemon.find(
            self._record,
            pid_file=self.folder / "data" / "postmaster.pid",
            mark=f"config_file={conf}",
            account=self._account(),
        )

    def stop(self, *, is_orderly: bool = True) -> int | None:
        """End it, connections and all; return the process id, ``None`` when it did not run.

        :param is_orderly: write down what it has; else it recovers when it is started again.
        :raises CommandFailed: it does not end.
        """
        if not self.exists:
            return None
        process = self.process()
        if process is None:
            return None
        # Not KILL: its children would be left to notice.
        orderly = ((signal.SIGINT, _STOP_S),) if is_orderly else ()
        steps = (*orderly, (signal.SIGQUIT, _STOP_S))
        daemon.end(self._record, process, steps)
        log.info("stopped PostgreSQL, process %d", process.pid)
        return process.pid

    def _account(self) -> Account:
        return daemon.account_of(_SUPERUSER, PACKAGE)


def _bin_folder(data: Path | None) -> Path:
    """Return the folder of the programs that fit the data, or of the newest release.

    :raises ConfigError: none is installed.
    """
    version = data / "PG_VERSION" if data else None
    wanted = version.read_text().strip() if version and version.exists() else ""
    found = {
        path.parent.parent.name: path.parent
        for path in _PROGRAMS.glob("*/bin/initdb")
        if re.fullmatch(r"\d+", path.parent.parent.name)
    }
    if wanted and wanted in found:
        return found[wanted]
    if wanted or not found:
        package = f"{PACKAGE}-{wanted}" if wanted else PACKAGE
        raise ConfigError(
            f"This machine lacks PostgreSQL{' ' + wanted if wanted else ''}.",
            hint=f"Run: apt-get install --no-install-recommends {package} (or give --store-url).",
        )
    return found[max(found, key=int)]


def check_installed() -> None:
    """Refuse a machine without PostgreSQL.

    :raises ConfigError: a package is missing.
    """
    _bin_folder(None)
    daemon.account_of(_SUPERUSER, PACKAGE)
