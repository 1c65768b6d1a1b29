"""``anynode token``: tokens with which machines join the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli.access import Access, operator_name, pass_access
from appliance.cli.output import (
    json_option,
    moment,
    print_json,
    print_table,
    program_name,
    say,
    span,
)
from appliance.cli.when import Duration

if TYPE_CHECKING:
    from appliance.cluster.tokens import Token


@click.group(short_help="Tokens with which machines join the cluster.")
def token() -> None:
    """Tokens with which machines join the cluster; each lets in one machine, for some hours."""


@token.command("create", short_help="Make a token; it is printed once.")
@click.option(
    "--node",
    "node_name",
    default="",
    metavar="NAME",
    help="Only a machine that joins under this name may use it; else any may.",
)
@click.option(
    "--valid",
    "valid_s",
    type=Duration(),
    default=3 * 3600.0,
    help="How long it can be used, e.g. 30m; 3h unless said.",
)
@json_option
@pass_access
def create(access: Access, node_name: str, valid_s: float, as_json: bool) -> None:
    """Make a token that lets one machine join, and print it. It is not shown again.

    Who has it can bring a machine of theirs into the cluster: hand it over like a password. It
    names this node, which has to be reachable from the machine that joins.
    """
    from appliance.store import join_tokens

    made = _make(access)
    access.change(
        "CreateJoinToken",
        f"{made.token_id} {node_name}".strip(),
        lambda tx: join_tokens.create(
            tx, made, created_by=operator_name(), valid_s=valid_s, node_name=node_name
        ),
    )
    if as_json:
        print_json(
            {
                "token": made.text,
                "token_id": made.token_id,
                "node_name": node_name,
                "valid_s": valid_s,
            }
        )
        return
    click.echo(made.text)
    who = f"the machine called {node_name}" if node_name else "one machine"
    click.echo(
        f"It lets {who} join within {span(valid_s)}: run there `{program_name()} join -` and paste "
        f"it. `{program_name()} token revoke {made.token_id}` ends it before.",
        err=True,
    )


def _make(access: Access) -> Token:
    from appliance.cluster import certificates, settings, tokens
    from appliance.cluster.decided import joined_address
    from appliance.errors import ConfigError
    from appliance.store import cluster_facts

    told = settings.read(settings.folder_of(access.config.state_dir))
    text = access.read(lambda tx: cluster_facts.find(tx, cluster_facts.AUTHORITY))
    if text is None:
        raise ConfigError("This store belongs to no cluster.", hint="`anynode init` makes one.")
    if "controller" not in told.roles:
        raise ConfigError(
            "This node lets no machine in: it does not have the role controller.",
            hint="Run the command on a node that has it.",
        )
    fingerprint = certificates.fingerprint(certificates.read_certificate(text))
    return tokens.make(joined_address(told.address, told.port), fingerprint)


@token.command("list", short_help="List the tokens of the last 30 days.")
@json_option
@pass_access
def list_all(access: Access, as_json: bool) -> None:
    """List the tokens of the last 30 days, without their secrets, and what became of them."""
    from appliance.store import join_tokens

    found = access.read(join_tokens.list_all)
    if as_json:
        print_json(found)
        return
    print_table(
        ("id", "state", "for", "made by", "made", "ends", "used by"),
        [
            (
                one.token_id,
                one.state,
                one.node_name or "any",
                one.created_by,
                moment(one.created_at),
                moment(one.expires_at),
                one.used_by or "",
            )
            for one in found
        ],
        "There are no tokens; `anynode token create` makes one.",
    )


@token.command("revoke")
@click.argument("token_id")
@pass_access
def revoke(access: Access, token_id: str) -> None:
    """Let a token no longer be used; a node that has used it stays a member."""
    from appliance.store import join_tokens

    access.change("RevokeJoinToken", token_id, lambda tx: join_tokens.revoke(tx, token_id))
    say(f"Revoked token {token_id}.")
