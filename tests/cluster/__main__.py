"""``make cluster`` and ``make cluster-stop``: three nodes on this machine, and all of it gone.

``make cluster ARGS="--fake N"`` lets N simulated compute nodes join them.

The machines are rigs: they end with the process that holds them. ``up`` leaves that process in
the background and shows what it does until the cluster is there.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from types import FrameType

import click

from appliance.env_file import path_line, write_whole
from appliance.node_process import start_ticks
from tests.cluster.cluster import Cluster
from tests.cluster.region import KEY_NAME, Region
from tests.cluster.simulated import MOST, PLENTY, ZONE, Simulated
from tests.rig import ROOT, wait_for

FOLDER = ROOT / "var" / "cluster"
RECORD = FOLDER / "keeper.json"
ENV = ROOT / "var" / "anynode.env"
KEY = FOLDER / f"{KEY_NAME}.pem"
_DONE = "--done--"


@click.group()
def main() -> None:
    """Three nodes on one machine, to try a cluster out."""


@main.command()
@click.option(
    "--nodes",
    type=click.IntRange(1, 9),
    default=3,
    show_default=True,
    help="Nodes with libvirt.",
)
@click.option(
    "--fake",
    type=click.IntRange(0, MOST),
    default=0,
    show_default=True,
    metavar="N",
    help=f"Simulated compute nodes that join them, at most {MOST}, in the availability zone "
    f"{ZONE}. Instances there are only pretended: they boot nothing.",
)
def up(nodes: int, fake: int) -> None:
    """Begin a cluster, let the others join, start an instance on each, and ping between them.

    Needs root. It stays until `make cluster-stop`, which removes all of it; so does Ctrl-C before
    it is there.
    """
    if os.geteuid() != 0:
        raise click.ClickException("It makes namespaces, which only root may do: run it as root.")
    keeper = find_keeper()
    if keeper:
        raise click.ClickException(
            f"A cluster is up already (process {keeper}): `make cluster-stop` removes it."
        )
    FOLDER.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        os.setsid()
        os._exit(keep(nodes, fake, writing))
    os.close(writing)
    relay(pid, reading)


def relay(pid: int, reading: int) -> None:
    """Show what the keeper says until the cluster is there; Ctrl-C ends the keeper, too."""
    try:
        with os.fdopen(reading, encoding="utf-8") as lines:
            for line in lines:
                if line.rstrip("\n") == _DONE:
                    return
                click.echo(line, nl=False)
    except KeyboardInterrupt:
        click.echo("Interrupted: removing what there is.", err=True)
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        raise
    os.waitpid(pid, 0)
    raise click.ClickException("The cluster did not come up; what it had made is gone.")


class _EndedError(Exception):
    """The keeper was told to end."""


def keep(nodes: int, fake: int, writing: int) -> int:
    """Hold the machines until a signal comes; return an exit status."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise _EndedError

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    started = time.monotonic()

    def say(text: str = "", *, is_timed: bool = True) -> None:
        prefix = f"[{time.monotonic() - started:5.1f} s] " if is_timed else ""
        os.write(writing, f"{prefix}{text}\n".encode())

    # What programs print must not reach whoever started this and has gone.
    log = os.open(FOLDER / "keeper.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    record = {"pid": os.getpid(), "started_ticks": start_ticks(os.getpid())}
    RECORD.write_text(json.dumps(record))
    names = [f"n{number}" for number in range(1, nodes + 1)]
    try:
        with (
            Cluster(names, say, PLENTY if fake else "") as cluster,
            Simulated(cluster, fake, say) as simulated,
        ):
            Show(cluster, simulated, say).run()
            os.write(writing, f"{_DONE}\n".encode())
            os.close(writing)
            while True:
                signal.pause()
    except _EndedError:
        return 0
    except Exception as error:
        say(f"failed: {error}")
        for machine in cluster.machines:
            say(f"--- {machine.name} said last:\n{machine.last_words(1500)}", is_timed=False)
        return 1
    finally:
        for path in (RECORD, ENV, KEY):
            path.unlink(missing_ok=True)


class Show:
    """What ``up`` does with its machines."""

    def __init__(self, cluster: Cluster, simulated: Simulated, say: Callable[..., None]) -> None:
        self._cluster = cluster
        self._simulated = simulated
        self._say = say

    def run(self) -> None:
        """Form the cluster, launch, ping, let the simulated nodes join, tell."""
        cluster, say = self._cluster, self._say
        cluster.reach_from_host()
        cluster.form()
        say("make a project, and import the demo image")
        region = Region(cluster, FOLDER, say)
        self._write_env(region)
        region.ping_all(region.launch_on_each())
        if self._simulated.names:
            self._simulated.join()
            [one] = region.launch(Placement={"AvailabilityZone": ZONE})
            say(f"{one['InstanceId']} is a pretended one, in zone {ZONE}")
        say(is_timed=False)
        say(cluster.first.cli("status"), is_timed=False)
        say(f"EC2 API    {', '.join(one.endpoint for one in cluster.machines)}", is_timed=False)
        say(f"Use it     . {ENV.relative_to(ROOT)} && aws ec2 describe-instances", is_timed=False)
        say("Stop it    make cluster-stop", is_timed=False)

    def _write_env(self, region: Region) -> None:
        others = " ".join(one.endpoint for one in self._cluster.machines)
        more = {"ANYNODE_IMAGE": region.image_id, "ANYNODE_ENDPOINTS": others}
        if self._simulated.names:
            more["ANYNODE_SIMULATED_ZONE"] = ZONE
        lines = region.client().credentials.env_lines(more)
        write_whole(ENV, lines + path_line(), mode=0o600)


def find_keeper() -> int:
    """Return the process that holds the machines; 0 when there is none."""
    try:
        record = json.loads(RECORD.read_text())
    except (FileNotFoundError, ValueError):
        return 0
    pid = int(record["pid"])
    return pid if start_ticks(pid) == record["started_ticks"] else 0


@main.command()
def down() -> None:
    """Remove the machines and everything in them. Safe to repeat."""
    pid = find_keeper()
    if pid:
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not find_keeper(), 60, f"process {pid} to end")
    RECORD.unlink(missing_ok=True)
    click.echo("The cluster is gone." if pid else "There is no cluster to stop.")


if __name__ == "__main__":
    main()
