"""``python -m tests.simulation SEED``: live through histories, and tell those that broke."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from pathlib import Path

import click

from tests.simulation.history import Broken, History, make_template


@click.command()
@click.argument("seed", type=int)
@click.option("--count", default=1, show_default=True, help="Histories, from that seed on.")
@click.option("--story", is_flag=True, help="Tell what happened also when all went well.")
def main(seed: int, count: int, story: bool) -> None:
    """Live through histories; the exit status is 1 when one was broken."""
    logging.disable(logging.CRITICAL)
    broken = 0
    began = time.process_time()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        template = make_template(Path(name))
        for one in range(seed, seed + count):
            history = History(one, template, Path(name) / str(one))
            try:
                history.run()
            except Broken as error:
                broken += 1
                click.echo(str(error))
            else:
                if story:
                    click.echo("\n".join(history.log))
    spent_s = time.process_time() - began
    click.echo(f"{count} histories, {broken} broken, {spent_s:.1f} s of CPU")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
