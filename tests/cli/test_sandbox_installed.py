"""``pip install 'anynode[sandbox]'``: what it brings, and that this is all a sandbox needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement

import appliance

ROOT = Path(appliance.__file__).resolve().parent.parent
SITE = Path(sysconfig.get_path("purelib"))
NOBODY = 65534
UP_S = 60.0
CHECK = """
import os, sys
from appliance.testing.sandbox import Sandbox
with Sandbox(zones="a,b") as sandbox:
    ec2 = sandbox.client("ec2")
    [one] = ec2.run_instances(ImageId=sandbox.image_id, MinCount=1, MaxCount=1)["Instances"]
    waiter = ec2.get_waiter("instance_running")
    waiter.wait(InstanceIds=[one["InstanceId"]], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    print(os.getuid(), one["InstanceId"], sys.modules["appliance"].__file__)
"""


def _distributions() -> dict[str, Path]:
    """Return the folders of this repository's distributions by name."""
    folders = (ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml")))
    return {
        tomllib.loads((folder / "pyproject.toml").read_text())["project"]["name"]: folder
        for folder in folders
    }


OWN = _distributions()


def _closure(name: str, extra: str) -> dict[str, Distribution]:
    """Return what an extra pulls in, by name, as far as markers let it on this machine."""
    found: dict[str, Distribution] = {}
    waiting = [(name, frozenset({extra, ""}))]
    walked = set()
    while waiting:
        here = waiting.pop()
        if here in walked:
            continue
        walked.add(here)
        one = distribution(here[0])
        found[here[0].lower()] = one
        for text in _requirements(here[0], one):
            needed = Requirement(text)
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": each}) for each in here[1]):
                waiting.append((needed.name, frozenset({*needed.extras, ""})))
    return found


def _requirements(name: str, found: Distribution) -> list[str]:
    """Return what a distribution requires: ours by its pyproject.toml, which may be newer."""
    if name not in OWN:
        return found.requires or []
    project = tomllib.loads((OWN[name] / "pyproject.toml").read_text())["project"]
    extras = project.get("optional-dependencies", {})
    return [
        *project["dependencies"],
        *(f"{one}; extra == '{extra}'" for extra, names in extras.items() for one in names),
    ]


class TestExtras:
    def test_sandbox_needs_no_hypervisor_and_no_compiler(self) -> None:
        found = _closure("anynode", "sandbox")
        assert "anynode-compute-fake" in found
        assert "botocore" in found
        assert not [name for name in found if "libvirt" in name or "nftables" in name]
        tags = {
            name: next(
                line.removeprefix("Tag: ")
                for line in (one.read_text("WHEEL") or "").splitlines()
                if line.startswith("Tag: ")
            )
            for name, one in found.items()
            if name not in OWN
        }
        # What was built on this machine would be tagged for Linux alone.
        built = [name for name, tag in tags.items() if not tag.endswith("-any")]
        assert [name for name in built if "manylinux" not in tags[name]] == []

    def test_node_has_every_plugin(self) -> None:
        ours = {name for name in _closure("anynode", "node") if name in OWN}
        assert ours == set(OWN)


@pytest.fixture(scope="module")
def installed() -> Iterator[Path]:
    """An environment into which pip has installed the extra from wheels, without a network.

    Of this machine's packages it sees those that the extra needs, so that pip says if one lacks.
    """
    folder = Path(tempfile.mkdtemp(prefix="anynode-installed-"))
    try:
        folder.chmod(0o755)
        needed = _closure("anynode", "sandbox")
        for name in needed:
            if name in OWN:
                builder = WheelBuilder(str(OWN[name]))
                list(builder.build(directory=str(folder / "wheels"), versions=["standard"]))
        venv = folder / "venv"
        call([sys.executable, "-m", "venv", "--without-pip", str(venv)])
        site = next(venv.glob("lib/python3*/site-packages"))
        for entry in {
            file.parts[0]
            for name, one in needed.items()
            if name not in OWN
            for file in one.files or ()
            if file.parts[0] not in ("..", "__pycache__")
        }:
            bring(SITE / entry, site / entry)
        pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin/python")]
        options = ["--no-index", "--find-links", str(folder / "wheels"), "--no-input", "-q"]
        call([*pip, "install", *options, "anynode[sandbox]"])
        yield folder
    finally:
        shutil.rmtree(folder)


def bring(source: Path, target: Path) -> None:
    """Link what everybody may reach, copy what is behind closed folders."""
    is_open = all(parent.stat().st_mode & 0o005 == 0o005 for parent in source.parents)
    if is_open:
        target.symlink_to(source)
    elif source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


def call(command: list[str]) -> str:
    variables = {**os.environ, "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def home(installed: Path) -> Iterator[Path]:
    """A folder that an ordinary user may write."""
    folder = Path(tempfile.mkdtemp(prefix="home-", dir=installed))
    if os.getuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


def as_nobody(*command: str) -> list[str]:
    """Return a command without any right: no root, no capability, no group."""
    if os.getuid() != 0:
        return list(command)
    ids = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    none = ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    return [str(shutil.which("setpriv")), *ids, *none, *command]


class TestInstalled:
    def test_libvirt_is_out_of_reach(self, installed: Path) -> None:
        names = "libvirt", "nftables", "anynode_compute_libvirt", "pytest", "boto3"
        code = f"import importlib.util as u; print([n for n in {names!r} if u.find_spec(n)])"
        assert call([str(installed / "venv/bin/python"), "-P", "-c", code]).strip() == "[]"

    def test_it_runs_without_rights_and_other_programs(self, installed: Path, home: Path) -> None:
        """In a child process, by the class that tests of strangers use."""
        venv = installed / "venv"
        done = subprocess.run(
            as_nobody(str(venv / "bin/python"), "-P", "-c", CHECK),
            cwd=home,
            env={"PATH": str(venv / "bin"), "HOME": str(home), "TMPDIR": str(home)},
            capture_output=True,
            text=True,
            timeout=UP_S * 2,
        )
        assert done.returncode == 0, done.stderr
        uid, instance_id, path = done.stdout.split()
        assert uid == str(NOBODY if os.getuid() == 0 else os.getuid())
        assert instance_id.startswith("i-")
        assert path.startswith(str(venv))
        assert list(home.iterdir()) == []

    def test_the_command_is_there(self, installed: Path, home: Path) -> None:
        program = str(installed / "venv/bin/anynode")
        done = subprocess.run(
            as_nobody(program, "sandbox", "--port", "0", "--zones", "?"),
            cwd=home,
            env={"PATH": str(installed / "venv/bin"), "HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=UP_S,
        )
        assert done.returncode == 1
        assert "no name of an availability zone" in done.stderr
