"""``anynode node``: the nodes of a cluster, and whether they take instances."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from appliance.cli.access import Access, pass_access
from appliance.cli.output import json_option, moment, print_json, print_table, say, span

if TYPE_CHECKING:
    from appliance.model import NodeView
    from appliance.store import Transaction
    from appliance.store.nodes import NodeStatus


@click.group(short_help="See and change the nodes of a cluster.")
def node() -> None:
    """See the nodes of a cluster, keep instances away from them, remove them."""


@node.command("list", short_help="List the nodes and how they are.")
@json_option
@pass_access
def list_nodes(access: Access, as_json: bool) -> None:
    """List the nodes: what they do, since when they are up or down, and why a role does not run."""
    found = access.read(described)
    if as_json:
        print_json(found)
        return
    print_table(
        ("node", "zone", "state", "load", "instances", "release", "roles"),
        [_row(one) for one in found],
        "No node has joined yet.",
    )
    print_problems(found)


def print_problems(found: list[dict[str, Any]]) -> None:
    """Say of each role that should run and does not why."""
    for one in found:
        for role, problem in one["problems"].items():
            say(f"{one['name']}: {role} does not run: {problem}")


def described(tx: Transaction) -> list[dict[str, Any]]:
    """Return all that is known of each node, by name."""
    from appliance.store import nodes

    views = {view.node_id: view for view in nodes.views(tx)}
    return [_described(one, views.get(one.node_id), tx.now) for one in nodes.status(tx)]


def _described(one: NodeStatus, view: NodeView | None, now: float) -> dict[str, Any]:
    capacity, condition = one.capacity, one.condition
    return {
        "node_id": one.node_id,
        "name": one.name,
        "zone": one.zone,
        "address": one.address,
        "roles": list(one.roles),
        "running_roles": list(condition.roles),
        "problems": condition.problems,
        "is_control": one.is_control,
        "accepts_instances": one.accepts_instances,
        "is_up": one.is_up,
        "changed_at": one.changed_at or None,
        "silent_s": round(now - one.seen_at, 1) if one.seen_at else None,
        "release": condition.release,
        "versions": list(condition.versions),
        "hypervisor": capacity.hypervisor if capacity else "",
        "accelerator": capacity.accelerator if capacity else "",
        "load_1m": capacity.load_1m if capacity else None,
        "vcpus": view.vcpus if view else 0,
        "vcpus_claimed": view.vcpus_claimed if view else 0,
        "memory_mib": view.memory_mib if view else 0,
        "memory_claimed_mib": view.memory_claimed_mib if view else 0,
        "disk_gib": view.disk_gib if view else 0,
        "disk_claimed_gib": view.disk_claimed_gib if view else 0,
        "instances": view.instances if view else 0,
        "approved": dict(zip(("vcpus", "memory_mib", "disk_gib"), one.approved, strict=True)),
    }


def state_words(one: dict[str, Any]) -> str:
    """Return whether a node is up, since when, and that it takes no instances."""
    words = "up" if one["is_up"] else "down" if one["changed_at"] else "never seen"
    since = f" since {moment(one['changed_at'])}" if one["changed_at"] else ""
    silent = ""
    if not one["is_up"] and one["silent_s"] is not None:
        silent = f", silent for {span(one['silent_s'])}"
    drained = "" if one["accepts_instances"] else ", drained"
    return f"{words}{since}{silent}{drained}"


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    return (
        one["name"],
        one["zone"],
        state_words(one),
        "" if one["load_1m"] is None else f"{one['load_1m']:.2f}",
        str(one["instances"]),
        one["release"],
        role_words(one),
    )


def role_words(one: dict[str, Any]) -> str:
    """Return the roles of a node; in brackets those that it shall have and has not yet."""
    running = [name for name in one["running_roles"] if name != "member"]
    waiting = [f"({name})" for name in one["roles"] if name not in running]
    return " ".join([*running, *waiting])


@node.command(short_help="Let a node take no new instances.")
@click.argument("name")
@json_option
@pass_access
def drain(access: Access, name: str, as_json: bool) -> None:
    """Let a node take no new instances; those that it has stay until they are terminated."""
    _drain(access, name, as_json, is_drained=True)


@node.command(short_help="Let a node take instances again.")
@click.argument("name")
@json_option
@pass_access
def undrain(access: Access, name: str, as_json: bool) -> None:
    """Let a drained node take instances again."""
    _drain(access, name, as_json, is_drained=False)


def _drain(access: Access, name: str, as_json: bool, *, is_drained: bool) -> None:
    from appliance.cluster import changes

    action = "DrainNode" if is_drained else "UndrainNode"
    access.change(action, name, lambda tx: changes.drain(tx, name, is_drained=is_drained))
    found = _one(access, name)
    if as_json:
        print_json(found)
    elif is_drained:
        say(f"{found['name']} takes no new instances; it has {found['instances']}.")
    else:
        say(f"{found['name']} takes instances.")


def _one(access: Access, name: str) -> dict[str, Any]:
    found = access.read(described)
    return next(one for one in found if name in (one["name"], one["node_id"]))


@node.command(short_help="Set how much a node may offer to instances.")
@click.argument("name")
@click.option("--vcpus", type=click.IntRange(min=0), help="Most vcpus; else no limit.")
@click.option("--memory-mib", type=click.IntRange(min=0), help="Most MiB of memory.")
@click.option("--disk-gib", type=click.IntRange(min=0), help="Most GiB of disk.")
@json_option
@pass_access
def approve(
    access: Access,
    name: str,
    vcpus: int | None,
    memory_mib: int | None,
    disk_gib: int | None,
    as_json: bool,
) -> None:
    """Set the most that a node may offer to instances, whatever it says that it has.

    What is not named has no limit. It counts from the node's next heartbeat on; instances that it
    has already stay.
    """
    from appliance.cluster import changes

    access.change(
        "ApproveNode",
        name,
        lambda tx: changes.approve(tx, name, vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib),
    )
    found = _one(access, name)
    if as_json:
        print_json(found)
        return
    limits = ", ".join(
        f"{what.replace('_', ' ')} {'as it has' if most is None else most}"
        for what, most in found["approved"].items()
    )
    say(f"{found['name']} may offer: {limits}.")


@node.command(short_help="Remove a node from the cluster.")
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
@pass_access
def remove(access: Access, name: str, yes: bool, as_json: bool) -> None:
    """Remove a node from the cluster: its certificate and its login stop working at once.

    It must have no instances. To bring it back, let it join anew. Safe to repeat.
    """
    from appliance.cluster import brokers, changes, logins
    from appliance.cluster.management import Management

    if not yes and not as_json:
        click.confirm(f"Remove {name} from the cluster?", abort=True)
    keys = access.seal()
    node_id = access.change("RemoveNode", name, lambda tx: changes.remove(tx, name))
    for broker in access.read(lambda tx: brokers.all_access(tx, keys)):
        logins.Logins(Management(broker)).remove(node_id)
    if as_json:
        print_json({"node_id": node_id, "name": name})
    else:
        say(f"{name} is no longer a node of this cluster.")
