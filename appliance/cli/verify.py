"""``anynode verify``: whether what is, is what should be."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import click

from appliance.cli.access import Access, pass_access
from appliance.cli.output import json_option, print_json, print_table, say

if TYPE_CHECKING:
    from appliance.model import Finding

FOUND_ERRORS = 3
"""Exit status when errors were found."""


@click.command("verify", short_help="Compare what is with what should be.")
@click.option(
    "--cluster",
    "of_cluster",
    is_flag=True,
    help="All nodes, and what only the whole shows; on a node with a role of the store.",
)
@click.option("--fix", "is_fixing", is_flag=True, help="Repair what can be repaired safely.")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Look again until nothing is wrong, so long at most.",
)
@click.option("--ignore", "ignored", multiple=True, metavar="CODE", help="May be repeated.")
@json_option
@pass_access
@click.pass_context
def verify(
    context: click.Context,
    access: Access,
    of_cluster: bool,
    is_fixing: bool,
    wait_s: float | None,
    ignored: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compare records, processes, links, rules and files with what should be there.

    Exit status 3 when errors are found; warnings alone are no failure. The codes are stable, and
    those of --ignore are left out.

    With --cluster, what is on a node that is down is not looked at, and secrets are looked for on
    this node only.
    """
    from appliance import verify as checks

    _check_codes(ignored, checks.CODES)
    if of_cluster and is_fixing:
        raise click.UsageError("--fix repairs the node that it is run on: leave --cluster out.")
    config = access.config
    if wait_s is None:
        found = checks.check(config, of_cluster=of_cluster)
    else:
        found = checks.wait(config, wait_s, of_cluster=of_cluster)
    done: Sequence[str] = ()
    if is_fixing and found:
        done = checks.fix(config, _without(found, ignored))
        found = checks.check(config)
    found = _without(found, ignored)
    errors = checks.errors(found)
    if as_json:
        print_json({"findings": found, "fixed": done, "errors": len(errors)})
    else:
        _show(found, done)
    context.exit(FOUND_ERRORS if errors else 0)


def _check_codes(ignored: Sequence[str], known: Collection[str]) -> None:
    unknown = [code for code in ignored if code not in known]
    if unknown:
        raise click.BadParameter(
            f"There is no code {', '.join(unknown)}; there are {', '.join(sorted(known))}.",
            param_hint="--ignore",
        )


def _without(found: Sequence[Finding], ignored: Sequence[str]) -> list[Finding]:
    return [finding for finding in found if finding.code not in ignored]


def _show(found: Sequence[Finding], done: Sequence[str]) -> None:
    for deed in done:
        say(f"fixed: {deed}")
    rows = [(one.level, one.code, one.subject, one.message, one.fix) for one in found]
    print_table(
        ("level", "code", "subject", "what is wrong", "what --fix would do"),
        rows,
        "Everything is as it should be.",
    )
