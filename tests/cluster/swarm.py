"""Simulated compute nodes, many in one process: real roles on fakes, for scale.

Each is a hypervisor like any other: its own certificate, login and connection to the broker, its
own record. What it lacks are the roles that only look after a node itself: it moves no roles,
serves no peers, and answers no EC2.

``python -m tests.cluster.swarm FOLDER…`` runs the nodes whose settings are in these folders, until
its input ends. It says how many run.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from appliance.cluster import settings
from appliance.config import CONFIG_NAME, load_config
from appliance.node import Node
from tests.bench.figure import cpu_of
from tests.cluster.fakes import HYPERVISOR_ROLES, FakeCluster

AT_ONCE = 50
"""Nodes of one process."""

_STOP_S = 60.0


class SimulatedNode(Node):
    """A node that only holds instances."""

    def role_names(self) -> tuple[str, ...]:
        return HYPERVISOR_ROLES


class Swarm:
    """Processes that run simulated nodes, from :meth:`start` to :meth:`stop`.

    :param folders: where each node's settings and certificates are.
    :param prefix: the beginning of each process's command: what brings it into a namespace.
    """

    def __init__(self, folders: Sequence[Path], log: Path, prefix: Sequence[str] = ()) -> None:
        self._folders = list(folders)
        self._log = log
        self._prefix = list(prefix)
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start all; those that hear of them are asked when they know them."""
        for first in range(0, len(self._folders), AT_ONCE):
            folders = self._folders[first : first + AT_ONCE]
            with self._log.open("ab") as log:
                self._processes.append(
                    subprocess.Popen(
                        [
                            *("/usr/bin/setpriv", "--pdeathsig", "KILL", "--", *self._prefix),
                            *(sys.executable, "-m", "tests.cluster.swarm", *map(str, folders)),
                        ],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                    )
                )
        for process in self._processes:
            assert process.stdout is not None
            said = process.stdout.readline()
            if not said:
                raise AssertionError(self._log.read_text()[-4000:])

    @property
    def cpu_s(self) -> float:
        """The CPU seconds that all have used."""
        return sum(cpu_of(process.pid) for process in self._processes)

    def kill(self) -> None:
        """Kill all at once, as if their machines had died."""
        for process in self._processes:
            process.kill()
        self._reap()

    def stop(self) -> None:
        """End all in their own time; safe to repeat."""
        for process in self._processes:
            if process.stdin:
                process.stdin.close()
        self._reap()

    def _reap(self) -> None:
        for process in self._processes:
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()


def swarm_of(cluster: FakeCluster, count: int) -> Swarm:
    """Admit simulated nodes to a cluster on fakes; they do not run yet."""
    nodes = [cluster.add(f"s{number}", HYPERVISOR_ROLES) for number in range(1, count + 1)]
    for node in nodes:
        # They are no processes of their own.
        del cluster.nodes[node.name]
    return Swarm([node.folder for node in nodes], cluster.folder / "swarm.log")


def main(folders: Sequence[str]) -> None:
    """Run nodes until the input ends."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(threadName)s %(message)s")
    nodes = [
        SimulatedNode(settings.overlay(load_config(Path(folder) / CONFIG_NAME)))
        for folder in folders
    ]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(SimulatedNode.start, nodes))
        print(f"{len(nodes)} nodes run", flush=True)
        sys.stdin.buffer.read()
        until = time.monotonic() + _STOP_S / 2
        list(pool.map(lambda node: node.stop(max(until - time.monotonic(), 1.0)), nodes))


if __name__ == "__main__":
    main(sys.argv[1:])
