"""``anynode status``: whether the node runs, and how it is."""

from __future__ import annotations

import os
import platform
import time
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.access import Access, pass_access
from appliance.cli.node import described, print_problems, role_words, state_words
from appliance.cli.output import json_option, moment, print_json, print_table, say, span

if TYPE_CHECKING:
    from appliance.cluster.membership import Removal
    from appliance.node_process import NodeProcess
    from appliance.store import Transaction


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
        "services": _services(access),
        **_cluster(access),
    }
    if as_json:
        print_json(found)
    else:
        _show(process, found)
    context.exit(0 if process else 1)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"anynode": version("anynode"), "python": platform.python_version()}


def _services(access: Access) -> list[dict[str, Any]]:
    """Return what this node runs for its cluster; ``pid`` is 0 when it does not run."""
    from appliance.cluster import services

    made = [one for one in services.both(access.config.state_dir) if one.exists]
    processes = [(one.name, one.process()) for one in made]
    return [{"name": name, "pid": process.pid if process else 0} for name, process in processes]


def _cluster(access: Access) -> dict[str, Any]:
    """Return what the store knows; of a cluster whose store is away what this node has heard."""
    from appliance.cluster.settings import is_member
    from appliance.errors import Unavailable

    removal = _removal(access)
    if removal:
        return {**_from_members(access), "removal": removal}
    if not _reaches_store(access):
        return _from_members(access)
    try:
        return access.read(_from_store)
    except Unavailable as error:
        if not is_member(access.config):
            raise
        return {**_from_members(access), "problem": error.message}


def _removal(access: Access) -> Removal | None:
    from appliance.cluster.membership import Membership

    cluster = Membership.of(access.config.state_dir)
    return cluster.removal if cluster else None


def _reaches_store(access: Access) -> bool:
    from appliance.cluster.membership import Membership
    from appliance.role import STORE_ROLES

    is_alone = Membership.of(access.config.state_dir) is None
    return is_alone or bool(STORE_ROLES.intersection(access.config.node.roles))


def _from_store(tx: Transaction) -> dict[str, Any]:
    from appliance.store import overview

    return {
        "source": "store",
        "nodes": described(tx),
        "instances": overview.count_states(tx),
        "queue": overview.queue_depth(tx),
    }


def _from_members(access: Access) -> dict[str, Any]:
    """Return what a node without the store knows of its cluster: the last list of members."""
    from appliance.cluster.membership import Membership
    from appliance.messages import Members

    membership = Membership.of(access.config.state_dir)
    current = membership.members.current if membership else Members(revision=-1)
    return {
        "source": "members",
        "revision": current.revision,
        "nodes": [
            {
                "node_id": one.node_id,
                "name": one.name,
                "zone": one.zone,
                "address": one.address,
                "roles": list(one.roles),
                "is_control": one.is_control,
                "is_up": one.is_up,
            }
            for one in current.members
        ],
        "instances": None,
        "queue": None,
        "here": _here(access),
    }


def _here(access: Access) -> dict[str, Any]:
    """Return what this machine alone can say of itself: its load, and the instances it holds."""
    from collections import Counter

    import msgspec

    from appliance.compute.record import HELD, Held
    from appliance.journal import read_journal

    kept = read_journal(access.config.state_dir / "compute.sqlite").get(HELD, {})
    held = [msgspec.json.decode(text, type=Held) for text in kept.values()]
    specs = [one.spec for one in held if one.spec]
    return {
        "load_1m": round(os.getloadavg()[0], 2),
        "cpus": os.cpu_count() or 0,
        "instances": dict(Counter(one.state for one in held)),
        "vcpus_held": sum(spec.vcpus for spec in specs),
        "memory_held_mib": sum(spec.memory_mib for spec in specs),
    }


def _show(process: NodeProcess | None, found: dict[str, Any]) -> None:
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
    if found["services"]:
        say(f"Services   {', '.join(_service_words(one) for one in found['services'])}")
    if "removal" in found:
        _show_removal(found["removal"])
        return
    if found["source"] == "members":
        if "problem" in found:
            say(f"Store      {found['problem']}")
        _show_here(found["here"])
        _show_members(found)
        return
    counts = found["instances"]
    text = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    say(f"Instances  {text or 'none'}")
    queue = found["queue"]
    say(f"Messages   {queue.pending} pending, {queue.dead} dead")
    say("")
    is_alone = len(found["nodes"]) == 1
    rows = [
        (
            one["name"],
            one["zone"],
            state_words(one) if process or not is_alone else "not running",
            accelerator_words(one["accelerator"]),
            "" if one["load_1m"] is None else f"{one['load_1m']:.2f}",
            str(one["instances"]),
            f"{one['vcpus_claimed']} of {one['vcpus']}",
            f"{one['memory_claimed_mib']:,} of {one['memory_mib']:,}",
            f"{one['disk_claimed_gib']:,} of {one['disk_gib']:,}",
            role_words(one),
        )
        for one in found["nodes"]
    ]
    head = ("node", "zone", "state", "runs on", "load", "instances", "vcpus", "memory MiB")
    print_table((*head, "disk GiB", "roles"), rows, "No node has joined yet.")
    print_problems(found["nodes"])


def _show_removal(removal: Removal) -> None:
    told_by = f", says {removal.told_by}" if removal.told_by else ""
    say(f"Cluster    removed from it{told_by}; known here since {moment(removal.learnt_at)}.")
    say("")
    say(
        "This node does nothing any more: its certificate and its login are void. To let it join "
        "again: `anynode token create` on a node of the cluster, then `anynode join TOKEN` here, "
        "which makes everything anew. Instances that run here still belong to nobody: end them "
        "first (`anynode verify` names them)."
    )


def _service_words(one: dict[str, Any]) -> str:
    return f"{one['name']} (process {one['pid']})" if one["pid"] else f"{one['name']} (stopped)"


def _show_here(here: dict[str, Any]) -> None:
    counts = ", ".join(f"{count} {state}" for state, count in sorted(here["instances"].items()))
    say(f"Load       {here['load_1m']:.2f} on {here['cpus']} processors")
    say(
        f"Here       {counts or 'no instances'}; {here['vcpus_held']} vcpus, "
        f"{here['memory_held_mib']:,} MiB"
    )


def _show_members(found: dict[str, Any]) -> None:
    say("")
    rows = [
        (one["name"], one["zone"], "up" if one["is_up"] else "down", " ".join(one["roles"]))
        for one in found["nodes"]
    ]
    print_table(("node", "zone", "state", "roles"), rows, "The cluster has not been heard yet.")
    knowing = [one["name"] for one in found["nodes"] if one["is_control"]]
    if knowing:
        say(
            f"This node does not reach the store. Instances, load and messages of all nodes: "
            f"`anynode status` on {' or '.join(knowing)}."
        )


def accelerator_words(accelerator: str) -> str:
    """Return what makes instances run, in words."""
    return {"kvm": "KVM", "tcg": "QEMU emulation (slow: no KVM)", "": "unknown"}.get(
        accelerator, accelerator
    )
