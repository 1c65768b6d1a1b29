"""The demo on fakes: everything but QEMU and SSH is real."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result

from appliance import demo, node_process, run, teardown
from appliance.cli import demo as command
from appliance.cli import main
from appliance.config import Config, load_config
from appliance.ec2_client import Ec2Client, read_env_file
from appliance.errors import CommandFailed, ConfigError, Unavailable
from tests.cli.shell import Shell


class Ssh:
    """Stands in for the program ssh; everything else is run."""

    def __init__(self) -> None:
        self.refusals = 1
        self.commands: list[list[str]] = []
        self._run = run.run

    def __call__(self, words: list[str], **options: Any) -> str:
        if words[0] != "ssh":
            return self._run(words, **options)
        self.commands.append(words)
        if len(self.commands) <= self.refusals:
            raise CommandFailed("Command failed with exit status 255: ssh\n  Connection refused")
        return ""


@pytest.fixture
def ssh(monkeypatch: pytest.MonkeyPatch) -> Ssh:
    fake = Ssh()
    monkeypatch.setattr(run, "run", fake)
    return fake


@pytest.fixture
def place(
    empty: Shell, ssh: Ssh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shell]:
    """A folder for a demo; the node that it starts is ended in any case."""
    if shutil.which("qemu-img") is None:
        pytest.skip("this machine lacks qemu-img")
    images = tmp_path / "demo-image"
    images.mkdir()
    (images / "vmlinuz").write_bytes(b"MZ".ljust(4096, b"\0"))
    (images / "initrd.img").write_bytes(bytes(512))
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", images / "root.qcow2", "1M"], check=True
    )
    monkeypatch.setattr(demo, "IMAGE_FOLDER", images)
    monkeypatch.setattr(demo, "check_root", lambda: None)
    yield empty
    process = node_process.find(empty.config.run_dir)
    if process:
        node_process.stop(process)


def alive(place: Shell) -> list[str]:
    return [line["instance_id"] for line in place.json("instances")]


def private(path: Path) -> bool:
    return path.stat().st_mode & 0o777 == 0o600


def test_up_again_and_down(place: Shell, ssh: Ssh) -> None:
    printed = place.run("demo", "up")
    (instance_id,) = alive(place)
    assert f"launched {instance_id}" in printed
    for words in (
        "compute     start",
        "Log in     ssh -i",
        "EC2 API    http://",
        "Stop it    make stop",
    ):
        assert words in printed
    assert "  | booting" in printed
    assert private(place.folder / "anynode.env")
    assert private(place.folder / "demo_ed25519")
    assert "BatchMode=yes" in ssh.commands[0]
    assert ssh.commands[0][-2:] == [ssh.commands[0][-2], "true"]

    env = (place.folder / "anynode.env").read_text()
    again = place.json("demo", "up")
    assert again["instance_id"] == instance_id
    assert again["is_new"] is False
    assert set(again) == {
        *("instance_id", "is_new", "address", "image_id", "ssh", "console", "endpoint_url"),
        *("env_file", "node_pid", "log"),
    }
    assert (place.folder / "anynode.env").read_text() == env
    assert len(place.json("key", "list")) == 1
    assert len(place.json("image", "list")) == 3

    state_dir, run_dir = place.config.state_dir, place.config.run_dir
    printed = place.run("demo", "down")
    assert f"removed {state_dir}" in printed
    assert not state_dir.exists()
    assert not run_dir.exists()
    assert not (place.folder / "anynode.env").exists()
    assert not (place.folder / "demo_ed25519").exists()
    assert place.config_path.exists(), "it is the user's, not the demo's"
    assert place.run("demo", "down") == "There was nothing to stop.\n"
    assert place.json("demo", "down") == {"removed": []}


def test_env_file_is_for_a_shell(place: Shell) -> None:
    place.json("demo", "up")
    path = place.folder / "anynode.env"
    script = f". {path} && . {path} && which anynode && env"
    done = subprocess.run(
        ["sh", "-c", script],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    variables = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    wanted = {
        *("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        *("AWS_DEFAULT_REGION", "AWS_REGION", "ANYNODE_IMAGE"),
    }
    assert wanted <= set(variables)
    assert read_env_file(path) == {name: variables[name] for name in wanted}
    assert variables["PATH"].count(".venv/bin") <= 1


def test_a_terminated_instance_is_replaced(place: Shell) -> None:
    first = place.json("demo", "up")
    client = client_of(place)
    client.call("TerminateInstances", InstanceIds=[first["instance_id"]])
    place.run("trace", first["instance_id"], "--follow")
    second = place.json("demo", "up")
    assert second["is_new"] is True
    assert second["instance_id"] != first["instance_id"]
    assert alive(place) == [second["instance_id"]]


def test_a_stopping_instance_is_started_once_it_has_stopped(
    place: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = place.json("demo", "up")
    client_of(place).call("StopInstances", InstanceIds=[first["instance_id"]])
    find = demo.find_instance

    def found_stopping(*given: Any) -> Any:
        one = find(*given)
        assert one is not None
        return {**one, "State": {"Name": "stopping"}}

    monkeypatch.setattr(demo, "find_instance", found_stopping)
    second = place.json("demo", "up")
    assert (second["instance_id"], second["is_new"]) == (first["instance_id"], False)


class Stopping:
    """A client whose instance is stopping for so many calls."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def instances(self, **parameters: Any) -> list[dict[str, Any]]:
        self.calls -= 1
        return [{"State": {"Name": "stopping" if self.calls >= 0 else "stopped"}}]


def test_stopping_is_waited_for_until_a_deadline() -> None:
    assert demo.wait_while_stopping(cast(Ec2Client, Stopping(1)), "i-1", 30.0) == "stopped"
    with pytest.raises(Unavailable, match="i-1 did not stop within 0 s"):
        demo.wait_while_stopping(cast(Ec2Client, Stopping(1000)), "i-1", 0.0)


def client_of(place: Shell) -> Ec2Client:
    from appliance.ec2_client import find_credentials

    return Ec2Client(find_credentials(place.config, place.folder / "anynode.env"))


def test_a_lost_key_means_a_new_instance(place: Shell) -> None:
    first = place.json("demo", "up")
    (place.folder / "demo_ed25519").unlink()
    second = place.json("demo", "up")
    assert second["instance_id"] != first["instance_id"]


def test_down_after_a_kill(place: Shell) -> None:
    pid = place.json("demo", "up")["node_pid"]
    process = node_process.find(place.config.run_dir)
    assert process is not None
    assert process.pid == pid
    node_process.stop(process, deadline_s=0)
    place.run("demo", "down")
    assert not place.config.state_dir.exists()


def test_needs_root(empty: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    said = empty.fail("demo", "up")
    assert "only root may do" in said
    assert "sudo make run" in said


def test_ssh_that_never_answers(place: Shell, ssh: Ssh, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh.refusals = 1_000_000
    wait = demo.wait_for_ssh
    monkeypatch.setattr(demo, "wait_for_ssh", lambda *given: wait(*given, deadline_s=0.1))
    said = place.fail("demo", "up")
    assert "Could not log in to the instance: SSH to 10.64.0." in said
    assert "did not answer within 0.1 s: Connection refused" in said
    assert "anynode console i-" in said


def test_a_node_that_does_not_start(place: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    text = place.config_path.read_text()
    place.config_path.write_text(text.replace('driver = "fake"', 'driver = "iron"', 1))
    said = place.fail("demo", "up")
    assert said.startswith("error: Could not start the node: The node ended while it started.")
    assert "No plugin 'iron'" in said
    assert "node.log" in said


def test_a_launch_that_fails_says_why(place: Shell) -> None:
    with place.config_path.open("a") as file:
        file.write("[plugins.compute.fake]\nmemory_mib = 600\n")
    said = place.fail("demo", "up")
    assert "error: Could not launch i-" in said
    assert "too little free memory" in said
    assert "anynode trace i-" in said


INTERRUPTED = [
    "ensure_image_files",
    "ensure_node",
    "ensure_identity",
    "ensure_images",
    "ensure_access_key",
    "_write_env",
    "ensure_rules",
    "ensure_key_pair",
    "launch_instance",
    "wait_for_ssh",
]


@pytest.mark.parametrize("when", ["before", "after"])
def test_interrupted_anywhere_it_is_simply_run_again(
    place: Shell, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    for name in INTERRUPTED:
        with monkeypatch.context() as patch:
            patch.setattr(demo, name, interrupted(getattr(demo, name), when))
            result = place.try_run("demo", "up")
        assert result.exit_code == 130, f"{name}: {result.output}"
        assert "Interrupted." in result.stderr
        assert [path.name for path in place.folder.iterdir() if path.name.startswith(".")] == []
        process = node_process.find(place.config.run_dir)
        assert (process is not None) == (
            f"process {process.pid if process else 0}" in result.stderr
        )
        if (place.folder / "anynode.env").exists():
            assert len(place.json("key", "list")) == 1
    made = place.json("demo", "up")
    assert alive(place) == [made["instance_id"]]
    assert len(place.json("key", "list")) == 1


def interrupted(work: Callable[..., Any], when: str) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        if when == "after":
            work(*arguments, **named)
        raise KeyboardInterrupt

    return call


def test_a_key_that_cannot_be_kept_is_deleted(
    place: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(demo, "_write_env", interrupted(demo._write_env, "before"))
        assert place.try_run("demo", "up").exit_code == 130
    assert place.json("key", "list") == []


def test_interrupted_start_leaves_no_node(place: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def wait(config: object, pid: int, printed: object) -> None:
        started.append(pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(node_process, "_wait_until_up", wait)
    assert place.try_run("demo", "up").exit_code == 130
    assert node_process.start_ticks(started[0]) == 0


def test_a_machine_with_a_node_of_its_own_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    etc = tmp_path / "anynode.toml"
    etc.touch()
    monkeypatch.setattr(command, "ETC", etc)
    monkeypatch.setattr(demo, "check_root", lambda: None)
    monkeypatch.delenv("ANYNODE_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    for word in ("up", "down"):
        result = CliRunner().invoke(main, ["demo", word])
        assert result.exit_code == 1
        assert "a node of its own" in result.stderr


def run_command(*words: str) -> Result:
    return CliRunner().invoke(main, words, env={"ANYNODE_CONFIG": None})


@pytest.fixture
def torn_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Config]:
    """Root for the demo, no node in /etc, and nothing torn down but noted."""
    noted: list[Config] = []

    def tear_down(config: Config, say: object) -> list[str]:
        noted.append(config)
        return []

    monkeypatch.setattr(demo, "check_root", lambda: None)
    monkeypatch.setattr(teardown, "tear_down", tear_down)
    monkeypatch.setattr(command, "ETC", tmp_path / "etc.toml")
    return noted


@pytest.mark.parametrize("name", ["nowhere", "nowhere/anynode.toml", "other.toml", "."])
def test_down_never_falls_back_to_another_node(
    empty: Shell, torn_down: list[Config], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(empty.folder)
    (empty.folder / "var").mkdir()
    empty.config_path.rename(empty.folder / "var" / "anynode.toml")
    result = run_command("--config", name, "demo", "down")
    assert result.exit_code == 0, result.output
    assert result.stdout == "There was nothing to stop.\n"
    assert torn_down == []


def test_a_named_file_may_have_any_name(empty: Shell, torn_down: list[Config]) -> None:
    path = empty.config_path.rename(empty.folder / "mine.conf")
    result = run_command("--config", str(path), "demo", "down")
    assert result.exit_code == 0, result.output
    assert [config.run_dir for config in torn_down] == [empty.folder / "run"]


@pytest.mark.parametrize("setting", ["state_dir", "run_dir"])
@pytest.mark.parametrize("word", ["up", "down"])
def test_a_folder_of_the_machines_node_is_left_alone(
    empty: Shell, torn_down: list[Config], word: str, setting: str
) -> None:
    folder = getattr(empty.config, setting)
    command.ETC.write_text(f'[node]\n{setting} = "{folder}"\n')
    said = empty.fail("demo", word)
    assert f"{folder} belongs to this machine's own node ({command.ETC})" in said
    assert torn_down == []


def test_down_leaves_the_node_of_another_file_alone(
    empty: Shell, torn_down: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[object] = []
    monkeypatch.setattr(node_process, "stop", stopped.append)
    process = node_process.this_process(empty.config, Path("/other/var/anynode.toml"), None)
    empty.config.run_dir.mkdir()
    with node_process.recorded(process, empty.config.run_dir):
        said = empty.fail("demo", "down")
    assert "was started with /other/var/anynode.toml" in said
    assert f"not with {empty.config_path}" in said
    assert (stopped, torn_down) == ([], [])


def test_configuration_is_written_once_and_removed_when_unchanged(tmp_path: Path) -> None:
    files = demo.Files(folder=tmp_path / "var")
    assert demo.write_config(files)
    assert not demo.write_config(files)
    assert demo.remove_files(files) == [str(files.config)]
    demo.write_config(files)
    files.config.write_text(files.config.read_text() + "# mine\n")
    assert demo.remove_files(files) == []


def test_configuration_in_a_folder_of_any_name(tmp_path: Path) -> None:
    files = demo.Files(folder=tmp_path / 'a "b" \\ ü')
    demo.write_config(files)
    assert load_config(files.config).node.log_file == str(files.log)


def test_a_quote_without_an_end_in_the_env_file(tmp_path: Path) -> None:
    path = tmp_path / "anynode.env"
    path.write_text("export A=1\nexport B='2\n")
    with pytest.raises(ConfigError, match=f"Line 2 of {path} .*No closing quotation"):
        read_env_file(path)


def test_last_lines() -> None:
    assert demo.last_lines("a\n\n b \r\nc\n", 2) == [" b", "c"]
    with contextlib.suppress(Unavailable):
        assert demo.last_lines("") == []
