"""``anynode run``: a node, in the foreground or in the background."""

from __future__ import annotations

import faulthandler
from pathlib import Path

import click

from appliance.cli.access import Access, pass_access
from appliance.cli.output import say

END_S = 45.0
"""Seconds after which a node that was told to stop ends, whatever still hangs."""


@click.command("run", short_help="Run a node, here or in the background.")
@click.option("--detach", is_flag=True, help="Start it in the background and wait until it is up.")
@click.option(
    "--log-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Log to this file; else to node.log_file, else to standard error.",
)
@pass_access
def run(access: Access, detach: bool, log_file: Path | None) -> None:
    """Run a node until SIGTERM or Ctrl-C; its instances go on without it."""
    if detach:
        _start_in_background(access)
    else:
        _run(access, log_file)


def _start_in_background(access: Access) -> None:
    from appliance import node_process
    from appliance.errors import Conflict

    running = node_process.find(access.config.run_dir)
    if running:
        raise Conflict(
            f"A node runs already (process {running.pid}).", hint="`anynode status` shows it."
        )
    process = node_process.start(access.config, access.config_path)
    say(f"The node is up (process {process.pid}){_endpoint_words(process.endpoint)}.")
    say(f"Its log is {process.log_path}; `kill {process.pid}` stops it, its instances go on.")


def _endpoint_words(endpoint: str) -> str:
    return f"; EC2 is on {endpoint}" if endpoint else ""


def _run(access: Access, log_file: Path | None) -> None:
    from appliance import crash_points, log, node_process
    from appliance.cli.signals import Signals
    from appliance.ending import end_process
    from appliance.node import Node
    from appliance.world import World

    config = access.config
    settings = config.node
    path = log_file or (Path(settings.log_file) if settings.log_file else None)
    level = "DEBUG" if access.is_debugging else settings.log_level
    if path:
        log.to_file(path, level)
    else:
        log.to_stderr(level)
    signals = Signals()
    node = Node(config, World(crash=crash_points.from_environment()))
    process = node_process.this_process(config, access.config_path, path)
    with node_process.recorded(process, config.run_dir) as write:
        try:
            node.start()
            signals.up()
            write(node_process.up(process))
            signals.wait()
        finally:
            # This watchdog needs no other thread. That its end is a hard one does no harm, and
            # what everybody waited for is on standard error.
            faulthandler.dump_traceback_later(END_S, exit=True)
            node.stop()
    end_process()
