"""``anynode demo``: a node and an instance in one command, and all of it gone in another."""

from __future__ import annotations

import shlex
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.access import Access, pass_access
from appliance.cli.output import (
    console,
    json_option,
    print_json,
    printable,
    program_name,
    say,
)

if TYPE_CHECKING:
    from appliance.config import Config
    from appliance.demo import Files
    from appliance.ec2_client import Ec2Client
    from appliance.node_process import NodeProcess
    from appliance.store import Store

ETC = Path("/etc/anynode/anynode.toml")


@click.group(short_help="A node and an instance in one command.")
def demo() -> None:
    """A node and an instance on this machine, and all of it gone again."""


def named_path(access: Access) -> str | None:
    """Return the file or folder that was named; ``None`` when none was."""
    import os

    return access.config_option or os.environ.get("ANYNODE_CONFIG")


def files_of(access: Access) -> Files:
    """Return where the demo keeps its files: beside the configuration that was named, or in var.

    :raises ConfigError: this machine has a node of its own, which is none of the demo's.
    """
    from appliance.demo import Files
    from appliance.errors import ConfigError

    if named := named_path(access):
        path = Path(named)
        if path.is_file() or (path.suffix == ".toml" and not path.is_dir()):
            return Files(folder=path.parent, config_name=path.name)
        return Files(folder=path)
    files = Files(folder=Path("var"))
    if ETC.exists() and not files.config.exists():
        raise ConfigError(
            f"This machine has a node of its own ({ETC}), which the demo leaves alone.",
            hint="Use that node, or name another folder with --config.",
        )
    return files


def check_apart(config: Config) -> None:
    """Refuse settings that share a folder with the node that this machine has of its own.

    :raises ConfigError: they do, or the settings of that node cannot be read.
    """
    from appliance.config import load_config
    from appliance.errors import ConfigError

    if not ETC.exists():
        return
    other = load_config(ETC)
    for setting in ("state_dir", "run_dir"):
        folder = getattr(config, setting)
        if folder.resolve() == getattr(other, setting).resolve():
            raise ConfigError(
                f"{folder} belongs to this machine's own node ({ETC}), which the demo leaves "
                "alone.",
                hint=f"Set another {setting} in the [node] section of the demo's file.",
            )


def check_own(config: Config, files: Files) -> None:
    """Refuse to end a node that was started with another configuration file.

    :raises ConfigError: one runs in our folders.
    """
    from appliance import node_process
    from appliance.errors import ConfigError

    process = node_process.find(config.run_dir)
    if process and process.config_path:
        other = Path(process.config_path)
        if other.resolve() != files.config.resolve():
            raise ConfigError(
                f"The node that runs here (process {process.pid}) was started with {other}, "
                f"not with {files.config.absolute()}.",
                hint=f"To remove it: {program_name()} --config {shlex.quote(str(other))} demo down",
            )


class Report:
    """Says what is done and how long it took; a failure names the step and where to look."""

    def __init__(self, *, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line with the time since the beginning."""
        if not self._is_quiet:
            say(f"[{time.monotonic() - self._started:5.1f} s] {text}")

    @contextmanager
    def step(self, purpose: str, look: str) -> Iterator[None]:
        """Do one step.

        :param purpose: completes "Could not …".
        :param look: completes "Look at …".
        """
        from appliance.errors import AnynodeError

        try:
            yield
        except AnynodeError as error:
            hint = f"{error.hint} " if error.hint else ""
            raise AnynodeError(
                f"Could not {purpose}: {error.message}", hint=f"{hint}Look at {look}."
            ) from error


@demo.command("up", short_help="Start a node and an instance that answers SSH.")
@json_option
@pass_access
def up(access: Access, as_json: bool) -> None:
    """Start a node on this machine, launch an instance, and wait until it answers SSH.

    Needs root. Safe to repeat: what is there already is only shown.
    """
    from appliance import demo as parts
    from appliance.config import load_config

    report = Report(is_quiet=as_json)
    parts.check_root()
    files = files_of(access)
    check_apart(load_config(files.config if files.config.exists() else None))
    if parts.write_config(files):
        report.say(f"wrote {files.config}")
    config = load_config(files.config)
    try:
        _up(report, config, files, as_json)
    except KeyboardInterrupt:
        _name_what_stays(config)
        raise


def _up(report: Report, config: Config, files: Files, as_json: bool) -> None:
    from appliance import demo as parts
    from appliance.ec2_client import Ec2Client
    from appliance.store import Store
    from appliance.world import World

    with report.step("build the demo image", "what `make image` prints"):
        folder = parts.ensure_image_files()
    with report.step("start the node", str(files.log)):
        process, is_started = parts.ensure_node(config, files.config)
    word = "started" if is_started else "found"
    report.say(f"{word} the node: process {process.pid}, log {process.log_path}")
    store = Store(config.store_url, World())
    try:
        with report.step("register project, image and access key", process.log_path):
            parts.ensure_identity(store, config)
            image_id = parts.ensure_images(store, config, folder)
            credentials = parts.ensure_access_key(store, config, files, image_id)
        report.say(f"registered project {parts.PROJECT}, image {image_id}, keys in {files.env}")
        client = Ec2Client(credentials)
        _Demo(report, config, files, process, store, image_id, client, as_json).run()
    finally:
        store.close()


def _name_what_stays(config: Config) -> None:
    from appliance import node_process

    process = node_process.find(config.run_dir)
    if process:
        what = f"The node (process {process.pid}) goes on"
        click.echo(f"{what}; `{program_name()} demo down` removes it.", err=True)


class _Demo:
    """The second half: an instance through the EC2 API."""

    def __init__(
        self,
        report: Report,
        config: Config,
        files: Files,
        process: NodeProcess,
        store: Store,
        image_id: str,
        client: Ec2Client,
        as_json: bool,
    ) -> None:
        self._report = report
        self._config = config
        self._files = files
        self._process = process
        self._store = store
        self._image_id = image_id
        self._client = client
        self._as_json = as_json

    def run(self) -> None:
        from appliance import demo as parts

        with self._report.step("prepare security group and key pair", self._process.log_path):
            parts.ensure_rules(self._client)
            fingerprint = parts.ensure_key_pair(self._client, self._files)
        with self._report.step("launch an instance", self._process.log_path):
            instance_id, is_new = self._ensure_instance(fingerprint)
        if not self._as_json:
            say("")
        address = self._wait_until_running(instance_id)
        self._report.say(f"wait until {instance_id} answers SSH at {address}")
        program = program_name()
        look = f"`{program} console {instance_id}` and `{program} trace {instance_id}`"
        with self._report.step("log in to the instance", look), self._spinner():
            parts.wait_for_ssh(
                self._files,
                address,
                lambda: parts.check_running(self._client, instance_id),
            )
        self._report.say("it answers")
        self._show(instance_id, address, is_new)

    def _ensure_instance(self, fingerprint: str) -> tuple[str, bool]:
        from appliance import demo as parts

        one = parts.find_instance(self._client, fingerprint)
        if one is None:
            token = str(uuid.uuid4())
            made = parts.launch_instance(self._client, self._image_id, fingerprint, token)
            self._report.say(f"launched {made}")
            return made, True
        instance_id, state = str(one["InstanceId"]), one["State"]["Name"]
        self._report.say(f"found {instance_id}, {state}")
        if state == "stopping":
            deadline_s = self._config.compute.shutdown_s + parts.STOP_MARGIN_S
            state = parts.wait_while_stopping(self._client, instance_id, deadline_s)
        if state == "stopped":
            self._client.call("StartInstances", InstanceIds=[instance_id])
            self._report.say(f"started {instance_id} again")
        return instance_id, False

    def _wait_until_running(self, instance_id: str) -> str:
        from appliance import demo as parts
        from appliance.cli import follow
        from appliance.errors import Unavailable

        if self._as_json:
            line = follow.wait_until_settled(self._store, instance_id, parts.LAUNCH_S)
        else:
            line = follow.follow_timeline(
                self._store, instance_id, deadline_s=parts.LAUNCH_S, is_last_only=True
            )
            say("")
        if line is None or line.state != "running" or not line.addresses:
            state = line.state if line else "gone"
            reason = (line.reason_message if line else "") or f"it is {state}"
            look = f"`{program_name()} trace {instance_id}` and {self._process.log_path}"
            raise Unavailable(f"Could not launch {instance_id}: {reason}", hint=f"Look at {look}.")
        return line.addresses[0]

    @contextmanager
    def _spinner(self) -> Iterator[None]:
        target = console()
        if self._as_json or not target.is_terminal:
            yield
            return
        with target.status("booting"):
            yield

    def _show(self, instance_id: str, address: str, is_new: bool) -> None:
        from appliance import demo as parts

        program = program_name()
        lines = parts.last_lines(self._client.console(instance_id))
        command = shlex.join(parts.ssh_command(self._files, address))
        endpoint = self._client.credentials.endpoint
        if self._as_json:
            print_json(
                {
                    "instance_id": instance_id,
                    "is_new": is_new,
                    "address": address,
                    "image_id": self._image_id,
                    "ssh": command,
                    "console": lines,
                    "endpoint_url": endpoint,
                    "env_file": str(self._files.env),
                    "node_pid": self._process.pid,
                    "log": self._process.log_path,
                }
            )
            return
        say("")
        say(f"The last lines of its console (`{program} console {instance_id}` shows more):")
        for line in lines:
            say(f"  | {printable(line)}")
        say("")
        say(f"Instance   {instance_id} at {address}")
        say(f"Log in     {command}")
        say(f"EC2 API    {endpoint}")
        say(f"Use it     . {self._files.env} && aws ec2 describe-instances")
        say(f"Timeline   {program} trace {instance_id}")
        say(f"Node       process {self._process.pid}, log {self._process.log_path}")
        say(f"Stop it    make stop, or {program} demo down: removes the node and its instances")


@demo.command("down", short_help="Stop the node and remove everything it made.")
@json_option
@pass_access
def down(access: Access, as_json: bool) -> None:
    """Stop that node and remove everything it made: instances, rules, links, state.

    Packages, .venv and the caches stay. Safe to repeat, also after the node was killed.
    """
    from appliance import demo as parts
    from appliance import teardown
    from appliance.config import load_config

    report = Report(is_quiet=as_json)
    files = files_of(access)
    removed: list[str] = []
    # Without a file of its own only the unnamed demo has the default folders.
    if files.config.exists() or not named_path(access):
        config = load_config(files.config if files.config.exists() else None)
        check_apart(config)
        parts.check_root()
        check_own(config, files)
        removed += stop_node(config, report)
        removed += teardown.tear_down(config, say=report.say)
    for path in parts.remove_files(files):
        report.say(f"removed {path}")
        removed.append(path)
    if as_json:
        print_json({"removed": removed})
    elif not removed:
        say("There was nothing to stop.")
    else:
        say("All of it is gone; packages, .venv and caches stay.")


def stop_node(config: Config, report: Report) -> list[str]:
    """End the node's process, if one runs; return what was ended."""
    from appliance import node_process

    process = node_process.find(config.run_dir)
    if process is None:
        return []
    report.say(f"stop the node, process {process.pid}")
    if not node_process.stop(process):
        report.say("it did not end by itself and was killed")
    return [f"process {process.pid}"]
