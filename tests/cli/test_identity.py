"""Users, projects and access keys."""

from __future__ import annotations

import re
from pathlib import Path

from appliance import seal
from appliance.ec2_client import read_env_file
from appliance.store import identity
from tests.cli.shell import Shell


def plain(text: str) -> list[list[str]]:
    """Return the words of each line, ids and times replaced by what they are."""
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME", text)
    text = re.sub(r"AIDA\w+", "USERID", re.sub(r"AKIA\w+", "KEYID", text))
    text = re.sub(r"\b\d{12}\b", "N", text)
    return [line.split() for line in text.splitlines()]


def test_tables(shell: Shell) -> None:
    shell.give_key()
    shell.run("user", "create", "bob")
    shell.run("user", "disable", "bob")
    assert plain(shell.run("user", "list")) == [
        ["NAME", "ID", "STATE", "PROJECTS", "CREATED"],
        ["admin", "USERID", "enabled", "demo", "(admin)", "TIME"],
        ["bob", "USERID", "disabled", "TIME"],
    ]
    assert plain(shell.run("project", "list")) == [
        ["NAME", "ID", "STATE", "MEMBERS", "CREATED"],
        ["demo", "N", "enabled", "admin", "(admin)", "TIME"],
    ]
    assert plain(shell.run("key", "list")) == [
        ["ID", "USER", "PROJECT", "STATE", "CREATED"],
        ["KEYID", "admin", "demo", "enabled", "TIME"],
    ]


def test_columns_line_up_and_no_line_ends_in_spaces(shell: Shell) -> None:
    shell.give_key()
    shell.run("user", "create", "somebody-with-a-long-name")
    lines = shell.run("user", "list").splitlines()
    assert len({line.index("AIDA") for line in lines[1:]} | {lines[0].index("ID")}) == 1
    assert all(line == line.rstrip() for line in lines)


def test_empty_tables_say_what_to_do(shell: Shell) -> None:
    assert (
        shell.run("user", "list") == "There are no users; `anynode user create NAME` makes one.\n"
    )
    assert "anynode project create" in shell.run("project", "list")
    assert "anynode key create" in shell.run("key", "list")
    assert shell.json("user", "list") == []


def test_json_has_stable_names(shell: Shell) -> None:
    shell.give_key()
    user, project, key = (shell.json(noun, "list")[0] for noun in ("user", "project", "key"))
    assert set(user) == {"user_id", "name", "is_enabled", "created_at", "memberships"}
    assert user["memberships"] == {"demo": "admin"}
    assert set(project) == {"project_id", "name", "is_enabled", "created_at", "members"}
    assert project["members"] == {"admin": "admin"}
    assert set(key) == {
        "access_key_id",
        "user_name",
        "project_name",
        "is_enabled",
        "created_at",
        "expires_at",
    }


def test_secret_is_printed_once_and_is_usable(shell: Shell) -> None:
    shell.give_key()
    made = read_env_file(shell.folder / "anynode.env")
    assert set(made) == {
        "AWS_ENDPOINT_URL",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_DEFAULT_REGION",
        "AWS_REGION",
    }
    keys = seal.load(seal.key_path(shell.config.state_dir))
    store = shell.open_store()
    found = identity.StoreCredentials(store, keys).find(made["AWS_ACCESS_KEY_ID"])
    store.close()
    assert found is not None
    assert found.secret == made["AWS_SECRET_ACCESS_KEY"]
    for words in (("key", "list"), ("key", "list", "--json"), ("user", "list"), ("config",)):
        assert found.secret not in shell.run(*words)
    for path in Path(shell.config.state_dir).rglob("*"):
        assert not path.is_file() or found.secret.encode() not in path.read_bytes()


def test_key_can_be_disabled_enabled_and_deleted(shell: Shell) -> None:
    shell.give_key()
    key_id = shell.json("key", "list")[0]["access_key_id"]
    shell.run("key", "disable", key_id)
    assert shell.json("key", "list")[0]["is_enabled"] is False
    shell.run("key", "enable", key_id)
    assert shell.json("key", "list")[0]["is_enabled"] is True
    shell.run("key", "delete", key_id)
    assert shell.json("key", "list") == []
    assert shell.fail("key", "delete", key_id) == f"error: There is no access key '{key_id}'.\n"


def test_a_rotated_key_gives_way_to_a_new_one(shell: Shell) -> None:
    shell.give_key()
    old = shell.json("key", "list")[0]["access_key_id"]
    said = shell.run("key", "rotate", old)
    new_id, secret = (line.split()[-1] for line in said.splitlines()[:2])
    assert f"The old key {old} works no longer." in said
    state = {one["access_key_id"]: one["is_enabled"] for one in shell.json("key", "list")}
    assert state == {old: False, new_id: True}
    assert secret not in shell.run("key", "list")
    assert "was rotated before" in shell.fail("key", "rotate", old)
    shell.run("key", "enable", old)
    assert all(one["is_enabled"] for one in shell.json("key", "list"))
    assert shell.json("audit", "--action", "RotateAccessKey")[0]["subject"] == f"{old} {new_id}"


def test_a_rotated_key_may_have_a_grace(shell: Shell) -> None:
    shell.give_key()
    old = shell.json("key", "list")[0]["access_key_id"]
    made = shell.json("key", "rotate", old, "--grace", "24h")
    assert set(made) == {"access_key_id", "secret_access_key", "endpoint_url", "region"}
    listed = {one["access_key_id"]: one for one in shell.json("key", "list")}
    assert listed[old]["is_enabled"]
    assert listed[old]["expires_at"] > listed[made["access_key_id"]]["created_at"] + 86000
    assert listed[made["access_key_id"]]["expires_at"] is None
    assert "ends in 23h" in shell.run("key", "list") or "ends in 1d" in shell.run("key", "list")
    assert "was rotated before" in shell.fail("key", "rotate", old)
    shell.run("key", "enable", old)
    assert [one["expires_at"] for one in shell.json("key", "list")] == [None, None]
    env = shell.run("key", "rotate", made["access_key_id"], "--env")
    assert env.startswith(("export AWS_", "AWS_"))
    assert "works no longer" not in env


def test_a_key_that_is_not_there_cannot_be_rotated(shell: Shell) -> None:
    assert "There is no access key 'AKIAX'" in shell.fail("key", "rotate", "AKIAX")
    shell.give_key()
    key = shell.json("key", "list")[0]["access_key_id"]
    assert "no duration" in shell.fail("key", "rotate", key, "--grace", "soon", status=2)
    assert len(shell.json("key", "list")) == 1


def test_members_come_and_go(shell: Shell) -> None:
    shell.give_key()
    shell.run("project", "add-user", "demo", "admin", "--level", "reader")
    assert shell.json("user", "list")[0]["memberships"] == {"demo": "reader"}
    shell.run("project", "remove-user", "demo", "admin")
    assert shell.json("user", "list")[0]["memberships"] == {}
    assert shell.json("key", "list") == []
    assert "no member" in shell.fail("key", "create", "admin", "demo")


def test_refusals_are_sentences(shell: Shell) -> None:
    shell.run("project", "create", "demo", "--id", "123456789012")
    assert "There is a project 'demo'" in shell.fail("project", "create", "demo")
    assert "no user 'nobody'" in shell.fail("project", "add-user", "demo", "nobody")
    assert "no project 'x'" in shell.fail("project", "delete", "x")
    assert "Could not make user" in shell.fail("user", "create", "a b")
    assert "Invalid value" in shell.fail(
        "project", "add-user", "demo", "nobody", "--level", "king", status=2
    )


def test_delete(shell: Shell) -> None:
    shell.give_key()
    shell.run("project", "disable", "demo")
    shell.run("project", "enable", "demo")
    shell.run("user", "enable", "admin")
    shell.run("user", "delete", "admin")
    shell.run("project", "delete", "demo")
    assert shell.json("user", "list") == shell.json("project", "list") == []


def test_changes_are_written_down_with_who_made_them(shell: Shell) -> None:
    shell.give_key()
    user, project, key = (shell.json(noun, "list")[0] for noun in ("user", "project", "key"))
    entries = shell.json("audit")
    assert [(one["action"], one["subject"]) for one in entries] == [
        ("CreateProject", f"demo {project['project_id']}"),
        ("CreateUser", f"admin {user['user_id']}"),
        ("AddUserToProject", "admin demo admin"),
        ("CreateAccessKey", f"admin demo {key['access_key_id']}"),
    ]
    assert all(one["actor"].startswith("operator ") for one in entries)
    assert {one["source"] for one in entries} == {"command line"}
    assert {one["result"] for one in entries} == {"ok"}
