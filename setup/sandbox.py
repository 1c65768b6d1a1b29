#!/usr/bin/env python3
"""Run `anynode sandbox` from this checkout, in an environment that has at least what it needs.

That is .venv where `make setup` was; else var/sandbox-venv, which is made here without root, from
the pinned files of setup/requirements-sandbox.txt: wheels only, so that no compiler is needed. When
nothing has changed it does nothing, and needs no network. Safe to repeat and to interrupt.
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
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
COMPLETE = ROOT / ".venv"
ENVIRONMENT = ROOT / "var/sandbox-venv"
STAMP = ENVIRONMENT / ".made-from"
REQUIREMENTS = ROOT / "setup/requirements-sandbox.txt"
LOG = ROOT / "var/log/sandbox-setup.log"
OLDEST = (3, 11)


def die(words: str) -> NoReturn:
    """End with one sentence."""
    raise SystemExit(f"sandbox: {words}")


def distributions() -> list[Path]:
    """Return the folders of our distributions that the extra `sandbox` names, the root first."""
    import tomllib  # an older Python has none, and is told so in a sentence

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = project["optional-dependencies"]["sandbox"]
    return [ROOT, *(ROOT / "plugins" / name.removeprefix("anynode-") for name in names)]


def made_from() -> str:
    """Return a digest of everything that the environment is made from."""
    digest = hashlib.sha256(f"{ROOT} {sys.version}".encode())
    for path in (REQUIREMENTS, *(folder / "pyproject.toml" for folder in distributions())):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def run(command: Sequence[str | Path], hint: str) -> None:
    """Run a program with its output in the log, and show the end of it when it fails."""
    with LOG.open("ab") as output:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        end = "\n".join(LOG.read_text(errors="replace").splitlines()[-15:])
        die(f"{' '.join(map(str, command[:4]))} failed. {hint}\nThe end of {LOG}:\n{end}")


def make() -> None:
    """Make the environment anew, whole or marked as unfinished by the lack of its stamp."""
    print("sandbox: make var/sandbox-venv, which takes half a minute", flush=True)
    LOG.write_bytes(b"")
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    run(
        [sys.executable, "-m", "venv", ENVIRONMENT],
        "On Debian, `apt-get install python3-venv` brings what lacks.",
    )
    pip: list[str | Path] = [
        ENVIRONMENT / "bin/python",
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
    ]
    run(
        [*pip, "install", "--require-hashes", "--only-binary", ":all:", "-r", REQUIREMENTS],
        "Check the network and pip's settings (`pip config list`), then run it again.",
    )
    own: list[str | Path] = [word for folder in distributions() for word in ("-e", folder)]
    run(
        [*pip, "install", "--no-deps", "--no-build-isolation", *own],
        "Look at the pyproject.toml that it names.",
    )
    STAMP.write_text(made_from(), encoding="ascii")


def environment() -> Path:
    """Return the environment to use, made when there is none."""
    check = subprocess.run([ROOT / "setup/setup.sh", "--check"], capture_output=True, check=False)
    if check.returncode == 0:
        return COMPLETE
    try:
        LOG.parent.mkdir(parents=True, exist_ok=True)
        with (ROOT / "var/.sandbox.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not STAMP.exists() or STAMP.read_text(encoding="ascii") != made_from():
                make()
    except OSError as error:
        die(
            f"could not write {error.filename}: {error.strerror}. "
            "Run `make setup`, or run it as the owner of the checkout."
        )
    return ENVIRONMENT


def main() -> None:
    """Become the sandbox, with the words of the command line."""
    if sys.version_info < OLDEST:
        die(
            f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed; "
            f"python3 is {sys.version.split()[0]}."
        )
    program = environment() / "bin/anynode"
    os.chdir(ROOT)
    (ROOT / "var").mkdir(exist_ok=True)
    os.execv(program, [str(program), "sandbox", *sys.argv[1:]])


if __name__ == "__main__":
    main()
