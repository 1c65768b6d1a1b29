"""One machine of a cluster: a rig with its settings, its node and its command line."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.node.inside import Inside
from tests.rig import Rig, wait_for

API_PORT = 8773
UP_S = 90


class Machine:
    """A rig as a machine that nobody has set up yet.

    Its node is started as its owner would: by ``anynode``, in the background.
    """

    def __init__(self, rig: Rig, address: str, *, settings: str = "") -> None:
        self.rig = rig
        self.name = rig.name
        self.address = address
        self.inside = Inside(rig.pid)
        self.state_dir = rig.directory / "state"
        self.run_dir = rig.directory / "run"
        self.log_path = rig.directory / "node.log"
        self.config_path = rig.directory / "anynode.toml"
        self.config_path.write_text(
            f"""
[node]
name = "{self.name}"
state_dir = "{self.state_dir}"
run_dir = "{self.run_dir}"
log_file = "{self.log_path}"

[cluster]
address = "{address}"

[api]
address = "{address}"
{settings}
"""
        )

    @property
    def endpoint(self) -> str:
        """The URL of the EC2 API here."""
        return f"http://{self.address}:{API_PORT}"

    def cli(
        self,
        *words: str | Path,
        deadline_s: float = 60,
        environment: Mapping[str, str] | None = None,
        is_checked: bool = True,
        given: str = "",
    ) -> str:
        """Run ``anynode`` and return what it printed.

        :raises AssertionError: it ended with another status than 0, and ``is_checked``.
        """
        prefix = [f"{name}={value}" for name, value in (environment or {}).items()]
        command = [
            *(["env", *prefix] if prefix else []),
            *(sys.executable, "-m", "appliance.cli", "--config", self.config_path),
            *words,
        ]
        return self.rig.run(command, deadline_s=deadline_s, is_checked=is_checked, given=given)

    def cli_json(self, *words: str | Path, deadline_s: float = 60) -> Any:
        """Run ``anynode … --json`` and return what it said."""
        return json.loads(self.cli(*words, "--json", deadline_s=deadline_s))

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Start the node in the background; it is up when this returns."""
        self.cli("run", "--detach", deadline_s=UP_S + 30, environment=environment)

    @property
    def pid(self) -> int:
        """The node's process by its id in the rig; 0 when none was started."""
        try:
            record = json.loads((self.run_dir / "node.json").read_bytes())
        except FileNotFoundError:
            return 0
        return int(record["pid"])

    @property
    def is_running(self) -> bool:
        """Whether the node's process runs."""
        pid = self.pid
        stat = self.rig.run(["cat", f"/proc/{pid}/stat"], is_checked=False) if pid else ""
        return bool(stat) and stat.rpartition(")")[2].split()[0] not in "ZX"

    def signal(self, number: int, pid: int | None = None) -> None:
        """Send a signal to the node's process, or to another process of the rig."""
        target = self.pid if pid is None else pid
        self.rig.run(["kill", f"-{number}", str(target)], is_checked=False)

    def kill(self) -> None:
        """Kill the node's process and wait until it has ended."""
        self.signal(signal.SIGKILL)
        wait_for(lambda: not self.is_running, 30, f"the node of {self.name} to end")

    def stop(self) -> None:
        """End the node's process as its owner would."""
        self.signal(signal.SIGTERM)
        wait_for(lambda: not self.is_running, 60, f"the node of {self.name} to end")

    def cut(self) -> None:
        """Take the machine off the network."""
        self.rig.run(["ip", "link", "set", "up0", "down"])

    def heal(self) -> None:
        """Put the machine back on the network."""
        self.rig.run(["ip", "link", "set", "up0", "up"])

    def processes(self) -> dict[int, str]:
        """Return the command line of each process in the rig, by its id there."""
        lines = self.rig.run(["ps", "-e", "-o", "pid=,args=", "-ww"]).splitlines()
        pairs = [line.split(maxsplit=1) for line in lines]
        return {int(pair[0]): pair[1] for pair in pairs if len(pair) == 2}

    def qemu_pid(self, instance_id: str) -> int | None:
        """Return the process of an instance; ``None`` when there is none."""
        wanted = f"guest=anynode-{instance_id}"
        for pid, line in self.processes().items():
            if wanted in line and "qemu-system" in line.split()[0]:
                return pid
        return None

    def last_words(self, length: int = 4000) -> str:
        """Return the end of what the node logged."""
        return self.log_path.read_text()[-length:] if self.log_path.exists() else ""

    def verify(self, wait_s: float = 60) -> None:
        """Check all invariants of the cluster; :raises AssertionError: something is wrong."""
        self.cli("verify", "--cluster", "--wait", str(wait_s), deadline_s=wait_s + 120)

    def close(self) -> None:
        """End our threads in the rig; the rig ends the rest."""
        self.inside.close()
