"""``anynode audit``: what is in the log, found and followed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from appliance.cli.access import operator_name
from appliance.store import audit
from appliance.store.audit import Deed
from tests.cli.shell import Shell

DEADLINE_S = 30.0


def write(shell: Shell, **fields: str) -> None:
    """Write a line as the API does."""
    deed = {
        "actor": "ada",
        "project_id": "",
        "action": "StopInstances",
        "subject": "i-1",
        "request_id": "req",
        "source": "10.0.0.1",
        **fields,
    }
    store = shell.open_store()
    store.transaction(lambda tx: audit.record(tx, Deed(**deed)))
    store.close()


def actions(shell: Shell, *words: str) -> list[str]:
    return [one["action"] for one in shell.json("audit", *words)]


@pytest.mark.parametrize(
    ("uid", "sudo_user", "name"),
    [(0, "", "root"), (0, "ada", "ada"), (65534, "ada", "nobody"), (4_000_000, "", "4000000")],
)
def test_the_operator_is_who_runs_the_command(
    monkeypatch: pytest.MonkeyPatch, uid: int, sudo_user: str, name: str
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: uid)
    monkeypatch.setenv("SUDO_USER", sudo_user)
    monkeypatch.setenv("LOGNAME", "mallory")
    assert operator_name() == f"operator {name}"


def test_an_empty_log_says_so(shell: Shell) -> None:
    assert shell.run("audit") == "The audit log has no such lines.\n"


def test_lines_are_found_by_who_where_what_and_when(shell: Shell) -> None:
    shell.run("project", "create", "demo", "--id", "123456789012")
    write(shell, project_id="123456789012")
    write(shell, actor="bob", result="UnauthorizedOperation", action="RunInstances")
    assert actions(shell) == ["CreateProject", "StopInstances", "RunInstances"]
    assert actions(shell, "--user", "ada") == ["StopInstances"]
    for project in ("demo", "123456789012"):
        assert actions(shell, "--project", project) == ["StopInstances"]
    assert actions(shell, "--project", "999999999999") == []
    assert actions(shell, "--action", "CreateProject") == ["CreateProject"]
    assert actions(shell, "--refused") == ["RunInstances"]
    assert actions(shell, "--limit", "1") == ["RunInstances"]
    assert len(actions(shell, "--since", "1h")) == 3
    assert actions(shell, "--since", "2999-01-01") == []
    operator = shell.json("audit")[0]["actor"].removeprefix("operator ")
    assert actions(shell, "--user", operator) == ["CreateProject"]


def test_the_table_names_project_and_who_was_not_recognised(shell: Shell) -> None:
    shell.run("project", "create", "demo", "--id", "123456789012")
    write(shell, project_id="123456789012", subject="i-1\x1b[31m")
    write(shell, actor="", access_key_id="AKIABAD", action="Authenticate", result="AuthFailure")
    head, _, stop, stranger = shell.run("audit").splitlines()
    assert head.split() == [
        "TIME",
        "WHO",
        "PROJECT",
        "ACTION",
        "RESULT",
        "OBJECT",
        "SOURCE",
        "REQUEST",
    ]
    assert stop.split()[2:] == ["ada", "demo", "StopInstances", "ok", "i-1?[31m", "10.0.0.1", "req"]
    assert stranger.split()[2:6] == ["AKIABAD", "-", "Authenticate", "AuthFailure"]


@pytest.mark.parametrize("words", [("--since", "soon"), ("--since", "5y"), ("--limit", "0")])
def test_bad_options_are_refused(shell: Shell, words: tuple[str, ...]) -> None:
    assert "Invalid value" in shell.fail("audit", *words, status=2)


def test_an_unknown_project_is_an_error(shell: Shell) -> None:
    assert "There is no project 'nope'" in shell.fail("audit", "--project", "nope")


def test_new_lines_are_followed(shell: Shell) -> None:
    write(shell, action="First")
    program = (sys.executable, "-m", "appliance.cli", "--config", str(shell.folder))
    process = subprocess.Popen(
        [*program, "audit", "--follow", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["action"] == "First"
        write(shell, action="Second")
        write(shell, action="Third")
        begun = time.monotonic()
        seen = [json.loads(process.stdout.readline())["action"] for _ in range(2)]
        assert seen == ["Second", "Third"]
        assert time.monotonic() - begun < DEADLINE_S
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
