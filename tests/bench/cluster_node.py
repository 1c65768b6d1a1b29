"""A real node of a cluster with all roles: what its process holds, and what idleness costs it."""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path

from tests.bench.figure import Figure, Figures, cpu_of
from tests.bench.real_node import resident_mb
from tests.cluster.cluster import Cluster
from tests.cluster.machine import Machine
from tests.cluster.region import Region
from tests.rig import wait_for

_MOST_MB = 180.0
_IDLE_S = 60.0
_SETTLE_S = 10.0
_ROUNDS, _AT_ONCE = 5, 4


def measure(is_quick: bool) -> Figures:
    """Measure the first node of two, which has PostgreSQL and RabbitMQ beside it, after launches.

    The process counts that runs the roles; the services are processes of their own.
    """
    with Cluster(("n1", "n2")) as cluster, tempfile.TemporaryDirectory() as folder:
        cluster.form()
        region = Region(cluster, Path(folder))
        pid = outer_pid(cluster.first)
        before = resident_mb(pid)
        share = _idle(pid, 1.0 if is_quick else _IDLE_S)
        for _ in range(1 if is_quick else _ROUNDS):
            _launch_and_terminate(region, 1 if is_quick else _AT_ONCE)
        after = resident_mb(pid)
    return {
        "full node in a cluster: resident memory": Figure(before, "MB", _MOST_MB),
        "full node in a cluster, after launches: resident memory": Figure(after, "MB", _MOST_MB),
        "full node in a cluster, idle: CPU of one core": Figure(round(share * 100, 3), "%"),
    }


def _launch_and_terminate(region: Region, count: int) -> None:
    ids = [one["InstanceId"] for one in region.launch(count)]
    region.call("TerminateInstances", InstanceIds=ids)
    wait_for(lambda: {*map(region.state, ids)} == {"terminated"}, 120, f"{ids} to be gone")


def outer_pid(machine: Machine) -> int:
    """Return the number outside of its namespace of a machine's node process."""
    inner = str(machine.pid)
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
            is_here = (status.parent / "ns/pid").stat().st_ino == _namespace_of(machine)
        except OSError:
            continue
        found = re.search(r"^NSpid:\s+(.*)$", text, re.MULTILINE)
        if is_here and found and found[1].split()[-1] == inner:
            return int(status.parent.name)
    raise AssertionError(f"no process {inner} in {machine.name}")


def _namespace_of(machine: Machine) -> int:
    return Path(f"/proc/{machine.rig.pid}/ns/pid").stat().st_ino


def _idle(pid: int, seconds: float) -> float:
    """Return the share of a core that a process uses when nothing happens."""
    time.sleep(min(seconds, _SETTLE_S))
    before, began = cpu_of(pid), time.monotonic()
    time.sleep(seconds)
    return (cpu_of(pid) - before) / (time.monotonic() - began)
