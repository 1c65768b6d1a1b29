"""Simulated compute nodes that join a cluster of machines: ``make cluster ARGS="--fake N"``.

They are in one namespace that reaches the others over the switch. Each joins by a token, as a
machine would, and has its own certificate, login and connection. An instance on one of them is a
line in its memory: it is launched, listed and terminated, and boots nothing. They are in a zone of
their own, so that who launches chooses by the availability zone what it shall be.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from appliance.config import CONFIG_NAME
from appliance.sandbox import toml_of
from tests.cluster.cluster import Cluster
from tests.cluster.swarm import Swarm
from tests.rig import Rig, wait_for

ZONE = "local-1b"
MOST = 250
"""Simulated nodes that a machine bears beside the real ones."""

PLENTY = """
[quota]
instances = 100000
vcpus = 1000000
memory_mib = 1000000000
"""
"""What a project may use where there is room for it."""

_AT_ONCE = 20
"""Nodes that share a process and an address: as many may join from one at once."""

_FIRST_HOST = 100
_FIRST_PORT = 20_000
_UP_S = 120.0
_TELL_EVERY_S = 5.0


class Simulated:
    """Simulated nodes beside the machines of a cluster; none of them is left afterwards."""

    def __init__(self, cluster: Cluster, count: int, say: Callable[..., None]) -> None:
        self.names = [f"s{number}" for number in range(1, count + 1)]
        self._cluster = cluster
        self._say = say
        self._stack = ExitStack()
        self._rig: Rig

    def __enter__(self) -> Simulated:
        if self.names:
            self._rig = self._stack.enter_context(Rig("simulated"))
            whole = self._cluster.range
            self._rig.join(self._cluster.switch, f"{whole[_FIRST_HOST - 1]}/{whole.prefixlen}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def join(self) -> None:
        """Let all join the cluster; return when each is up."""
        count, given = len(self.names), self._tokens()
        self._say(f"let {count} simulated nodes join, zone {ZONE}")
        joined = _Count("have joined", count, self._say)
        for number, first in enumerate(range(0, count, _AT_ONCE)):
            address = self._take_address(str(self._cluster.range[_FIRST_HOST + number]))
            folders = [
                self._make_folder(name, address, _FIRST_PORT + port)
                for port, name in enumerate(self.names[first : first + _AT_ONCE])
            ]
            log = self._rig.directory / "swarm.log"
            swarm = Swarm(folders, log, self._rig.command([]))
            self._stack.callback(swarm.kill)
            swarm.join(
                given[first : first + _AT_ONCE], lambda name: joined.say_at(joined.so_far + 1)
            )
        self._wait_up()

    def _take_address(self, address: str) -> str:
        """Give the namespace one more address, from which it reaches the others from now on."""
        whole = self._cluster.range
        self._rig.run(["ip", "address", "add", f"{address}/32", "dev", "up0"])
        self._rig.run(["ip", "route", "replace", str(whole), "dev", "up0", "src", address])
        return address

    def _make_folder(self, name: str, address: str, port: int) -> Path:
        folder = self._rig.directory / name
        folder.mkdir()
        settings = {
            "node": {
                "name": name,
                "zone": ZONE,
                "state_dir": str(folder / "state"),
                "run_dir": str(folder / "run"),
            },
            "cluster": {"address": address, "port": port},
            "firewall": {"driver": "fake"},
            "compute": {"driver": "fake", "injection": ["none"]},
            "images": {"group": "", "folder": str(self._rig.directory / "images")},
            # What is in a file can be looked into by others than the one who wrote it.
            "plugins": {
                group: {"fake": {"survives": True}} for group in ("compute", "network", "firewall")
            },
        }
        (folder / CONFIG_NAME).write_text(toml_of(settings), encoding="utf-8")
        return folder

    def _tokens(self) -> list[str]:
        """Return a token for each node, made by the first machine's command line."""
        machine = self._cluster.first
        said = machine.rig.python(
            *("-m", "tests.cluster.invite", str(machine.config_path), *self.names),
            deadline_s=60 + len(self.names),
        )
        found: list[str] = json.loads(said)
        return found

    def _wait_up(self) -> None:
        up, wanted = _Count("are up", len(self.names), self._say), {*self.names}

        def are_up() -> bool:
            rows = self._cluster.first.cli_json("node", "list")
            up.say_at(sum(1 for one in rows if one["name"] in wanted and one["is_up"]))
            return up.so_far == len(wanted)

        wait_for(are_up, _UP_S, f"{len(wanted)} simulated nodes to be up")


class _Count:
    """Says how far a number has come: every few seconds, and at its end."""

    def __init__(self, what: str, count: int, say: Callable[..., None]) -> None:
        self.so_far = 0
        self._what, self._count, self._say = what, count, say
        self._said_at = time.monotonic()

    def say_at(self, number: int) -> None:
        """Note the number that is reached."""
        is_last = number == self._count and number != self.so_far
        self.so_far = number
        if is_last or time.monotonic() - self._said_at >= _TELL_EVERY_S:
            self._said_at = time.monotonic()
            self._say(f"{number} of {self._count} simulated nodes {self._what}")
