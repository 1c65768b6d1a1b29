"""A libvirtd that hangs with many calls under way: they end, and the program does not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.rig import Rig
from tests.rig.fixtures import require

pytestmark = [pytest.mark.node, pytest.mark.faults("services: libvirtd", quick=True)]

# In a process of its own: with two calls on one connection libvirt's client ends it.
PROGRAM = """
import sys, threading, time
from anynode_compute_libvirt import connection
connection._KEEPALIVE_S, connection._KEEPALIVE_COUNT = 1, 1
calls = connection.Connection(
    "qemu:///system", on_open=lambda live: None, on_event=lambda *event: None
)
calls.call("ask", lambda live: live.getInfo(), deadline_s=20)
print("up", flush=True)
sys.stdin.readline()
failed = []
def ask():
    try:
        calls.call("ask", lambda live: live.getInfo(), deadline_s=4)
    except connection.Unavailable as error:
        failed.append(str(error))
threads = [threading.Thread(target=ask) for _ in range(6)]
for thread in threads:
    thread.start()
    time.sleep(0.2)
for thread in threads:
    thread.join()
print(len(failed), flush=True)
sys.stdin.readline()
calls.call("ask", lambda live: live.getInfo(), deadline_s=20)
print("well", flush=True)
"""


def test_calls_under_way_end_with_their_deadline_and_later_ones_are_answered() -> None:
    require("libvirtd", "virtlogd", "unshare", "nsenter")
    with Rig("hang") as rig:
        rig.start_libvirt()
        libvirtd = (rig.directory / "daemons" / "libvirtd.pid").read_text().strip()
        program = subprocess.Popen(
            rig.command([sys.executable, "-c", PROGRAM]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert program.stdin is not None
        assert program.stdout is not None
        try:
            assert program.stdout.readline() == b"up\n"
            rig.run(["kill", "-STOP", libvirtd])
            program.stdin.write(b"\n")
            program.stdin.flush()
            assert program.stdout.readline() == b"6\n"
            rig.run(["kill", "-CONT", libvirtd])
            said, _ = program.communicate(b"\n", timeout=60)
            assert (said, program.returncode) == (b"well\n", 0)
        finally:
            program.kill()
            program.wait(10)
