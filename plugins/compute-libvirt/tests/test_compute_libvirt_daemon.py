"""Starting and ending libvirt's daemons: what is ours, and nothing else."""

import grp
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from anynode_compute_libvirt import daemon
from anynode_compute_libvirt.daemon import ensure_daemons, open_kvm, stop_daemons

from appliance.errors import ConfigError
from tests.rig import Rig
from tests.rig.fixtures import require

ENSURE = """
import pathlib, sys
from anynode_compute_libvirt import daemon
from anynode_compute_libvirt.daemon import ensure_daemons, open_kvm, stop_daemons
run_dir = pathlib.Path(sys.argv[1])
print(*{"ensure": ensure_daemons, "stop": stop_daemons}[sys.argv[2]](run_dir))
"""

CREATE = """
import pathlib, sys
from appliance.hooks import Compute
from appliance.hookspecs import PluginContext
from appliance.plugins import create
directory = pathlib.Path(sys.argv[1])
context = PluginContext(node_name="n", state_dir=directory, run_dir=directory, plugins=None)
compute = Compute("libvirt", create("appliance.compute", "libvirt", {}, context))
print(compute.capacity().hypervisor, compute.list())
"""


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Return a process that a wrong program might end."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.node
def test_daemons_are_started_once_and_ended_by_id() -> None:
    require("unshare", "nsenter", "libvirtd", "virtlogd", "qemu-system-x86_64")
    with Rig("daemon") as rig:
        run_dir = rig.directory / "run"
        run_dir.mkdir()

        def call(verb: str) -> list[str]:
            return rig.python("-c", ENSURE, run_dir, verb).split()

        def running() -> set[str]:
            return set(rig.run(["ps", "-e", "-o", "comm="]).split())

        started = call("ensure")
        assert len(started) == 2
        assert call("ensure") == []
        assert {"libvirtd", "virtlogd"} <= running()
        rig.run(["virsh", "list"])
        rig.run(["kill", "-9", started[1]])
        assert len(call("ensure")) == 1
        assert len(call("stop")) == 2
        assert not {"libvirtd", "virtlogd"} & running()
        assert list(run_dir.iterdir()) == []
        assert call("stop") == []


@pytest.mark.node
def test_a_fresh_machine_needs_nothing_but_the_plugin() -> None:
    require("unshare", "nsenter", "libvirtd", "virtlogd", "qemu-system-x86_64")
    with Rig("fresh") as rig:
        run_dir = rig.directory / "run"
        run_dir.mkdir()
        assert re.fullmatch(r"QEMU \d+\.\d+ \(\)\n", rig.python("-c", CREATE, run_dir))


def test_a_namesake_is_not_ended(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    (tmp_path / "daemons.json").write_text(json.dumps({"libvirtd": [sleeper.pid, 1]}))
    assert stop_daemons(tmp_path) == ()
    assert sleeper.poll() is None


def test_virtlogd_stays_while_an_instance_runs(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "QEMU_RUN_DIR", tmp_path)
    stat = Path("/proc", str(sleeper.pid), "stat").read_text()
    started_at = int(stat.rpartition(")")[2].split()[19])
    (tmp_path / "daemons.json").write_text(json.dumps({"virtlogd": [sleeper.pid, started_at]}))
    instance = tmp_path / "anynode-i-1.pid"
    instance.write_text(f"{os.getpid()}\n")
    assert stop_daemons(tmp_path) == ()
    assert sleeper.poll() is None
    instance.write_text("4194304999")
    assert stop_daemons(tmp_path) == (sleeper.pid,)
    assert sleeper.wait(10) == -signal.SIGTERM


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if Path("/run/systemd/system").is_dir() or os.geteuid() != 0:
        pytest.skip("systemd starts the daemons here, or this is not root")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(daemon, "KVM", tmp_path / "none")
    with pytest.raises(ConfigError, match="apt-get install"):
        ensure_daemons(tmp_path, socket_path=tmp_path / "none")


@pytest.mark.parametrize(("before", "after"), [(0o600, 0o660), (0o660, 0o660), (0o666, 0o666)])
def test_kvm_is_opened_to_its_group_only_where_it_is_closed(
    tmp_path: Path, before: int, after: int
) -> None:
    try:
        group = grp.getgrnam("kvm").gr_gid
    except KeyError:
        pytest.skip("this machine lacks the group kvm")
    if os.geteuid() != 0:
        pytest.skip("needs root")
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(before)
    open_kvm(device)
    assert device.stat().st_mode & 0o777 == after
    assert (device.stat().st_gid == group) is (before != after)
    open_kvm(tmp_path / "none")
