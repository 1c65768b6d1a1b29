"""The process that a node runs in: who it is, whether it lives, starting and ending it.

The process writes itself down in the node's run folder, with the time at which it was started, so
that a later process with the same number is never taken for it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from appliance import run
from appliance.cluster.membership import Membership
from appliance.config import Config
from appliance.ec2_client import endpoint_of
from appliance.errors import CommandFailed, Unavailable
from appliance.files import write_whole

START_S = 90.0
STOP_S = 30.0
_POLL_S = 0.1
_KILL_S = 10.0
_SHOWN_CHARACTERS = 2000


class NodeProcess(Struct, frozen=True, kw_only=True):
    """A node's process. ``started_ticks`` is the start in clock ticks since boot.

    ``is_up`` says that all roles have started; ``endpoint`` is empty where EC2 is not answered.
    """

    pid: int
    started_ticks: int
    started_at: float
    version: str
    config_path: str = ""
    log_path: str = ""
    endpoint: str = ""
    is_up: bool = False

    @property
    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        return start_ticks(self.pid) == self.started_ticks


def record_path(run_dir: Path) -> Path:
    """Return where a node writes down its process."""
    return run_dir / "node.json"


def start_ticks(pid: int) -> int:
    """Return when a process was started, in clock ticks since boot; 0 when it has ended.

    One whose first thread has ended still runs, and holds its locks, until the last one has.
    """
    try:
        stat = Path("/proc", str(pid), "stat").read_text(encoding="ascii", errors="replace")
        threads = len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" and threads <= 1 else int(fields[19])


def find(run_dir: Path) -> NodeProcess | None:
    """Return the process that runs a node on this run folder; ``None`` when none does."""
    try:
        known = msgspec.json.decode(record_path(run_dir).read_bytes(), type=NodeProcess)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None
    return known if known.is_alive else None


@contextlib.contextmanager
def recorded(process: NodeProcess, run_dir: Path) -> Iterator[Callable[[NodeProcess], None]]:
    """Write a process down until the block ends; the answer writes down what has changed."""
    path = record_path(run_dir)

    def write(changed: NodeProcess) -> None:
        write_whole(path, msgspec.json.encode(changed), mode=0o644, is_durable=False)

    write(process)
    try:
        yield write
    finally:
        path.unlink(missing_ok=True)


def log_path(config: Config) -> Path:
    """Return the log file of a node in the background."""
    return Path(config.node.log_file or config.state_dir / "log" / "node.log").absolute()


def start(config: Config, config_path: Path | None) -> NodeProcess:
    """Start a node in the background and return when it is up and its API answers.

    Interrupted by Ctrl-C it ends the node again.

    :raises CommandFailed: it ended; the message holds what it said last.
    :raises Unavailable: it was not up within ``START_S`` seconds; it goes on.
    """
    log = log_path(config)
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    printed = log.with_suffix(".out")
    printed.unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "appliance.cli"),
        *(("--config", config_path.absolute()) if config_path else ()),
        *("run", "--log-file", log),
    ]
    pid = run.spawn_daemon(command, log_path=printed)
    try:
        return _wait_until_up(config, pid, printed)
    except KeyboardInterrupt:
        # Nobody has been told of it yet, so that nobody would look for it.
        _end_child(pid)
        raise


def _end_child(pid: int) -> None:
    process = NodeProcess(pid=pid, started_ticks=start_ticks(pid), started_at=0.0, version="")
    if process.started_ticks:
        stop(process)


def _wait_until_up(config: Config, pid: int, printed: Path) -> NodeProcess:
    ticks = start_ticks(pid)
    end = time.monotonic() + START_S
    while True:
        process = find(config.run_dir)
        if process and process.pid == pid and process.is_up and answers(process):
            return process
        if start_ticks(pid) != ticks or not ticks:
            raise CommandFailed(f"The node ended while it started.{_last_words(printed)}")
        if time.monotonic() > end:
            raise Unavailable(
                f"The node (process {pid}) was not up within {START_S:g} s.",
                hint=f"It goes on; its log is {log_path(config)}, and `anynode status` shows it.",
            )
        time.sleep(_POLL_S)


def _last_words(printed: Path) -> str:
    try:
        text = printed.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
    return f" It said:\n{text[-_SHOWN_CHARACTERS:]}" if text else ""


def answers(process: NodeProcess) -> bool:
    """Say whether the API of a node answers; a node without one has nothing to say."""
    if not process.endpoint:
        return True
    # A proxy of the environment is for the world outside.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(process.endpoint, timeout=5) as reply:
            return bool(reply.status == 200)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def stop(process: NodeProcess, deadline_s: float = STOP_S) -> bool:
    """End a node's process and say whether it ended by itself; instances go on.

    After the deadline it is killed: its journals make that safe. Safe to repeat.

    :raises CommandFailed: it waits in the kernel and does not die.
    """
    try:
        # A descriptor keeps the number from being given to another process meanwhile.
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        if not process.is_alive:
            return True
        for number, wait_s in ((signal.SIGTERM, deadline_s), (signal.SIGKILL, _KILL_S)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            if select.select([descriptor], [], [], wait_s)[0]:
                return number == signal.SIGTERM
    finally:
        os.close(descriptor)
    raise CommandFailed(f"The node's process {process.pid} does not end.")


def up(process: NodeProcess) -> NodeProcess:
    """Return what a node writes down once all its roles have started."""
    return msgspec.structs.replace(process, is_up=True)


def this_process(config: Config, config_path: Path | None, log_file: Path | None) -> NodeProcess:
    """Return what a node writes down of its own process."""
    from importlib.metadata import version

    # In a cluster a node without the role hands calls on.
    cluster = Membership.of(config.state_dir)
    answers_ec2 = not cluster.removal if cluster else "api" in config.node.roles
    return NodeProcess(
        pid=os.getpid(),
        started_ticks=start_ticks(os.getpid()),
        started_at=time.time(),
        version=version("anynode"),
        config_path=str(config_path.absolute()) if config_path else "",
        log_path=str(log_file or ""),
        endpoint=endpoint_of(config) if answers_ec2 else "",
    )
