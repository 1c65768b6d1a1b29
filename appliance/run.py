"""The one place that runs other programs.

A failure shows a line to paste, the exit status and the last lines that the program printed;
secrets are masked where the command is rendered and in what the program printed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from appliance.errors import CommandFailed

log = logging.getLogger(__name__)

MIB = 1 << 20

_SHOWN_LINES = 20
_SHOWN_COLUMNS = 400
_KEPT_ERROR_BYTES = 64 << 10
_REAP_S = 5.0


class Secret(str):
    """An argument that is shown as ``***`` wherever the command is rendered.

    It is still visible in ``ps``: pass real secrets through ``stdin`` or the environment, as
    ``Secret`` too, so that an error message that quotes them is masked.
    """

    def __repr__(self) -> str:
        return "Secret(***)"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Resource limits of a child; ``None`` leaves the limit as it is."""

    address_space_bytes: int | None = None
    cpu_s: int | None = None
    file_size_bytes: int | None = None
    nice: int = 0

    def prefix(self) -> list[str]:
        """Return the words that make a command run under these limits.

        Programs set them, because code of ours between fork and exec may hang where other threads
        held a lock at the fork.
        """
        given = {
            "--as": self.address_space_bytes,
            "--cpu": self.cpu_s,
            "--fsize": self.file_size_bytes,
        }
        options = [f"{name}={value}" for name, value in given.items() if value is not None]
        return [
            *(["prlimit", *options] if options else []),
            *(["nice", "-n", str(self.nice)] if self.nice else []),
        ]


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
    output_limit_bytes: int = 64 * MIB,
) -> str:
    """Run a program to its end and return what it printed on standard output.

    The program gets its own process group, so that a deadline ends its children too. A daemon
    that it leaves behind when it ends in time is not waited for and not ended.

    :param deadline_s: seconds after which the whole group is killed.
    :param accept: exit statuses that are not a failure.
    :param output_limit_bytes: standard output after which the whole group is killed: an answer
        that was cut would be read as a whole one. Of standard error only the end is kept.
    :raises CommandFailed: the program is missing, ended with another status, printed too much,
        or ran too long; whatever it did until then is the caller's to undo.
    """
    full = [*(limits.prefix() if limits else ()), *command]
    line = command_line(full)
    log.debug("run %s", line)
    given = stdin.encode() if isinstance(stdin, str) else stdin
    child = _start(full, command[0], environment, subprocess.PIPE if given else subprocess.DEVNULL)
    talk = _Talk(child, given, output_limit_bytes)
    try:
        problem = talk.until(time.monotonic() + deadline_s)
    except BaseException:
        _kill_group(child, line)
        raise
    finally:
        talk.close()
    if problem:
        _kill_group(child, line)
        raise CommandFailed(f"Killed, for it {problem}: {line}")
    status = child.wait()
    if status not in accept:
        printed = (talk.error or talk.output).decode(errors="replace")
        masked = _mask(printed, (*command, stdin, *(environment or {}).values()))
        raise CommandFailed(_failure_text(line, status, masked))
    return talk.output.decode(errors="replace")


def _start(
    command: Sequence[str | Path],
    program: str | Path,
    environment: Mapping[str, str] | None,
    stdin: int,
    output: int = subprocess.PIPE,
) -> subprocess.Popen[bytes]:
    variables = {**os.environ, "LC_ALL": "C", **(environment or {})}
    try:
        # Looked up here, since behind a prefix the program would be missed by another program.
        if shutil.which(program, path=variables.get("PATH")) is None:
            raise FileNotFoundError(2, "no such program")
        return subprocess.Popen(
            [str(word) for word in command],
            stdin=stdin,
            stdout=output,
            stderr=output,
            env=variables,
            start_new_session=True,
        )
    except OSError as error:
        raise CommandFailed(
            f"Could not start {str(program)!r}: {error.strerror}.",
            hint="Install the package that brings it, or look at PATH."
            if isinstance(error, FileNotFoundError)
            else "",
        ) from error


class _Talk:
    """Feeds a child and keeps what it prints, bounded, until it ends."""

    def __init__(self, child: subprocess.Popen[bytes], given: bytes, limit: int) -> None:
        self.output = bytearray()
        self.error = bytearray()
        self._limit = limit
        self._given = memoryview(given)
        self._end = os.pidfd_open(child.pid)
        self._pipes = [pipe for pipe in (child.stdin, child.stdout, child.stderr) if pipe]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._end, selectors.EVENT_READ)
        for pipe in self._pipes:
            os.set_blocking(pipe.fileno(), False)
        if child.stdin:
            self._selector.register(child.stdin, selectors.EVENT_WRITE)
        if child.stdout and child.stderr:
            self._selector.register(child.stdout, selectors.EVENT_READ, self.output)
            self._selector.register(child.stderr, selectors.EVENT_READ, self.error)

    def until(self, ends_at: float) -> str | None:
        """Return when the child has ended, or what is wrong with it."""
        has_ended = False
        while not has_ended:
            left = ends_at - time.monotonic()
            if left <= 0:
                return "ran into its deadline"
            ready = [key for key, _ in self._selector.select(left)]
            has_ended = any(key.fd == self._end for key in ready)
            for key in ready:
                if key.events == selectors.EVENT_WRITE:
                    self._feed(key)
                elif key.fd != self._end:
                    self._read(key)
            if len(self.output) > self._limit:
                return f"printed more than {self._limit} bytes"
        # What it printed last is in the pipes, which a daemon it left may hold open for ever.
        for key in list(self._selector.get_map().values()):
            if key.data is not None:
                self._read(key)
        return f"printed more than {self._limit} bytes" if len(self.output) > self._limit else None

    def close(self) -> None:
        """Close all that was opened for the talk."""
        self._selector.close()
        os.close(self._end)
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.close()

    def _feed(self, key: selectors.SelectorKey) -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                self._given = self._given[os.write(key.fd, self._given) :]
            except BrokenPipeError:
                self._given = self._given[:0]
        if not self._given:
            self._selector.unregister(key.fileobj)
            cast(IO[bytes], key.fileobj).close()

    def _read(self, key: selectors.SelectorKey) -> None:
        try:
            # A pipe holds no more than this, so that one read empties it.
            chunk = os.read(key.fd, MIB)
        except BlockingIOError:
            return
        if not chunk:
            self._selector.unregister(key.fileobj)
        key.data.extend(chunk)
        if key.data is self.error:
            del self.error[:-_KEPT_ERROR_BYTES]


def _kill_group(child: subprocess.Popen[bytes], line: str) -> None:
    # The leader is not reaped yet, so that its number still names this group.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    try:
        child.wait(_REAP_S)
    except subprocess.TimeoutExpired:
        log.warning("process %d waits in the kernel and does not die: %s", child.pid, line)


def _mask(text: str, given: Iterable[object]) -> str:
    for secret in sorted((str(item) for item in given if isinstance(item, Secret)), key=len):
        for part in {secret, *secret.splitlines()}:
            # Shorter parts are words of any text; they give nothing away.
            if len(part) > 3:
                text = text.replace(part, "***")
    return text


def _failure_text(line: str, status: int, printed: str) -> str:
    ended = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    shown = printed.strip().splitlines()[-_SHOWN_LINES:]
    return f"Command failed with {ended}: {line}" + "".join(
        f"\n  {one[:_SHOWN_COLUMNS]}" for one in shown
    )


def spawn_daemon(
    command: Sequence[str | Path], *, log_path: Path, environment: Mapping[str, str] | None = None
) -> int:
    """Start a program in a session of its own that outlives this process; return its process id.

    Standard output and error go to ``log_path`` (appended, mode 0600). Until this process ends it
    is its child: who waits for its end reaps it, else the next program that is started does.

    :raises CommandFailed: the program could not be started; nothing is left.
    """
    log.debug("spawn %s", command_line(command))
    fd = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        child = _start(command, command[0], environment, subprocess.DEVNULL, fd)
    finally:
        os.close(fd)
    return child.pid
