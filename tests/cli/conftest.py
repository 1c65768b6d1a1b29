"""A node's folder with fakes for all drivers, at rest or running."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.node import Node
from tests.cli.shell import Shell

_CONFIG = """
[node]
name = "n1"
state_dir = "{folder}/state"
run_dir = "{folder}/run"
[api]
port = {port}
[network]
type = "fake"
metadata = false
[firewall]
driver = "fake"
[compute]
driver = "fake"
injection = ["none"]
[images]
group = ""
"""


@pytest.fixture
def empty(tmp_path: Path) -> Shell:
    """A folder with a configuration file and nothing else."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shell = Shell(tmp_path)
    shell.config_path.write_text(_CONFIG.format(folder=tmp_path, port=port))
    return shell


@pytest.fixture
def shell(empty: Shell) -> Shell:
    """A node that was set up and does not run."""
    Node(empty.config).stop()
    return empty


@pytest.fixture
def running(empty: Shell) -> Iterator[Shell]:
    """A node that runs, in this process."""
    with empty.running():
        yield empty
