"""What goes wrong is one sentence and an exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from appliance.cli import main, status
from appliance.errors import ConfigError
from tests.cli.shell import Shell

READING = [
    ("user", "list"),
    ("project", "list"),
    ("key", "list"),
    ("image", "list"),
    ("instances",),
    ("trace", "i-1"),
    ("explain", "i-1"),
    ("status",),
    ("firewall", "list"),
]


@pytest.mark.parametrize("words", READING)
def test_no_node_was_set_up(empty: Shell, words: tuple[str, ...]) -> None:
    said = empty.fail(*words)
    assert said.startswith("error: No node has been set up here: there is no store ")
    assert "hint: Run `make run`" in said
    assert not empty.config.state_dir.exists()


def test_store_of_another_user(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    said = shell.fail("user", "list")
    assert said.startswith("error: This user may not open the store ")
    assert "hint: Run the command as root." in said


def test_bad_configuration(shell: Shell, tmp_path: Path) -> None:
    shell.config_path.write_text("[node]\ncolour = 'red'\n")
    assert "Bad setting in" in shell.fail("config")
    result = CliRunner().invoke(main, ["--config", str(tmp_path / "none.toml"), "status"])
    assert result.exit_code == 1
    assert "There is no configuration file" in result.stderr


def test_usage(shell: Shell) -> None:
    assert "No such command 'fly'" in shell.fail("fly", status=2)
    assert "Missing argument" in shell.fail("user", "create", status=2)


def test_a_bug_shows_no_traceback_unless_asked(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(status, "_versions", fail)
    said = shell.fail("status")
    assert said.startswith("error: The command failed: ZeroDivisionError: by zero")
    assert "--debug" in said
    result = shell.try_run("--debug", "status")
    assert isinstance(result.exception, ZeroDivisionError)


def test_causes_are_shown_where_there_is_no_hint(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        try:
            raise OSError("the cable is out")
        except OSError as error:
            raise ConfigError("Could not look.") from error

    monkeypatch.setattr(status, "_versions", fail)
    assert shell.fail("status") == "error: Could not look. (OSError: the cable is out)\n"


def test_interrupt(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(status, "_versions", interrupt)
    result = shell.try_run("status")
    assert result.exit_code == 130
    assert result.stderr.strip() == "Interrupted."


def test_a_reader_that_goes_away_is_no_error(shell: Shell) -> None:
    command = f"{sys.executable} -m appliance.cli --config {shell.folder} config | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("Settings of ")
    assert done.stderr == ""


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from appliance.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in sys.modules if name.split('.')[0] in "
        "('sqlalchemy', 'botocore', 'rich', 'flask', 'libvirt', 'cryptography', 'msgspec')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_command_has_help() -> None:
    from appliance.cli.reference import commands

    for words, command in commands(main, "anynode"):
        assert command.help, words
        shown = command.get_short_help_str(70)
        assert not shown.endswith("..."), f"{words}: give it a short_help"
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{words}: {parameter.name}"


def test_every_command_is_in_the_reference() -> None:
    from appliance.cli.reference import commands

    page = (Path(__file__).parents[2] / "docs/reference/cli.md").read_text(encoding="utf-8")
    for words, command in commands(main, "anynode"):
        assert f"\n## {words}\n" in page
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert option in page, f"{words} {option}"
