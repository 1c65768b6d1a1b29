"""A real node process on fakes that outlive it, as a kernel and a hypervisor do."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import msgspec
from anynode_compute_fake.machine import FakeInstance
from botocore.config import Config as ClientConfig
from botocore.exceptions import ConnectionError, HTTPClientError  # noqa: A004
from botocore.parsers import ResponseParserError

from appliance import node_process
from appliance.compute.record import REPORT
from appliance.config import Config, load_config
from appliance.crash_points import TRACE
from appliance.journal import read_journal
from appliance.node import Node
from appliance.verify.facts import Facts, gather
from tests.cli.shell import Shell
from tests.faults.nursery import Child, start_node
from tests.rig import wait_for

UP_S = 60
END_S = 30
SIGKILLED = -signal.SIGKILL
ENVIRONMENT_CODES = ("N3.NO_KVM", "N3.DISK_FULL", "N3.CLOCK_BACK")
"""What verify says of the machine below the test, which is not what is tested here."""

_CONFIG = """
[node]
name = "n1"
state_dir = "{folder}/state"
run_dir = "{folder}/run"
[api]
port = {port}
[controller]
sweep_every_s = 0.5
progress_s = 2.0
[network]
type = "fake"
metadata = false
address_quarantine_s = 0.0
[firewall]
driver = "fake"
[compute]
driver = "fake"
shutdown_s = 2.0
inventory_every_s = 1.0
retry_s = 0.3
heartbeat_every_s = 1.0
[images]
group = ""
[plugins.compute.fake]
survives = true
[plugins.network.fake]
survives = true
[plugins.firewall.fake]
survives = true
"""

_session = boto3.session.Session()  # it keeps the model, which is slow to load

CONNECTION_LOST = (ConnectionError, HTTPClientError, ResponseParserError)
"""What a client sees of a node that dies, maybe in the middle of a reply, or is dead."""


class ProcessOnFakes:
    """A node of which only the process is mortal: ``anynode run`` on a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trace_path = folder / "trace"
        self.hold_path = folder / "hold"
        self._process: Child | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.shell = Shell(folder)
        self.shell.config_path.write_text(_CONFIG.format(folder=folder, port=self._port))
        self.config: Config = load_config(self.shell.config_path)

    def copy(self, folder: Path) -> ProcessOnFakes:
        """Return another node with the state of this one, which must be down."""
        assert not self.is_running
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        for name in ("trace", "node.log"):
            (folder / name).unlink(missing_ok=True)
        return ProcessOnFakes(folder)

    # -- the process ------------------------------------------------------------------------------

    def begin(self, **environment: str) -> None:
        """Start the process with these variables, and do not wait for it."""
        self._process = start_node(self.folder, self.folder / "node.log", environment)

    def start(self, **environment: str) -> None:
        """Start the process and wait until it is up or has ended."""
        self.begin(**environment)
        wait_for(lambda: self._is_up() or not self.is_running, UP_S, "the node to be up")

    def _is_up(self) -> bool:
        found = node_process.find(self.config.run_dir)
        return found is not None and found.is_up and found.pid == self.pid

    @property
    def pid(self) -> int:
        """The process that was started last."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def wait_for_end(self) -> int:
        """Wait until the process has ended and return its status."""
        assert self._process is not None
        return self._process.wait(END_S)

    def kill(self) -> None:
        """Kill the process, if it runs."""
        if self._process is not None and self.is_running:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(END_S)

    def last_words(self) -> str:
        """Return the end of the log."""
        return (self.folder / "node.log").read_text(errors="replace")[-4000:]

    def trace(self) -> list[str]:
        """Return the crash points that were passed while they were traced."""
        return self.trace_path.read_text().splitlines() if self.trace_path.exists() else []

    @property
    def tracing(self) -> Mapping[str, str]:
        """The variables that write down the crash points."""
        return {TRACE: str(self.trace_path)}

    # -- its users --------------------------------------------------------------------------------

    def set_up(self) -> None:
        """Make the store, a project, a user with a key, and an image; the process must be down."""
        Node(self.config).stop()
        self.shell.give_key()
        self.shell.import_image("blank")

    def client(self) -> Any:
        """Return boto3's client of the API; it tries everything once."""
        lines = (self.folder / "anynode.env").read_text().split("\n")
        pairs = (line.removeprefix("export ").partition("=") for line in lines if "=" in line)
        env = {name: value.strip("'\"") for name, _, value in pairs}
        return _session.client(
            "ec2",
            region_name="local-1",
            endpoint_url=f"http://127.0.0.1:{self._port}",
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
            config=ClientConfig(
                proxies={}, retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=20
            ),
        )

    def verify(self, wait_s: float = 20) -> None:
        """Let ``anynode verify`` find nothing.

        :raises AssertionError: it found something.
        """
        ignored = [word for code in ENVIRONMENT_CODES for word in ("--ignore", code)]
        found = self.shell.try_run("verify", "--wait", str(wait_s), *ignored, "--json")
        assert found.exit_code == 0, found.output
        findings = json.loads(found.stdout)["findings"]
        assert findings == [], findings

    # -- what is, behind the node's back ----------------------------------------------------------

    def facts(self) -> Facts:
        """Return what is on the node, from all who know something of it."""
        return gather(self.config)

    def hypervisor(self) -> dict[str, FakeInstance]:
        """Return the instances that the hypervisor has."""
        path = self.config.state_dir / "plugins" / "compute-fake" / "instances.json"
        return msgspec.json.decode(path.read_bytes(), type=dict[str, FakeInstance])

    def waiting(self) -> list[str]:
        """Return the messages that wait for their handler and the reports to be confirmed."""
        with closing(sqlite3.connect(self.config.state_dir / "store.sqlite")) as store:
            messages = [
                f"{kind} {id_}" for kind, id_ in store.execute("SELECT kind, id FROM outbox")
            ]
        owed = read_journal(self.config.state_dir / "compute.sqlite").get(REPORT, {})
        return [*messages, *owed]
