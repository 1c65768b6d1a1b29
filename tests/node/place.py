"""A node in a rig: its settings, its process, its command line, and what there is around it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from appliance import node_process
from tests.node.inside import Inside
from tests.rig import Rig, wait_for

GATEWAY = "10.64.0.1"
NODE_OUTSIDE, WORLD = "10.99.0.1", "10.99.0.2"
PORT_OUTSIDE = 7000
OFFERED_MIB = 6144
API_PORT = 8773
UP_S = 90
_NODE_NAME = "node1"


class Place:
    """One node, from an empty rig on.

    The rig is the machine: what is ended, killed or removed in it is so for the node alone.
    """

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.inside = Inside(rig.pid)
        self.state_dir = rig.directory / "state"
        self.run_dir = rig.directory / "run"
        self.log_path = rig.directory / "node.log"
        self.config_path = rig.directory / "anynode.toml"
        self.config_path.write_text(
            f"""
[node]
name = "{_NODE_NAME}"
state_dir = "{self.state_dir}"
run_dir = "{self.run_dir}"

[compute]
memory_ratio = {_ratio():.6f}
"""
        )
        self._node: subprocess.Popen[bytes] | None = None

    def cli(self, *words: str | Path, deadline_s: float = 60) -> str:
        """Run ``anynode`` and return what it printed.

        :raises AssertionError: it ended with another status than 0.
        """
        return self.rig.python(
            "-m", "appliance.cli", "--config", self.config_path, *words, deadline_s=deadline_s
        )

    def cli_json(self, *words: str | Path) -> Any:
        """Run ``anynode … --json`` and return what it said."""
        return json.loads(self.cli(*words, "--json"))

    def verify(self, wait_s: float = 30) -> None:
        """Let the node check all its invariants; :raises AssertionError: it found something."""
        self.cli("verify", "--wait", str(wait_s), deadline_s=wait_s + 60)

    def begin(self, *, environment: Mapping[str, str] | None = None) -> None:
        """Start the node's process, and do not wait for it."""
        words: list[str | Path] = [
            *(sys.executable, "-m", "appliance.cli", "--config", self.config_path),
            *("run", "--log-file", self.log_path),
        ]
        with (self.rig.directory / "node.out").open("ab") as said:
            self._node = self.rig.popen(
                words, environment=environment, stdout=said, stderr=subprocess.STDOUT
            )

    def start(self) -> None:
        """Start the node's process and wait until it is up.

        :raises AssertionError: it ended.
        """
        self.begin()
        self.wait_up()

    def wait_up(self) -> None:
        """Wait until the process that was begun is up.

        :raises AssertionError: it ended.
        """
        wait_for(self._is_up, UP_S, "the node to be up")

    def _is_up(self) -> bool:
        assert self.is_running, f"The node ended:\n{self.last_words()}"
        try:
            record = json.loads(node_process.record_path(self.run_dir).read_bytes())
        except FileNotFoundError:
            return False
        # A killed node leaves its record: that it is up is said by a living process.
        return bool(record["is_up"]) and self.inside.connects("127.0.0.1", API_PORT)

    @property
    def pid(self) -> int:
        """The node's process, by its id outside of the rig."""
        assert self._node is not None
        return self.rig.pid_of(self._node)

    @property
    def is_running(self) -> bool:
        """Whether the node's process runs."""
        return self._node is not None and self._node.poll() is None

    def last_words(self) -> str:
        """Return the end of what the node's process printed and logged."""
        paths = (self.rig.directory / "node.out", self.log_path)
        return "\n".join(path.read_text()[-3000:] for path in paths if path.exists())

    def wait_for_end(self, deadline_s: float = 60) -> int:
        """Wait until the node's process has ended and return its status."""
        assert self._node is not None
        return self._node.wait(deadline_s)

    def kill(self) -> None:
        """Kill the node's process, if it runs."""
        if self._node is not None and self.is_running:
            self.rig.signal(self._node, signal.SIGKILL)
            self._node.wait(30)

    def stop(self) -> int:
        """End the node's process as its owner would, and return its status."""
        assert self._node is not None
        self.rig.signal(self._node, signal.SIGTERM)
        return self.wait_for_end()

    def close(self) -> None:
        """End the node's process; the rig ends the rest."""
        if self.is_running:
            self.stop()
        self.inside.close()

    def processes(self) -> dict[int, str]:
        """Return the command line of each process in the rig, by its id there."""
        lines = self.rig.run(["ps", "-e", "-o", "pid=,args=", "-ww"]).splitlines()
        pairs = [line.split(maxsplit=1) for line in lines]
        return {int(pair[0]): pair[1] for pair in pairs if len(pair) == 2}

    def find_processes(self, program: str) -> list[int]:
        """Return the ids of the processes of a program."""
        own = re.compile(rf"(\S*/)?{program}(\s|$)")
        return [pid for pid, line in self.processes().items() if own.match(line)]

    def end_processes(self, *programs: str) -> None:
        """Kill all processes of these programs in the rig."""
        for program in programs:
            for pid in self.find_processes(program):
                self.rig.run(["kill", "-9", str(pid)], is_checked=False)
            wait_for(partial(self._have_ended, program), 30, f"{program} to end")

    def _have_ended(self, program: str) -> bool:
        return not self.find_processes(program)

    def qemu_pid(self, instance_id: str) -> int | None:
        """Return the process of an instance; ``None`` when there is none."""
        wanted = f"guest=anynode-{instance_id}"
        for pid, line in self.processes().items():
            if wanted in line and "qemu-system" in line.split()[0]:
                return pid
        return None

    def taps(self) -> list[str]:
        """Return the names of all taps that a node makes."""
        names = self.rig.run(["ls", "/sys/class/net"]).split()
        return [name for name in names if re.fullmatch(r"an[0-9a-f]{12}", name)]

    def domains(self) -> list[str]:
        """Return the names of the domains that libvirt knows, on or off."""
        return self.rig.run(["virsh", "-q", "list", "--all", "--name"]).split()

    def rules(self) -> str:
        """Return the kernel's rules, without the counters and timers that change by themselves."""
        return self.rig.run(["nft", "--stateless", "list", "ruleset"])

    def pings(self, address: str, wait_s: int = 1) -> bool:
        """Say whether an address answers the node."""
        words = ["ping", "-n", "-q", "-c", "1", "-W", str(wait_s), address]
        return " 1 received" in self.rig.run(words, is_checked=False)


def _ratio() -> float:
    """Return the ratio at which the machine offers the memory that the tests count on."""
    found = re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found is not None
    reserved_mib = 512
    return OFFERED_MIB / (int(found[1]) / 1024 - reserved_mib)
