"""A node as a process: start, stop, and what is left when it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from appliance import node_process
from appliance.node_process import NodeProcess
from tests.cli.shell import Shell

WAIT_S = 60


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)


def find(shell: Shell) -> NodeProcess | None:
    return node_process.find(shell.config.run_dir)


def is_up(shell: Shell) -> bool:
    process = find(shell)
    return process is not None and process.is_up


@pytest.fixture
def started(empty: Shell) -> Iterator[subprocess.Popen[str]]:
    """A node in the foreground of its own process."""
    child = subprocess.Popen(
        [sys.executable, "-m", "appliance.cli", "--config", str(empty.folder), "run"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: is_up(empty) or child.poll() is not None, "the node")
        yield child
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_foreground_stops_when_asked(
    empty: Shell, started: subprocess.Popen[str], number: signal.Signals
) -> None:
    assert is_up(empty)
    started.send_signal(number)
    _, printed = started.communicate(timeout=WAIT_S)
    assert started.returncode == 0, printed
    assert "node n1 is up with" in printed
    assert all(" INFO " in line for line in printed.splitlines())
    assert not node_process.record_path(empty.config.run_dir).exists()


def test_only_one_runs(empty: Shell, started: subprocess.Popen[str]) -> None:
    assert "Another node runs on" in empty.fail("run")
    assert "A node runs already" in empty.fail("run", "--detach")
    assert is_up(empty), "the refused ones must not take the record away"
    assert empty.json("status")["process"]["pid"] == started.pid


def test_background(empty: Shell) -> None:
    printed = empty.run("run", "--detach")
    process = find(empty)
    assert process is not None
    try:
        assert f"process {process.pid}" in printed
        assert node_process.answers(process)
        log = empty.config.state_dir / "log" / "node.log"
        assert process.log_path == str(log)
        assert log.stat().st_mode & 0o777 == 0o600
        assert "node n1 is up" in log.read_text()
    finally:
        assert node_process.stop(process)
    assert find(empty) is None
    assert node_process.stop(process), "stopping is safe to repeat"


def test_killed_node_is_no_node(empty: Shell, started: subprocess.Popen[str]) -> None:
    started.kill()
    started.wait(WAIT_S)
    assert node_process.record_path(empty.config.run_dir).exists()
    assert find(empty) is None
    assert empty.run("status", status=1).startswith("No node runs")


def test_a_later_process_with_its_number_is_not_it(empty: Shell) -> None:
    empty.config.run_dir.mkdir()
    mine = node_process.this_process(empty.config, None, None)
    old = NodeProcess(
        pid=mine.pid, started_ticks=mine.started_ticks - 1, started_at=0.0, version="0"
    )
    with node_process.recorded(old, empty.config.run_dir):
        assert find(empty) is None
        assert node_process.stop(old)
    os.kill(os.getpid(), 0)


def test_start_that_fails_says_why(empty: Shell) -> None:
    empty.config_path.write_text(
        empty.config_path.read_text().replace('type = "fake"', 'type = "fake"\ncidr = "x"')
    )
    said = empty.fail("run", "--detach")
    assert said.startswith("error: The node ended while it started. It said:\nerror: ")
    assert find(empty) is None


def test_a_node_that_ignores_the_signal_is_killed(empty: Shell) -> None:
    script = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('up', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    process = NodeProcess(
        pid=child.pid,
        started_ticks=node_process.start_ticks(child.pid),
        started_at=0.0,
        version="0",
    )
    assert node_process.stop(process, deadline_s=0.3) is False
    assert child.wait(WAIT_S) == -signal.SIGKILL
    child.stdout.close()


HANGS = """
import sys, threading
from appliance import cli
from appliance.cli import run
from appliance.node import Node
run.END_S = 1.0
Node.stop = lambda node: threading.Event().wait()
sys.argv[1:] = ["--config", sys.argv[1], "run"]
cli.main()
"""


def test_a_stop_that_hangs_ends_with_what_it_waited_for(empty: Shell) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HANGS, str(empty.folder)], stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: is_up(empty) or child.poll() is not None, "the node")
        child.send_signal(signal.SIGTERM)
        _, printed = child.communicate(timeout=WAIT_S)
    finally:
        child.kill()
        child.communicate()
    assert child.returncode == 1, printed
    assert "Timeout (0:00:01)!" in printed
    assert "_run" in printed
    assert find(empty) is None
