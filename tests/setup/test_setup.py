"""The set-up of a machine: the lists it installs from, and what it refuses to touch.

Setting a bare machine up takes minutes; tests/fresh/run does that.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / "setup"


def canonical(requirement: str) -> str:
    """Return the name in a requirement such as "oslo.utils>=7.3"."""
    name = re.split(r"[\s\[<>=!~;]", requirement.strip(), maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def names(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if line and not line.startswith("#")]


def locked(file: Path) -> dict[str, str]:
    """Return name and version of each pinned package."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\$", file.read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    "name",
    [
        "requirements",
        "requirements-bench",
        "requirements-build",
        "requirements-clients",
        "requirements-sandbox",
    ],
)
def test_requirements_are_pinned_with_hashes_and_no_addresses(name: str) -> None:
    entries = (SETUP / f"{name}.txt").read_text().replace(" \\\n", " ").splitlines()
    for entry in entries:
        assert entry.startswith("#") or re.fullmatch(
            r"[a-z0-9-]+==\S+(     ?--hash=sha256:[0-9a-f]{64})+", entry
        ), entry
    assert locked(SETUP / f"{name}.txt").keys() >= {
        canonical(line) for line in names(SETUP / f"{name}.in")
    }


def test_build_requirements_agree_with_the_others() -> None:
    all_of_them = locked(SETUP / "requirements.txt")
    build = locked(SETUP / "requirements-build.txt")
    assert build.items() <= all_of_them.items()


def test_sandbox_requirements_are_what_the_extra_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    building = {"hatchling", "editables"}
    wanted = {canonical(one) for one in project["dependencies"]} | building
    assert {canonical(line) for line in names(SETUP / "requirements-sandbox.in")} == wanted
    all_of_them = locked(SETUP / "requirements.txt")
    sandbox = locked(SETUP / "requirements-sandbox.txt")
    assert sandbox.items() <= all_of_them.items()
    assert not [name for name in sandbox if "libvirt" in name]


def test_a_check_changes_nothing_and_needs_no_root(tmp_path: Path) -> None:
    """In a checkout that was never set up."""
    shutil.copytree(SETUP, tmp_path / "setup")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run([tmp_path / "setup/setup.sh", "--check"], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")
    assert sorted(tmp_path.rglob("*")) == before


def test_every_dependency_of_our_distributions_is_locked() -> None:
    available = locked(SETUP / "requirements.txt").keys()
    for file in [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")]:
        wanted = tomllib.loads(file.read_text())["project"].get("dependencies", [])
        missing = {canonical(one) for one in wanted} - available
        ours = {name for name in missing if name == "anynode" or name.startswith("anynode-")}
        assert missing == ours, file


def test_debian_packages_are_names_without_versions() -> None:
    packages = names(SETUP / "debian-packages.txt") + names(SETUP / "debian-packages-cluster.txt")
    assert len(packages) == len(set(packages))
    for package in packages:
        assert re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", package), package


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with nothing but the set-up in it, and no package to install."""
    shutil.copytree(SETUP, tmp_path / "setup")
    for name in ("debian-packages.txt", "debian-packages-cluster.txt"):
        (tmp_path / "setup" / name).write_text("# none\n")
    return tmp_path


@pytest.mark.node
def test_a_folder_that_is_no_environment_is_left_alone(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv/mine").write_text("precious")
    done = subprocess.run([checkout / "setup/setup.sh"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "is no Python environment: move it away" in done.stderr
    assert (checkout / ".venv/mine").read_text() == "precious"


@pytest.mark.node
def test_a_failing_program_shows_the_end_of_its_output(checkout: Path) -> None:
    (checkout / "setup/requirements-build.txt").write_text("pip==0.0.0 --hash=sha256:0\n")
    done = subprocess.run([checkout / "setup/setup.sh"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "make .venv" in done.stdout
    assert "the end of" in done.stderr
    assert "then run it again" in done.stderr
    assert not (checkout / ".venv/.setup/all").exists()


def test_what_only_clusters_need_is_asked_for(checkout: Path) -> None:
    """A checkout that is set up is so without the packages of clusters, and not with them."""
    setup = checkout / "setup"
    (setup / "debian-packages-cluster.txt").write_text("anynode-no-such-package\n")
    for name in ("bin", ".setup"):
        (checkout / ".venv" / name).mkdir(parents=True)
    (checkout / ".venv/bin/python").symlink_to("/usr/bin/python3")
    made_from = [setup / "setup.sh", *sorted(setup.glob("*.txt"))]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in made_from)).hexdigest()
    (checkout / ".venv/.setup/all").write_text(f"{digest}\n")
    for options, status in ((["--check"], 0), (["--check", "--cluster"], 1)):
        done = subprocess.run(
            [setup / "setup.sh", *options], capture_output=True, env={**os.environ, "LC_ALL": "C"}
        )
        assert (done.returncode, done.stdout, done.stderr) == (status, b"", b""), options


def test_an_unknown_option_is_refused(checkout: Path) -> None:
    done = subprocess.run([checkout / "setup/setup.sh", "--chek"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "setup: there is no option --chek\n")


@pytest.mark.node
def test_settings_of_the_network_reach_root() -> None:
    # Not in tmp_path, which only its owner may enter.
    folder = Path("/var/tmp") / f"anynode-sudo-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        shutil.copy(SETUP / "as-root", folder / "as-root")
        (folder / "sudo").write_text('#!/bin/sh\necho "$@"\n')
        for name in ("as-root", "sudo"):
            (folder / name).chmod(0o755)
        done = subprocess.run(
            ["/usr/bin/setpriv", "--reuid", "65534", "--clear-groups", folder / "as-root", "id"],
            env={"PATH": f"{folder}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        shutil.rmtree(folder)
    option, *rest = done.stdout.split()
    assert {"https_proxy", "HTTPS_PROXY", "PIP_INDEX_URL"} <= set(
        option.removeprefix("--preserve-env=").split(",")
    )
    assert rest == ["--", "id"]


@pytest.mark.node
def test_without_root_and_sudo_one_sentence_says_so() -> None:
    # Not in tmp_path, which only its owner may enter.
    script = Path("/var/tmp") / f"anynode-as-root-{os.getpid()}"
    shutil.copy(SETUP / "as-root", script)
    try:
        done = subprocess.run(
            ["/usr/bin/setpriv", "--reuid", "65534", "--clear-groups", "/bin/bash", script, "true"],
            env={"PATH": "/nowhere"},
            capture_output=True,
            text=True,
        )
    finally:
        script.unlink()
    assert done.returncode == 1
    assert "This needs root, and there is no sudo" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
