"""``anynode status``: whether the node runs, and how it is."""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.access import Access, pass_access
from appliance.cli.output import json_option, print_json, print_table, say, span

if TYPE_CHECKING:
    from appliance.model import NodeView
    from appliance.node_process import NodeProcess
    from appliance.store import Transaction
    from appliance.store.nodes import NodeStatus


@click.command("status", short_help="Say whether the node runs, and how it is.")
@json_option
@pass_access
@click.pass_context
def status(context: click.Context, access: Access, as_json: bool) -> None:
    """Say whether the node runs, what it has and what it does; exit status 1 when it does not."""
    from appliance import node_process

    process = node_process.find(access.config.run_dir)
    found: dict[str, Any] = {
        "is_running": process is not None,
        "is_up": bool(process and process.is_up and node_process.answers(process)),
        "process": process,
        "config_path": str(access.config_path or ""),
        "versions": _versions(),
        **access.read(_cluster),
    }
    if as_json:
        print_json(found)
    else:
        _show(access, process, found)
    context.exit(0 if process else 1)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"anynode": version("anynode"), "python": platform.python_version()}


def _cluster(tx: Transaction) -> dict[str, Any]:
    from appliance.store import nodes, overview

    views = {view.node_id: view for view in nodes.views(tx)}
    return {
        "nodes": [_node(one, views.get(one.node_id), tx.now) for one in nodes.status(tx)],
        "instances": overview.count_states(tx),
        "queue": overview.queue_depth(tx),
    }


def _node(one: NodeStatus, view: NodeView | None, now: float) -> dict[str, Any]:
    capacity = one.capacity
    return {
        "node_id": one.node_id,
        "name": one.name,
        "zone": one.zone,
        "roles": list(one.roles),
        "is_up": one.is_up,
        "silent_s": round(now - one.seen_at, 1) if one.seen_at else None,
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
    }


def _show(access: Access, process: NodeProcess | None, found: dict[str, Any]) -> None:
    where = found["config_path"] or "the defaults"
    if process is None:
        say(f"No node runs (settings: {where}). `anynode run --detach` starts one.")
    else:
        word = "up" if found["is_up"] else "starting"
        say(
            f"The node is {word}: process {process.pid}, for "
            f"{span(time.time() - process.started_at)}, release {process.version}."
        )
        say(f"EC2        {process.endpoint or 'not served here'}")
        say(f"Log        {process.log_path or 'standard error'}")
        say(f"Settings   {where}")
    counts = found["instances"]
    text = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    say(f"Instances  {text or 'none'}")
    queue = found["queue"]
    say(f"Messages   {queue.pending} pending, {queue.dead} dead")
    say("")
    rows = [
        (
            one["name"],
            one["zone"],
            ("up" if one["is_up"] else "down") if process else "not running",
            accelerator_words(one["accelerator"]),
            f"{one['vcpus_claimed']} of {one['vcpus']}",
            f"{one['memory_claimed_mib']:,} of {one['memory_mib']:,}",
            f"{one['disk_claimed_gib']:,} of {one['disk_gib']:,}",
            " ".join(one["roles"]),
        )
        for one in found["nodes"]
    ]
    print_table(
        ("node", "zone", "state", "runs on", "vcpus", "memory MiB", "disk GiB", "roles"),
        rows,
        "No node has joined yet.",
    )


def accelerator_words(accelerator: str) -> str:
    """Return what makes instances run, in words."""
    return {"kvm": "KVM", "tcg": "QEMU emulation (slow: no KVM)", "": "unknown"}.get(
        accelerator, accelerator
    )
