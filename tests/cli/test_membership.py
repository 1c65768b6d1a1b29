"""``anynode token`` and ``anynode join``, as operators run them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from appliance.cli import INTERRUPTED, main
from appliance.cli.join import TOKEN_VARIABLE
from appliance.cluster import changes, tokens
from appliance.cluster.membership import Membership, Removal
from appliance.cluster.settings import folder_of
from tests.cli.shell import Shell
from tests.cluster.trust import ControlNode


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlNode]:
    made = ControlNode(tmp_path)
    yield made
    made.close()


@pytest.fixture
def first(control: ControlNode, tmp_path: Path) -> Shell:
    """The command line on the control node."""
    shell = Shell(tmp_path / "cli-first")
    shell.folder.mkdir()
    shell.config_path.write_text(f'[node]\nstate_dir = "{control.config.state_dir}"\n')
    return shell


def join(
    shell: Shell, *words: str, given: str = "", environment: dict[str, str] | None = None
) -> Result:
    """Run ``anynode join`` with something on standard input."""
    return CliRunner().invoke(
        main,
        ["--config", str(shell.folder), "join", *words],
        input=given,
        env={TOKEN_VARIABLE: None, **(environment or {})},
    )


class TestToken:
    def test_made_listed_and_revoked(self, first: Shell, control: ControlNode) -> None:
        made = first.json("token", "create", "--node", "n7", "--valid", "30m")
        token = tokens.parse(made["token"])
        assert token.address == f"127.0.0.1:{control.port}"
        (found,) = first.json("token", "list")
        assert (found["token_id"], found["state"], found["node_name"]) == (
            token.token_id,
            "open",
            "n7",
        )
        assert 1700 < found["expires_at"] - time.time() <= 1800
        listed = first.run("token", "list")
        assert token.token_id in listed
        assert token.secret not in listed
        first.run("token", "revoke", token.token_id)
        assert first.json("token", "list")[0]["state"] == "revoked"

    def test_only_the_token_is_on_standard_output(self, first: Shell) -> None:
        result = first.try_run("token", "create")
        assert tokens.parse(result.stdout)
        assert "within" in result.stderr

    def test_it_is_written_down_without_the_secret(self, first: Shell) -> None:
        token = tokens.parse(first.json("token", "create")["token"])
        lines = first.run("audit")
        assert "CreateJoinToken" in lines
        assert token.token_id in lines
        assert token.secret not in lines

    def test_errors(self, first: Shell) -> None:
        assert "no token nope" in first.fail("token", "revoke", "nope")
        assert "30 days" in first.fail("token", "create", "--valid", "31d")
        first.fail("token", "create", "--valid", "soon", status=2)

    def test_a_lone_node_has_none(self, shell: Shell) -> None:
        assert "in no cluster" in shell.fail("token", "create")


class TestJoin:
    @pytest.mark.parametrize("way", ["argument", "stdin", "dash", "environment"])
    def test_ways_to_give_the_token(self, control: ControlNode, empty: Shell, way: str) -> None:
        text = control.token().text
        words = {"argument": [text], "dash": ["-"]}.get(way, [])
        environment = {TOKEN_VARIABLE: text} if way == "environment" else {}
        given = f"{text}\n" if way in ("stdin", "dash") else ""
        result = join(empty, *words, "--no-start", given=given, environment=environment)
        assert result.exit_code == 0, result.output
        assert "is now node n1 of the cluster" in result.stdout
        assert control.names() == ["first", "n1"]
        assert tokens.parse(text).secret not in result.output

    def test_json(self, control: ControlNode, empty: Shell) -> None:
        import json

        words = ("--no-start", "--json", "--name", "left", "--zone", "z-2")
        result = join(empty, "-", *words, given=control.token().text)
        told = json.loads(result.stdout)
        assert (told["name"], told["zone"], told["is_new"]) == ("left", "z-2", True)
        assert (folder_of(empty.config.state_dir) / "settings.json").exists()

    def test_again(self, control: ControlNode, empty: Shell) -> None:
        join(empty, "-", "--no-start", given=control.token().text)
        control.tell()
        result = join(empty, "-", "--no-start", given=control.token().text)
        assert (result.exit_code, "was already node n1" in result.stdout) == (0, True)

    def test_the_settings_are_those_of_the_cluster(
        self, control: ControlNode, empty: Shell
    ) -> None:
        join(empty, "-", "--no-start", "--zone", "z-9", given=control.token().text)
        shown = {one["name"]: one["value"] for one in empty.json("config")}
        assert shown["node.zone"] == "z-9"
        assert shown["node.roles"] == ["datapath", "compute"]
        assert "secret-password" not in str(shown)

    def test_commands_that_need_the_store_say_where_it_is(
        self, control: ControlNode, empty: Shell
    ) -> None:
        join(empty, "-", "--no-start", given=control.token().text)
        assert "does not reach the store" in empty.fail("user", "list")

    def test_a_removed_node_says_what_to_do(self, control: ControlNode, empty: Shell) -> None:
        join(empty, "-", "--no-start", given=control.token().text)
        cluster = Membership(folder_of(empty.config.state_dir))
        cluster.note_removal(Removal(learnt_at=time.time(), told_by="first"))
        said = empty.run("status", status=1)
        assert "removed from it, says first" in said
        assert "`anynode join TOKEN` here" in said
        assert empty.json("status", status=1)["removal"]["told_by"] == "first"
        control.change(lambda tx: changes.remove(tx, "n1"))
        result = join(empty, "-", "--no-start", given=control.token().text)
        assert "is now node n1" in result.stdout
        assert "removal" not in empty.json("status", status=1)

    def test_errors_show_no_secret(self, control: ControlNode, empty: Shell) -> None:
        token = control.token()
        control.clock.ahead_s = 7200
        result = join(empty, "-", "--no-start", given=token.text)
        assert result.exit_code == 1
        assert "error: This token has expired." in result.stderr
        assert "hint: " in result.stderr
        assert token.secret not in result.output
        cut = join(empty, "-", "--no-start", given=token.text[:-3])
        assert (cut.exit_code, token.secret[:-3] in cut.output) == (1, False)

    def test_interrupted(
        self, control: ControlNode, empty: Shell, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*arguments: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("appliance.cluster.peer_client.read_authority", interrupt)
        result = join(empty, "-", "--no-start", given=control.token().text)
        assert (result.exit_code, "Interrupted." in result.stderr) == (INTERRUPTED, True)
        assert sorted(path.name for path in empty.config.state_dir.iterdir()) == []
