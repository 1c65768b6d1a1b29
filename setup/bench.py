#!/usr/bin/env python3
"""Install what `make bench` compares with: oslo.messaging, in an environment of its own.

Makes var/bench-peers from the pinned file setup/requirements-bench.txt, whose hashes decide what is
accepted. When nothing has changed it does nothing, and needs no network. Safe to repeat and to
interrupt: half an installation is made anew. The standard library and .venv's pip are enough.

To move to newer versions: setup/lock.py --upgrade.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "setup/requirements-bench.txt"
PEERS = ROOT / "var/bench-peers"
ENVIRONMENT = PEERS / "venv"
STAMP = PEERS / "made-from"
LOG = ROOT / "var/log/bench-peers.log"


def run(command: Sequence[str | Path]) -> None:
    """Run a program with its output in the log, and show the end of it when it fails."""
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with LOG.open("wb") as output:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
        )
    if done.returncode:
        end = "\n".join(LOG.read_text(errors="replace").splitlines()[-15:])
        raise SystemExit(
            f"bench: '{Path(command[0]).name}' failed with status {done.returncode}. Check the "
            f"network and the settings of pip, then run it again.\n{LOG}:\n{end}"
        )


def digest() -> str:
    """Return a digest of everything that a finished installation was made from."""
    found = hashlib.sha256(f"{ROOT} {sys.version}".encode())
    for file in (Path(__file__), REQUIREMENTS):
        found.update(file.read_bytes())
    return found.hexdigest()


def is_complete() -> bool:
    """Whether it is there and made from what the files say now."""
    return STAMP.is_file() and STAMP.read_text() == digest()


def main() -> None:
    """Install it unless it is there, one at a time."""
    if is_complete():
        return
    os.umask(0o022)  # root makes what every user runs
    PEERS.mkdir(parents=True, exist_ok=True)
    with (ROOT / "var/.bench-peers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_complete():
            return
        shutil.rmtree(PEERS)
        PEERS.mkdir()
        print("bench: install oslo.messaging to compare with", flush=True)
        run([sys.executable, "-m", "venv", "--without-pip", ENVIRONMENT])
        quiet = ("--disable-pip-version-check", "--no-input")
        into = ("--python", ENVIRONMENT / "bin/python", "install")
        hashes = ("--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", REQUIREMENTS)
        run([sys.executable, "-m", "pip", *quiet, *into, *hashes])
        STAMP.write_text(digest())


if __name__ == "__main__":
    main()
