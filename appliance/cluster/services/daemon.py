"""A daemon of the cluster's own: a user without rights runs it, and it outlives the node's process.

Which process it is lies in a record of ours, with the time at which it was started. Where a crash
came before that record was written, the daemon's own process id file is believed if the process
belongs to the daemon's user and its command line names the daemon's folder.

Folders that the daemon may write to are never written to by us: a daemon that was taken over could
lay a link there that leads root astray.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import resource
import select
import signal
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from appliance.errors import CommandFailed, ConfigError, Unavailable
from appliance.files import write_whole
from appliance.node_process import start_ticks
from appliance.run import spawn_daemon

log = logging.getLogger(__name__)

_OPEN_FILES = 65536
_KILL_S = 10.0
_SHOWN_CHARACTERS = 2000


@dataclass(frozen=True, kw_only=True)
class Account:
    """The user that a daemon runs as."""

    name: str
    uid: int
    gid: int


class Process(Struct, frozen=True, kw_only=True):
    """A daemon's process. ``started_ticks`` is the start in clock ticks since boot."""

    pid: int
    started_ticks: int

    @property
    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        return bool(self.started_ticks) and start_ticks(self.pid) == self.started_ticks


@dataclass(frozen=True, kw_only=True)
class Tls:
    """The files of a node that make its services speak TLS."""

    authority: Path
    certificate: Path
    key: Path


def account_of(name: str, package: str) -> Account:
    """Return a user of this machine.

    :raises ConfigError: there is none, since the package that makes it is missing.
    """
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise ConfigError(
            f"This machine has no user {name!r}.",
            hint=f"Run: apt-get install --no-install-recommends {package}",
        ) from error
    return Account(name=name, uid=entry.pw_uid, gid=entry.pw_gid)


def as_user(command: Sequence[str | Path], account: Account) -> list[str | Path]:
    """Return a command that runs as a user, with no rights but its own."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = _OPEN_FILES if most == resource.RLIM_INFINITY else min(_OPEN_FILES, most)
    return [
        *("prlimit", f"--nofile={files}:{files}"),
        *("setpriv", f"--reuid={account.uid}", f"--regid={account.gid}", "--init-groups"),
        *("--no-new-privs", "--inh-caps=-all"),
        *("env", "--chdir=/"),
        *command,
    ]


def make_folder(path: Path, account: Account | None = None, *, mode: int = 0o711) -> None:
    """Make a folder in one of ours: root's, which the daemon's group may read, or the daemon's own.

    :param account: whose it is; ``None``: root's.
    :raises ConfigError: it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if account:
            os.chown(path, account.uid, account.gid, follow_symlinks=False)
        path.chmod(mode)
    except OSError as error:
        raise ConfigError(
            f"Could not make {path}: {error.strerror}.", hint="Run the command as root."
        ) from error


def put(path: Path, content: bytes, account: Account, *, mode: int = 0o440) -> bool:
    """Write a file of root's for a daemon to read; say whether it was another one before.

    :param mode: with an owner's bit only, the file is the daemon's, else root's and its group's.
    """
    if path.is_file() and path.read_bytes() == content:
        return False
    beside = path.with_name(f".{path.name}.made")
    write_whole(beside, content, is_durable=False)
    is_private = not mode & (stat.S_IRWXG | stat.S_IRWXO)
    os.chown(beside, account.uid if is_private else 0, account.gid)
    beside.chmod(mode)
    beside.replace(path)
    return True


def put_tls(folder: Path, tls: Tls, account: Account) -> bool:
    """Give a daemon its node's certificate and key; say whether they were others before."""
    make_folder(folder, Account(name="root", uid=0, gid=account.gid), mode=0o750)
    try:
        files = {
            "authority.pem": tls.authority.read_bytes(),
            "node.pem": tls.certificate.read_bytes(),
        }
        key = tls.key.read_bytes()
    except OSError as error:
        raise ConfigError(f"Could not read {error.filename}: {error.strerror}.") from error
    # The key first: for a moment the two do not fit, which a daemon that looks just then survives.
    changed = put(folder / "node.key", key, account, mode=0o400)
    for name, content in files.items():
        changed |= put(folder / name, content, account)
    return changed


def recorded(record: Path) -> Process | None:
    """Return the process of a record if it still runs."""
    try:
        known = msgspec.json.decode(record.read_bytes(), type=Process)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return known if known.is_alive else None


def find(record: Path, *, pid_file: Path, mark: str, account: Account) -> Process | None:
    """Return the daemon's process; ``None`` when it does not run.

    :param pid_file: that of the daemon itself, which counts when the record does not.
    :param mark: a word of the daemon's command line.
    """
    if known := recorded(record):
        return known
    try:
        pid = int(pid_file.read_text(errors="replace").split("\n")[0])
        owner = os.stat(f"/proc/{pid}").st_uid
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except (OSError, ValueError):
        return None
    if owner != account.uid or mark not in words:
        return None
    process = Process(pid=pid, started_ticks=start_ticks(pid))
    _write(record, process)
    return process


def start(
    record: Path,
    command: Sequence[str | Path],
    *,
    log_path: Path,
    environment: Mapping[str, str] | None = None,
) -> Process:
    """Start a daemon and write down which process it is.

    :raises CommandFailed: it could not be started; nothing is left.
    """
    log_path.unlink(missing_ok=True)
    pid = spawn_daemon(command, log_path=log_path, environment=environment)
    process = Process(pid=pid, started_ticks=start_ticks(pid))
    _write(record, process)
    return process


def _write(record: Path, process: Process) -> None:
    write_whole(record, msgspec.json.encode(process), is_durable=False)


def check_alive(process: Process, name: str, log_path: Path, ends_at: float) -> None:
    """Return while a daemon may still come up.

    :raises CommandFailed: it has ended; the message holds what it said last.
    :raises Unavailable: the time is up; it goes on.
    """
    if not process.is_alive:
        said = log_path.read_text(errors="replace").strip() if log_path.exists() else ""
        words = f" It said:\n{said[-_SHOWN_CHARACTERS:]}" if said else ""
        raise CommandFailed(f"{name} ended while it started.{words}")
    if time.monotonic() > ends_at:
        raise Unavailable(
            f"{name} (process {process.pid}) does not answer yet.",
            hint=f"It goes on; look at {log_path}, then run the command again.",
        )


def end(record: Path, process: Process, steps: Sequence[tuple[signal.Signals, float]]) -> None:
    """End a daemon by its process id: each signal with the seconds that it is given, then KILL.

    :raises CommandFailed: it waits in the kernel and does not die; it stays written down.
    """
    try:
        # A descriptor keeps the number from being given to another process meanwhile.
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        record.unlink(missing_ok=True)
        return
    try:
        for number, wait_s in (*steps, (signal.SIGKILL, _KILL_S)):
            if not process.is_alive:
                break
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            if select.select([descriptor], [], [], wait_s)[0]:
                with contextlib.suppress(ChildProcessError):
                    os.waitid(os.P_PIDFD, descriptor, os.WEXITED)
                break
        else:
            raise CommandFailed(f"The process {process.pid} does not end.")
    finally:
        os.close(descriptor)
    record.unlink(missing_ok=True)
