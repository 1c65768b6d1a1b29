"""A process whose writes fail where a test wants it, and a file system of its own to fill up.

The process is a Python of its own, with ``faulty_disk.c`` preloaded and a private mount namespace.
What runs in it is a function of ``cases.py`` or ``nodes.py``; its answer comes back as JSON.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
SOURCE = Path(__file__).with_name("faulty_disk.c")
ALWAYS = -1


def build(folder: Path) -> Path:
    """Compile what is preloaded and return its path."""
    made = folder / "faulty_disk.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-o", made, SOURCE, "-ldl", "-lpthread"]
    subprocess.run([str(word) for word in command], check=True)
    return made


def run_case(
    library: Path,
    folder: Path,
    case: str,
    *arguments: Any,
    deadline_s: float,
    module: str = "cases",
) -> Any:
    """Run a case of a module in a process of its own and return its answer.

    :raises AssertionError: it failed, with all that it printed.
    """
    program = f"import sys; from tests.faults.disk.{module} import main; main(sys.argv[1:])"
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private", "--"),
            *(sys.executable, "-c", program, case, str(folder), json.dumps(arguments)),
        ],
        env={**os.environ, "LD_PRELOAD": str(library)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=deadline_s,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-12000:]}"
    return json.loads(done.stdout.splitlines()[-1])


class Disk:
    """What is preloaded into this process."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.faults_last.restype = ctypes.c_char_p

    @contextmanager
    def failing(self, text: str, code: int, *, nth: int = 1, times: int = ALWAYS) -> Iterator[None]:
        """Let writes to paths with a text fail, from the n-th on, so many of them."""
        self._library.faults_arm(text.encode(), nth, times, code)
        try:
            yield
        finally:
            self._library.faults_disarm()

    @property
    def hits(self) -> int:
        """How many calls have failed since it was last told to fail."""
        return int(self._library.faults_hits())

    @property
    def last(self) -> str:
        """The call that failed last, with its path."""
        return str(self._library.faults_last().decode())


def mount_tmpfs(folder: Path, size: str) -> None:
    """Make a file system of a size at a folder, seen by this process alone."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)


def remount(folder: Path, options: str) -> None:
    """Change how a file system is mounted."""
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def fill(folder: Path) -> Path:
    """Write to a file system until it is full, and return the file that fills it."""
    path = folder / "filler"
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            while _written(file, size):
                continue
    return path


def _written(file: Any, size: int) -> bool:
    try:
        return bool(file.write(b"\xaa" * size))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
