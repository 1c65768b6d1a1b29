"""The one place that runs other programs.

A failure shows a line to paste, the exit status and the last lines that the program printed;
secrets are masked where the command is rendered.
"""

from __future__ import annotations

import logging
import os
import resource
import shlex
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import CommandFailed

log = logging.getLogger(__name__)

_SHOWN_LINES = 20


class Secret(str):
    """An argument that is shown as ``***`` wherever the command is rendered.

    It is still visible in ``ps``: pass real secrets through ``stdin`` or the environment.
    """


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Resource limits of a child; ``None`` leaves the limit as it is."""

    address_space_bytes: int | None = None
    cpu_s: int | None = None
    file_size_bytes: int | None = None
    nice: int = 0

    def apply(self) -> None:
        """Set the limits on the calling process; runs in the child between fork and exec."""
        pairs = (
            (resource.RLIMIT_AS, self.address_space_bytes),
            (resource.RLIMIT_CPU, self.cpu_s),
            (resource.RLIMIT_FSIZE, self.file_size_bytes),
        )
        for kind, value in pairs:
            if value is not None:
                resource.setrlimit(kind, (value, value))
        if self.nice:
            os.nice(self.nice)


def command_line(command: Sequence[str | Path]) -> str:
    """Return the command as a line to paste into a shell, secrets masked."""
    return " ".join(
        "***" if isinstance(word, Secret) else shlex.quote(str(word)) for word in command
    )


def run(
    command: Sequence[str | Path],
    *,
    deadline_s: float,
    stdin: str | bytes = "",
    environment: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    accept: Sequence[int] = (0,),
) -> str:
    """Run a program to its end and return what it printed on standard output.

    The program gets its own process group, so that a deadline ends its children too.

    :param deadline_s: seconds after which the whole group is killed.
    :param accept: exit statuses that are not a failure.
    :raises CommandFailed: the program is missing, ended with another status, or ran too long;
        whatever it did until then is the caller's to undo.
    """
    words = [str(word) for word in command]
    log.debug("run %s", command_line(command))
    preexec: Callable[[], None] | None = limits.apply if limits else None
    try:
        child = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
            start_new_session=True,
            preexec_fn=preexec,
        )
    except OSError as error:
        raise CommandFailed(
            f"Could not start {words[0]!r}: {error.strerror}.",
            hint="Install the package that brings it, or look at PATH."
            if isinstance(error, FileNotFoundError)
            else "",
        ) from error
    with child:
        try:
            given = stdin.encode() if isinstance(stdin, str) else stdin
            out, err = child.communicate(given, timeout=deadline_s)
        except BaseException as error:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise CommandFailed(
                    f"Killed after {deadline_s:g} s without an end: {command_line(command)}"
                ) from error
            raise
    if child.returncode not in accept:
        raise CommandFailed(_failure_text(command, child.returncode, out, err))
    return out.decode(errors="replace")


def _failure_text(command: Sequence[str | Path], status: int, out: bytes, err: bytes) -> str:
    ended = f"signal {-status}" if status < 0 else f"exit status {status}"
    printed = (err or out).decode(errors="replace").strip().splitlines()[-_SHOWN_LINES:]
    return f"Command failed with {ended}: {command_line(command)}" + "".join(
        f"\n  {line}" for line in printed
    )


def spawn_daemon(
    command: Sequence[str | Path], *, log_path: Path, environment: Mapping[str, str] | None = None
) -> int:
    """Start a program in a session of its own that outlives this process; return its process id.

    Standard output and error go to ``log_path`` (appended, mode 0600).

    :raises CommandFailed: the program could not be started; nothing is left.
    """
    log.debug("spawn %s", command_line(command))
    fd = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        child = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=fd,
            stderr=fd,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    except OSError as error:
        raise CommandFailed(f"Could not start {command[0]}: {error.strerror}.") from error
    finally:
        os.close(fd)
    return child.pid
