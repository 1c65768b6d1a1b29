"""Node processes that start fast: forked from one that has imported all that a node needs.

Each runs ``anynode run`` as its owner would, in a process of its own. They are many, and importing
is most of what a start costs. The first process knows one at a time: a line with what to start is
answered with the new process's id, a line with an id with the status that it ended with, or with
``null`` while it runs.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from tests.rig import ROOT, wait_for

PLUGINS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("role", "scheduler", "filter", "weight", "auth"), ()),
    **dict.fromkeys(("compute", "network", "firewall"), ("fake",)),
    "injection": ("configdrive", "none"),
}
"""What is imported beforehand: of a group, those of these names, or all where there are none."""


class Child:
    """A node's process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return the status that it ended with, a signal as its negative; ``None``: it runs."""
        if self._status is None:
            self._status = _ask(self.pid)
        return self._status

    def wait(self, deadline_s: float) -> int:
        """Wait until it has ended and return its status."""
        wait_for(lambda: self.poll() is not None, deadline_s, f"process {self.pid} to end")
        assert self._status is not None
        return self._status

    def send_signal(self, number: int) -> None:
        """Send it a signal; its id is its own until its status was asked for."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)


def start_node(config: Path, log: Path, environment: Mapping[str, str]) -> Child:
    """Start a node with these settings; what it says goes to ``log``."""
    pid = _ask({"config": str(config), "log": str(log), "environment": dict(environment)})
    return Child(pid)


@functools.cache
def _nursery() -> subprocess.Popen[bytes]:
    # It ends with its standard input, which ends with this process in whatever way that does.
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.nursery"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def _ask(question: Any) -> Any:
    nursery = _nursery()
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    nursery.stdin.write(json.dumps(question).encode() + b"\n")
    nursery.stdin.flush()
    return json.loads(nursery.stdout.readline())


def _serve() -> None:
    """Answer until nobody asks any more; then end what still runs."""
    _import_all()
    for line in sys.stdin.buffer:
        question = json.loads(line)
        answer = _fork(question) if isinstance(question, dict) else _status_of(question)
        print(json.dumps(answer), flush=True)
    for child in Path("/proc/self/task", str(os.getpid()), "children").read_text().split():
        os.kill(int(child), signal.SIGKILL)


def _fork(question: Mapping[str, Any]) -> int:
    pid = os.fork()
    if not pid:
        _become(question)
    return pid


def _status_of(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _import_all() -> None:
    import appliance.cli.run
    import appliance.store.migrations

    assert appliance.cli.run
    assert appliance.store.migrations
    for group, names in PLUGINS.items():
        for point in entry_points(group=f"appliance.{group}"):
            if not names or point.name in names:
                point.load()


def _become(question: Mapping[str, Any]) -> None:
    """Run the node in this process, which ends with it."""
    status = 1
    try:
        log = os.open(question["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for opened, number in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(opened, number)
        for name in [name for name in os.environ if name.startswith("ANYNODE_")]:
            del os.environ[name]
        os.environ.update(question["environment"])
        from appliance.cli import main

        main(["--config", question["config"], "run"])
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    _serve()
