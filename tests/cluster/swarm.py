"""Simulated compute nodes, many in one process: real roles on fakes, for scale.

Each is a hypervisor like any other: its own certificate, login and connection to the broker, its
own record. What it lacks are the roles that only look after a node itself: it moves no roles,
gives nobody images, and answers no EC2.

``python -m tests.cluster.swarm FOLDER…`` runs the nodes whose settings are in these folders, until
its input ends. It says how many run. With ``--join`` they join a cluster before: a line of input
for each has its token, and a line is printed for each that has joined.
"""

from __future__ import annotations

import argparse
import logging
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from appliance.api.tls import TlsServer
from appliance.cluster import doors, peer_service, settings, tokens
from appliance.cluster.join import Joining, Offer, Wishes
from appliance.cluster.member import ASK_EVERY_S
from appliance.cluster.peer_messages import FACTS
from appliance.compute.offer import offered
from appliance.config import CONFIG_NAME, Config, load_config
from appliance.errors import AnynodeError, Denied
from appliance.hooks import Compute, Network
from appliance.messages import GetMembers, Members
from appliance.node import Node
from appliance.plugin_loader import PluginLoader, loader_of
from appliance.verify import door
from appliance.verify.node_facts import NodeFacts
from tests.bench.figure import cpu_of
from tests.cluster.fakes import HYPERVISOR_ROLES, FakeCluster

log = logging.getLogger(__name__)

AT_ONCE = 50
"""Nodes of one process."""

_STOP_S = 60.0
_JOIN_AT_ONCE = 4
_PEER_THREADS = 1
_ASK_S = 5.0
_JOINED = "joined "


class FakeNetworks(PluginLoader):
    """Makes the fake whatever type a network has: the cluster decides that for its real nodes."""

    def create(self, group: str, name: str) -> object:
        return super().create(group, "fake" if group == Network.group else name)


class SimulatedNode(Node):
    """A node that only holds instances, on fakes whatever the cluster has decided of networks."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        network = msgspec.structs.replace(self.config.network, metadata=False)
        self.config = msgspec.structs.replace(self.config, network=network)

    def role_names(self) -> tuple[str, ...]:
        return HYPERVISOR_ROLES

    def _make_loader(self) -> PluginLoader:
        made = super()._make_loader()
        return FakeNetworks(**{one.name: getattr(made, one.name) for one in fields(made)})


class OpenNode(SimulatedNode):
    """One that control nodes may look into, as ``anynode verify --cluster`` does."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        assert self.cluster is not None
        address, port = self.config.cluster.address, self.config.cluster.port
        self._peers = TlsServer(
            address,
            port,
            peer_service.peer_app(self.cluster),
            _PEER_THREADS,
            name="peer",
            context=self.cluster.server_context,
        )
        self.cluster.doors[FACTS] = doors.door("GET", self._facts)

    def _facts(self, environ: dict[str, Any]) -> NodeFacts:
        """Return what is here; what the fake holds of a network is told as that network's type."""
        if not doors.caller(environ).is_control:
            raise Denied("Only control nodes are told what is on a node.")
        found = door.told(self.config)
        types = {one.network.type for one in found.networks.values()}
        states = {one: state for one in types for state in found.network_states.values()}
        return msgspec.structs.replace(found, network_states=states)

    def learn_members(self) -> None:
        """Ask who is in the cluster.

        :raises AnynodeError: nobody answers.
        """
        assert self.cluster is not None
        known = self.cluster.members
        question = GetMembers(node_id=self.node_id, known_revision=known.current.revision)
        known.take(self.bus.call("controller", question, Members, _ASK_S))

    def start(self) -> None:
        super().start()
        self._peers.open()

    def stop(self, deadline_s: float = _STOP_S) -> None:
        self._peers.close()
        super().stop(deadline_s)


def ignore(node_name: str) -> None:
    """Tell nobody."""


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
        for folders in self._by_process():
            self._spawn(folders)
        for process in self._processes:
            self._wait_up(process, ignore)

    def join(self, given: Sequence[str], say: Callable[[str], None]) -> None:
        """Let all join a cluster, and start them; no more than one process does so at a time.

        :param given: a token for each.
        :param say: told the name of each that has joined.
        """
        left = list(given)
        for folders in self._by_process():
            process = self._spawn(folders, "--join")
            assert process.stdin is not None
            process.stdin.write("".join(f"{left.pop(0)}\n" for _ in folders).encode())
            process.stdin.flush()
            self._wait_up(process, say)

    def _by_process(self) -> list[list[Path]]:
        starts = range(0, len(self._folders), AT_ONCE)
        return [self._folders[first : first + AT_ONCE] for first in starts]

    def _spawn(self, folders: Sequence[Path], *options: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [
                    *("/usr/bin/setpriv", "--pdeathsig", "KILL", "--", *self._prefix),
                    *(sys.executable, "-m", "tests.cluster.swarm", *options, *map(str, folders)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._processes.append(process)
        return process

    def _wait_up(self, process: subprocess.Popen[bytes], say: Callable[[str], None]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            text = line.decode().strip()
            if not text.startswith(_JOINED):
                return
            say(text.removeprefix(_JOINED))
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


def main() -> None:
    """Run nodes until the input ends."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.swarm", description=__doc__)
    parser.add_argument("--join", action="store_true", help="let them join a cluster before")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", type=Path)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(threadName)s %(message)s")
    paths = [folder / CONFIG_NAME for folder in options.folders]
    with ThreadPoolExecutor(8) as pool:
        if options.join:
            given = [sys.stdin.buffer.readline().decode() for _ in paths]
            _join_all(paths, given)
        kind = OpenNode if options.join else SimulatedNode
        nodes = [kind(settings.overlay(load_config(path))) for path in paths]
        list(pool.map(lambda node: node.start(), nodes))
        print(f"{len(nodes)} nodes run", flush=True)
        _wait_for_end([node for node in nodes if isinstance(node, OpenNode)])
        until = time.monotonic() + _STOP_S / 2
        list(pool.map(lambda node: node.stop(max(until - time.monotonic(), 1.0)), nodes))


def _wait_for_end(nodes: Sequence[OpenNode]) -> None:
    """Wait until the input ends; meanwhile nodes learn who else there is."""
    while not select.select([sys.stdin], [], [], ASK_EVERY_S)[0]:
        for node in nodes:
            try:
                node.learn_members()
            except AnynodeError as error:
                log.warning("%s learnt no members: %s", node.config.node_name, error.message)


def _join_all(paths: Sequence[Path], given: Sequence[str]) -> None:
    def join(path: Path, token: str) -> str:
        one = Joining(
            config=load_config(path),
            config_path=path,
            token=tokens.parse(token),
            wishes=Wishes(),
            offer=_offer,
        )
        return one.run().node_name

    with ThreadPoolExecutor(_JOIN_AT_ONCE) as pool:
        for name in pool.map(join, paths, given):
            print(f"{_JOINED}{name}", flush=True)


def _offer(config: Config) -> Offer:
    """Return what a node pretends to offer."""
    name = config.compute.driver
    driver = Compute(name, loader_of(config).create(Compute.group, name))
    vcpus, memory_mib, disk_gib = offered(driver.capacity(), config.compute)
    return Offer(vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib)


if __name__ == "__main__":
    main()
