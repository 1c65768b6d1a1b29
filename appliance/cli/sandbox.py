"""``anynode sandbox``: an EC2 endpoint without instances behind it, in the foreground."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.access import Access, pass_access
from appliance.cli.output import program_name, say

if TYPE_CHECKING:
    from appliance.cli.signals import Signals

_LOOK_EVERY_S = 0.5


@click.command("sandbox", short_help="Run an EC2 endpoint without instances behind it.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8773,
    show_default=True,
    help="TCP port of the API on 127.0.0.1; 0 for one that is free.",
)
@click.option("--region", default="us-east-1", show_default=True, help="Name of the region.")
@click.option(
    "--zones",
    default="a,b",
    show_default=True,
    help="Availability zones: letters that follow the region's name, or full names.",
)
@click.option(
    "--account",
    default="123456789012",
    show_default=True,
    metavar="DIGITS",
    help="Account number, twelve digits, that owners are shown with.",
)
@click.option(
    "--types",
    "types_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help='TOML file of instance types, e.g. [types."x1.huge"] with vcpus, memory_mib and '
    "disk_gib; they replace or follow the built-in ones, only = true leaves those out.",
)
@click.option(
    "--nodes",
    type=click.IntRange(1, 100),
    help="Machines to pretend, spread over the zones in turn; else one per zone.",
)
@click.option(
    "--env-file",
    type=click.Path(path_type=Path),
    default=Path("sandbox.env"),
    show_default=True,
    help="Env file, written when the API answers and removed at the end.",
)
@click.option(
    "--transition",
    "transition_s",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="How long each change of an instance's power takes.",
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that keeps everything for the next time; else one that is removed at the end, in "
    "$TMPDIR, in memory, or in /tmp.",
)
@click.option(
    "--end-with",
    "parent_pid",
    type=click.IntRange(min=1),
    metavar="PID",
    help="End when that process has ended, too.",
)
@pass_access
def sandbox(
    access: Access,
    port: int,
    region: str,
    zones: str,
    account: str,
    types_file: Path | None,
    nodes: int | None,
    env_file: Path,
    transition_s: float,
    state: Path | None,
    parent_pid: int | None,
) -> None:
    """Run an EC2 endpoint that only pretends to run instances, until SIGTERM or Ctrl-C.

    It is the node with fakes of hypervisor, network and firewall: no root, no libvirt, nothing
    changed on this machine. An access key in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is
    adopted, else one is made. No configuration file is read.
    """
    from appliance import log
    from appliance import sandbox as parts
    from appliance.cli.signals import Signals

    log.to_stderr("DEBUG" if access.is_debugging else "WARNING")
    signals = Signals()
    names = parts.zone_names(region, zones)
    options = parts.Options(
        port=port,
        region=region,
        zones=names,
        nodes=nodes or len(names),
        account=account,
        transition_s=transition_s,
        types_file=types_file,
    )
    env = parts.EnvFile(env_file)
    env.check()
    with parts.folder_of(state) as folder:
        running = parts.Sandbox(options, folder, survives=state is not None, key=_own_key())
        try:
            running.start()
            signals.up()
            env.write(running)
            for line in parts.usage(running, env_file, program_name()):
                say(line)
            if parent_pid:
                _end_with(parent_pid, signals)
            signals.wait()
        finally:
            env.remove()
            running.stop()


def _own_key() -> tuple[str, str] | None:
    access_key_id = os.environ.get("AWS_ACCESS_KEY_ID", "")
    secret = os.environ.get("AWS_SECRET_ACCESS_KEY", "")
    return (access_key_id, secret) if access_key_id and secret else None


def _end_with(pid: int, signals: Signals) -> None:
    from appliance.node_process import start_ticks

    began = start_ticks(pid)

    def watch() -> None:
        while began and start_ticks(pid) == began:
            time.sleep(_LOOK_EVERY_S)
        signals.ask()

    threading.Thread(target=watch, name="end-with", daemon=True).start()
