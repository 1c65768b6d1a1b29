"""What the environment may ask of the crash points of a real process."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from appliance.crash_points import Rehearsed, from_environment
from appliance.errors import ConfigError
from appliance.world import no_crash

CRASHING = """
from appliance.crash_points import from_environment
crash = from_environment()
for number in range(3):
    crash("other")
    print(number, flush=True)
    crash("order.journalled")
"""


def test_nothing_happens_when_nobody_asks() -> None:
    assert from_environment({}) is no_crash


@pytest.mark.parametrize(
    ("wanted", "printed"), [("order.journalled", "0\n"), ("order.journalled@2", "0\n1\n")]
)
def test_a_process_dies_at_the_named_point(wanted: str, printed: str) -> None:
    died = subprocess.run(
        [sys.executable, "-c", CRASHING],
        env={"ANYNODE_CRASH_AT": wanted},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL
    assert died.stdout == printed


def test_it_fails_each_time_or_the_nth_time() -> None:
    crash = from_environment({"ANYNODE_FAIL_AT": "one,two@2"})
    for _ in range(2):
        with pytest.raises(Rehearsed, match="told to fail at one"):
            crash("one")
    crash("two")
    with pytest.raises(Rehearsed, match="told to fail at two@2"):
        crash("two")
    crash("two")
    crash("three")


def test_it_holds_while_the_file_is_there(tmp_path: Path) -> None:
    path = tmp_path / "hold"
    path.touch()
    crash = from_environment({"ANYNODE_HOLD_AT": f"one={path}"})
    crash("two")
    thread = threading.Thread(target=crash, args=("one",))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    path.unlink()
    thread.join(10)
    assert not thread.is_alive()
    path.touch()
    before = time.monotonic()
    crash("one")
    assert time.monotonic() - before < 5, "it holds once"


def test_it_notes_what_was_passed_before_it_happens(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    crash = from_environment({"ANYNODE_CRASH_TRACE": str(path), "ANYNODE_FAIL_AT": "two"})
    crash("one")
    with pytest.raises(Rehearsed):
        crash("two")
    assert path.read_text().splitlines() == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ANYNODE_CRASH_AT", "@2"),
        ("ANYNODE_CRASH_AT", "one@0"),
        ("ANYNODE_FAIL_AT", "one,two@x"),
        ("ANYNODE_HOLD_AT", "one"),
        ("ANYNODE_HOLD_AT", "=path"),
    ],
)
def test_what_cannot_be_read_is_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        from_environment({name: value})
