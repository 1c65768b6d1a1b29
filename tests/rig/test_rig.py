"""A rig keeps to itself, and nothing of it is left."""

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.rig import ROOT, Rig, wait_for
from tests.rig.fixtures import require

pytestmark = pytest.mark.node

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
HOLD = """
import os, sys
from tests.rig import Rig
with Rig("held") as rig:
    rig.popen(["sleep", "600"])
    print(rig.pid, rig.directory, flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.fixture(autouse=True)
def needs() -> None:
    require("unshare", "nsenter", "ip")


def mark(process: int) -> str:
    """Return what tells a process apart from a later one with the same id."""
    try:
        return Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def test_places_and_interfaces_are_its_own() -> None:
    hostname = os.uname().nodename
    # Not a fixed name: what lies in the machine's own /run says nothing about this rig.
    file = f"/run/rig-test-{uuid.uuid4().hex}"
    with Rig("own") as rig:
        rig.run(["ip", "link", "add", "rigtest0", "type", "bridge"])
        rig.run(["touch", file])
        assert "rigtest0" in rig.run(["ls", "/sys/class/net"])
        assert rig.outside(file).exists()
        assert rig.outside("/etc/hostname") == Path("/etc/hostname")
        assert rig.run(["ls", "-A", "/etc/libvirt/qemu"], is_checked=False) == ""
        assert rig.run(["hostname"]).strip() == "own"
        assert rig.python("-c", "import appliance; print(appliance.__name__)") == "appliance\n"
        with pytest.raises(AssertionError, match="ended with 3"):
            rig.run(["sh", "-c", "exit 3"])
    assert not Path("/sys/class/net/rigtest0").exists()
    assert not Path(file).exists()
    assert os.uname().nodename == hostname


def test_everything_in_it_ends_with_it() -> None:
    with Rig("end") as rig:
        directory, first = rig.directory, rig.pid
        before = mark(first)
        process = rig.popen(SLEEP, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        rig.run(["sh", "-c", "setsid sleep 600 >/dev/null 2>&1 &"])
        assert "sleep" in rig.run(["ps", "-e", "-o", "comm="])
    process.stdout.close()
    assert process.wait(10) != 0
    assert before
    assert mark(first) != before
    assert not directory.exists()
    rig.close()


def test_it_ends_when_the_test_dies() -> None:
    died = subprocess.run(
        [sys.executable, "-c", HOLD], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    pid, directory = died.stdout.split()
    root = Path("/proc", pid, "root", directory[1:])
    wait_for(lambda: not root.exists(), 10, "the rig of a killed test to end")
    # Its directory is all that a killed test cannot remove.
    subprocess.run(["rm", "-rf", "--one-file-system", directory], check=True)


def test_a_signal_reaches_the_program() -> None:
    with Rig("signal") as rig:
        process = rig.popen(SLEEP, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        rig.signal(process, signal.SIGTERM)
        assert process.wait(10) in (-signal.SIGTERM, 128 + signal.SIGTERM)
        process.stdout.close()


def test_rigs_are_joined_by_a_switch() -> None:
    with Rig("switch") as switch, Rig("a") as a, Rig("b") as b:
        a.join(switch, "10.99.0.1/24")
        b.join(switch, "10.99.0.2/24")
        server = b.popen(
            [sys.executable, "-m", "http.server", "--bind", "10.99.0.2", "8080"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        fetch = "import urllib.request as u; print(u.urlopen('http://10.99.0.2:8080').status)"
        wait_for(
            lambda: a.run([sys.executable, "-c", fetch], is_checked=False) == "200\n",
            30,
            "a web page from the other rig",
        )
    server.wait(10)
