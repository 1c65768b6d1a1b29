"""Env files: an access key and where the API is, as lines for a shell that every client knows."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import tempfile
from pathlib import Path


def path_line() -> str:
    """Return the line of an env file that lets the shell find ``aws`` and ``anynode``, last."""
    programs = shlex.quote(str(Path(sys.executable).parent))
    return f'case ":$PATH:" in *:{programs}:*) ;; *) export PATH="$PATH:"{programs} ;; esac\n'


def write_whole(path: Path, text: str, *, mode: int) -> None:
    """Write a file so that it is there as a whole or not at all; it is sudo's user's."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
            owner, group = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
            if os.geteuid() == 0 and owner.isdecimal() and group.isdecimal():
                os.fchown(file.fileno(), int(owner), int(group))
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
