"""The end of an instance's serial output, read from files that virtlogd writes."""

from __future__ import annotations

import os
import stat

from appliance.errors import CommandFailed
from appliance.model import ConsoleOutput

MOST_BYTES = 1 << 20
"""No answer is longer than this, whatever is asked for."""

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def read_console(directory: str, tail_bytes: int) -> ConsoleOutput:
    """Return the last ``tail_bytes`` of ``console.log``, and of the file before its last rotation.

    An empty text, written at 0, when there is none yet.

    :raises CommandFailed: a file is there but cannot be read, or is no regular file.
    """
    wanted = max(0, min(tail_bytes, MOST_BYTES))
    try:
        folder = os.open(directory, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return ConsoleOutput(text=b"", written_at=0.0)
    except OSError as error:
        raise CommandFailed(f"Could not open {directory}: {error.strerror}.") from error
    try:
        text, written_at = _tail(folder, "console.log", wanted)
        if len(text) < wanted:
            # virtlogd begins a new file every 2 MiB and keeps the old ones as .0, .1, ….
            older, older_at = _tail(folder, "console.log.0", wanted - len(text))
            text, written_at = older + text, max(written_at, older_at)
    except OSError as error:
        raise CommandFailed(
            f"Could not read the console of {directory}: {error.strerror}."
        ) from error
    finally:
        os.close(folder)
    return ConsoleOutput(text=text, written_at=written_at)


def _tail(folder: int, name: str, wanted: int) -> tuple[bytes, float]:
    try:
        handle = os.open(name, _FLAGS, dir_fd=folder)
    except FileNotFoundError:
        return b"", 0.0
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise CommandFailed(f"The console file {name} is no regular file.")
        file.seek(max(0, status.st_size - wanted))
        return file.read(wanted), status.st_mtime
