"""The invariants I1 to I6 as pure functions of what was gathered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial

from appliance.model import Desired, Finding, InstanceState, Phase, PowerState, tap_name
from appliance.store.facts import InstanceRow, PlacementRow, Room
from appliance.verify import codes, elsewhere
from appliance.verify.facts import Facts

_RESOURCES = ("vcpus", "memory_mib", "disk_gib", "instances")
_PARTIAL_S = 3600.0


def compare(facts: Facts, *, progress_s: float, message_s: float) -> Iterator[Finding]:
    """Yield what does not fit together on a node, and in the store."""
    yield from stored(facts, progress_s=progress_s, message_s=message_s)
    yield from on_node(facts, message_s=message_s)


def stored(facts: Facts, *, progress_s: float, message_s: float) -> Iterator[Finding]:
    """Yield what does not fit together in the store, whatever is on a node."""
    checks: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
        partial(_progress, progress_s=progress_s),
        _placed,
        _addresses,
        _claims,
        _quotas,
        partial(_messages, message_s=message_s),
    )
    for check in checks:
        yield from check(facts)


def on_node(facts: Facts, *, message_s: float) -> Iterator[Finding]:
    """Yield what of a node does not fit to the store."""
    checks: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
        _instances_here,
        _strangers,
        _datapath,
        _rules,
        elsewhere.compare,
        _leftovers,
        partial(_reports, message_s=message_s),
    )
    for check in checks:
        yield from check(facts)


def _progress(facts: Facts, *, progress_s: float) -> Iterator[Finding]:
    for row in facts.store.instances.values():
        age_s = facts.now - row.progress_at
        if not row.is_settled and age_s > progress_s:
            text = f"{row.instance_id} is {row.state}, wanted {row.desired}, for {age_s:.0f} s."
            yield codes.NO_PROGRESS.found(row.instance_id, text)
        if row.state is InstanceState.TERMINATED and not row.has_reason:
            yield codes.NO_REASON.found(
                row.instance_id, f"{row.instance_id} is terminated, and nothing says why."
            )


def _placed(facts: Facts) -> Iterator[Finding]:
    counted = Counter(one.instance_id for one in facts.store.placements)
    for instance_id, count in counted.items():
        if count > 1:
            yield codes.TWO_PLACEMENTS.found(
                instance_id, f"{instance_id} has {count} active placements."
            )
    for row in facts.store.instances.values():
        is_somewhere = row.is_settled and row.state is not InstanceState.TERMINATED
        has_lost_its_disk = row.state is InstanceState.STOPPED and row.was_fenced
        if is_somewhere and row.instance_id not in counted and not has_lost_its_disk:
            text = f"{row.instance_id} is {row.state} and belongs on no node."
            yield codes.NOT_PLACED.found(row.instance_id, text)


def placed_here(facts: Facts) -> Mapping[str, PlacementRow]:
    """Return the active placements of this node by instance."""
    here = [one for one in facts.store.placements if one.node_id == facts.node_id]
    return {one.instance_id: one for one in sorted(here, key=lambda one: one.epoch)}


def _settled_here(facts: Facts) -> Iterator[tuple[InstanceRow, PlacementRow]]:
    """Yield the instances of this node of which nothing is under way."""
    for placement in placed_here(facts).values():
        row = facts.store.instances.get(placement.instance_id)
        is_newest = row is not None and row.epoch == placement.epoch
        if row and row.is_settled and is_newest and placement.phase is Phase.COMMITTED:
            yield row, placement


def _instances_here(facts: Facts) -> Iterator[Finding]:
    """Compare each settled instance of this node with hypervisor and journal."""
    for row, placement in _settled_here(facts):
        if facts.hypervisor is not None:
            yield from _on_hypervisor(facts, row, placement)
        if "the compute journal" not in facts.unread:
            yield from _in_journal(facts, row, placement)


def _on_hypervisor(facts: Facts, row: InstanceRow, placement: PlacementRow) -> Iterator[Finding]:
    assert facts.hypervisor is not None
    name = row.instance_id
    fact = facts.hypervisor.get(name)
    is_on = fact is not None and fact.power in (PowerState.RUNNING, PowerState.PAUSED)
    if fact is None:
        if row.state is InstanceState.RUNNING:
            yield codes.DOMAIN_MISSING.found(name, f"{name} is not on the hypervisor.")
        return
    if row.state is InstanceState.RUNNING and not is_on:
        yield codes.DOMAIN_OFF.found(name, f"{name} should run and is {fact.power}.")
    if row.state is InstanceState.STOPPED and is_on:
        yield codes.DOMAIN_ON.found(name, f"{name} should be off and is {fact.power}.")
    # What is off may keep the definition of an earlier start: the next one replaces it.
    if fact.epoch > placement.epoch or (is_on and fact.epoch < placement.epoch):
        text = (
            f"{name} has epoch {fact.epoch} on the hypervisor and {placement.epoch} in the store."
        )
        yield codes.EPOCH_DIFFERS.found(name, text)


def _in_journal(facts: Facts, row: InstanceRow, placement: PlacementRow) -> Iterator[Finding]:
    name = row.instance_id
    held = facts.held.get(name)
    if held is None:
        yield codes.JOURNAL_MISSING.found(name, f"The journal does not know {name}.")
    elif held.epoch != placement.epoch:
        text = f"{name} has epoch {held.epoch} in the journal and {placement.epoch} in the store."
        yield codes.EPOCH_DIFFERS.found(name, text)
    elif held.state != row.state:
        text = f"{name} is {held.state} in the journal and {row.state} in the store."
        yield codes.JOURNAL_DIFFERS.found(name, text)


def _strangers(facts: Facts) -> Iterator[Finding]:
    """Find what the node holds without a placement."""
    here = placed_here(facts)
    on_hypervisor = facts.hypervisor or {}
    for name in sorted({*on_hypervisor, *facts.held} - set(here)):
        if name in facts.held:
            held = facts.held[name]
            text = f"{name} is held here at epoch {held.epoch}, and does not belong here."
            yield codes.DOMAIN_STALE.found(name, text)
        else:
            fact = on_hypervisor[name]
            text = (
                f"{name} (epoch {fact.epoch}, {fact.power}) is on the hypervisor, unknown to all."
            )
            yield codes.DOMAIN_ORPHAN.found(name, text)


def known_ports(facts: Facts) -> frozenset[str]:
    """Return the ports that may be on this node: those of instances that belong here."""
    here = set(placed_here(facts)) | set(facts.held)
    stored = {port.port_id for port in facts.store.ports.values() if port.instance_id in here}
    held = {p.port_id for one in facts.held.values() if one.spec for p in one.spec.ports}
    return frozenset(stored | held)


def _addresses(facts: Facts) -> Iterator[Finding]:
    # One that ended while its node was silent keeps its ports until its copy is known to be gone.
    placed = {one.instance_id for one in facts.store.placements}
    for port_id, address in facts.store.stray_addresses:
        text = f"Address {address} is that of port {port_id}, which does not exist."
        yield codes.ADDRESS_STRAY.found(address, text)
    for port in facts.store.ports.values():
        row = facts.store.instances.get(port.instance_id)
        has_ended = row is None or row.state is InstanceState.TERMINATED
        if has_ended and port.instance_id not in placed:
            text = f"Port {port.port_id} is that of {port.instance_id}, which has ended."
            yield codes.PORT_STRAY.found(port.port_id, text)
        elif row and row.state is InstanceState.RUNNING and not port.addresses:
            text = f"Port {port.port_id} of {port.instance_id} has no address."
            yield codes.ADDRESS_MISSING.found(port.port_id, text)


def _datapath(facts: Facts) -> Iterator[Finding]:
    """Compare the ports of running instances with taps and leases, and look for strays."""
    known = known_ports(facts)
    taps = {port.tap for state in facts.network_states.values() for port in state.ports}
    is_read = "the datapath journal" not in facts.unread
    for row, _ in _settled_here(facts):
        if row.state is not InstanceState.RUNNING:
            continue
        for port in facts.store.ports.values():
            if port.instance_id != row.instance_id:
                continue
            name = port.port_id
            spec = facts.store.networks.get(port.network_id)
            if spec and spec.type in facts.network_states and tap_name(name) not in taps:
                yield codes.TAP_MISSING.found(name, f"Port {name} of {row.instance_id} has no tap.")
            record = facts.ports.get(name)
            if record is None:
                if is_read:
                    yield codes.DATAPATH_MISSING.found(
                        name, f"The journal does not know port {name} of {row.instance_id}."
                    )
            elif (record.port.mac, record.port.addresses) != (port.mac, port.addresses):
                text = f"{name} has {', '.join(record.port.addresses)} on the node and "
                yield codes.LEASE_DIFFERS.found(name, text + f"{', '.join(port.addresses)} stored.")
    for name, record in facts.ports.items():
        if name not in known:
            text = f"Port {name} of {record.port.instance_id} is in the journal and not here."
            yield codes.DATAPATH_STRAY.found(name, text)


def _rules(facts: Facts) -> Iterator[Finding]:
    if facts.firewall is None:
        return
    in_force = set(facts.firewall.taps)
    for row, _ in _settled_here(facts):
        if row.state is not InstanceState.RUNNING:
            continue
        for port in facts.store.ports.values():
            if port.instance_id == row.instance_id and tap_name(port.port_id) not in in_force:
                text = f"Port {port.port_id} of {row.instance_id} has no rules."
                yield codes.RULES_MISSING.found(port.port_id, text)
    for tap in sorted(in_force - {tap_name(port_id) for port_id in known_ports(facts)}):
        yield codes.RULES_STRAY.found(tap, f"There are rules for {tap}, whose port is not here.")
    for network_id, revision in facts.firewall.revisions.items():
        wanted = facts.store.policy_revisions.get(network_id)
        if wanted is None:
            text = f"There are rules for network {network_id}, which does not exist."
            yield codes.NETWORK_ORPHAN.found(network_id, text)
        elif revision < wanted:
            text = f"The rules of {network_id} are at revision {revision}, its policy at {wanted}."
            yield codes.RULES_BEHIND.found(f"{network_id}@{revision}", text)


def counted_claims(facts: Facts) -> dict[str, Room]:
    """Return what the placements of each node add up to."""
    sums: dict[str, Counter[str]] = {node_id: Counter() for node_id in facts.store.claims}
    for one in facts.store.placements:
        total = sums.setdefault(one.node_id, Counter())
        total.update(vcpus=one.vcpus, memory_mib=one.memory_mib, disk_gib=one.disk_gib, instances=1)
    return {
        node_id: Room(**{name: total[name] for name in _RESOURCES})
        for node_id, total in sums.items()
    }


def _claims(facts: Facts) -> Iterator[Finding]:
    for node_id, counted in counted_claims(facts).items():
        claimed = asdict(facts.store.claims.get(node_id, Room()))
        wrong = [
            f"{name} {claimed[name]} instead of {count}"
            for name, count in asdict(counted).items()
            if claimed[name] != count
        ]
        if wrong:
            text = f"Node {node_id} has claims of {', '.join(wrong)}."
            yield codes.CLAIMS_DIFFER.found(node_id, text)
        offered = asdict(facts.store.offers.get(node_id, Room()))
        over = [
            f"{name} {claimed[name]} of {offered[name]}"
            for name in ("vcpus", "memory_mib", "disk_gib")
            if claimed[name] > offered[name]
        ]
        if over:
            yield codes.OVERCOMMITTED.found(node_id, f"Node {node_id} is over {', '.join(over)}.")


def counted_quotas(facts: Facts) -> dict[tuple[str, str], int]:
    """Return what each project really uses."""
    used: Counter[tuple[str, str]] = Counter()
    for row in facts.store.instances.values():
        if row.state is InstanceState.TERMINATED:
            continue
        used[row.project_id, "instances"] += 1
        if row.is_counted:
            used[row.project_id, "vcpus"] += row.vcpus
            used[row.project_id, "memory_mib"] += row.memory_mib
    for project_id, count in facts.store.group_counts.items():
        used[project_id, "security_groups"] = count
    for project_id, count in facts.store.key_pair_counts.items():
        used[project_id, "key_pairs"] = count
    countable = {"instances", "vcpus", "memory_mib", "security_groups", "key_pairs"}
    return {key: used[key] for key in facts.store.quotas if key[1] in countable}


def _quotas(facts: Facts) -> Iterator[Finding]:
    for (project_id, resource), counted in counted_quotas(facts).items():
        used = facts.store.quotas[project_id, resource]
        if used != counted:
            text = f"Project {project_id} uses {counted} {resource}, and {used} are counted."
            yield codes.QUOTA_DIFFERS.found(f"{project_id}/{resource}", text)
    for row in facts.store.instances.values():
        is_wanted = row.state is InstanceState.RUNNING and row.desired is Desired.RUNNING
        if is_wanted and not row.is_counted:
            text = f"{row.instance_id} runs and is not counted."
            yield codes.QUOTA_DIFFERS.found(row.instance_id, text)


def _leftovers(facts: Facts) -> Iterator[Finding]:
    """Find taps, networks and files without an owner."""
    known = known_ports(facts)
    for state in facts.network_states.values():
        for port in state.ports:
            if port.port_id not in known:
                text = f"Tap {port.tap} is that of port {port.port_id}, which is not here."
                yield codes.TAP_ORPHAN.found(port.port_id, text)
        for network_id in state.network_ids:
            if network_id not in facts.store.networks:
                text = f"Network {network_id} is on this node and does not exist."
                yield codes.NETWORK_ORPHAN.found(network_id, text)
    owners = {*placed_here(facts), *facts.held}
    for name in sorted(facts.directories - owners):
        yield codes.FILES_ORPHAN.found(name, f"There are files of {name}, which is not here.")
    for path in facts.partial_files:
        yield codes.PARTIAL_FILE.found(path, f"{path} was cut off.")
    for file in facts.image_files:
        is_old = facts.now - file.last_used_at > _PARTIAL_S
        if file.sha256 not in facts.store.image_digests and is_old:
            text = f"No image is made of {file.sha256} ({file.allocated_bytes >> 20} MiB)."
            yield codes.IMAGE_UNUSED.found(file.sha256, text)


def _messages(facts: Facts, *, message_s: float) -> Iterator[Finding]:
    for entry in facts.store.outbox:
        age_s = facts.now - entry.created_at
        if entry.is_dead:
            text = f"{entry.kind} to {entry.topic} was given up after {entry.attempts} attempts: "
            yield codes.DEAD_LETTER.found(entry.message_id, text + entry.error)
        elif facts.is_running and age_s > message_s:
            text = f"{entry.kind} to {entry.topic} has waited for {age_s:.0f} s."
            yield codes.MESSAGE_STUCK.found(entry.message_id, text)
    for sender in facts.store.senders:
        text = f"{sender.login} sent {sender.kept + sender.forgotten} messages of no effect"
        yield codes.REFUSED.found(sender.login, f"{text}; the last: {sender.last_error or '?'}")


def _reports(facts: Facts, *, message_s: float) -> Iterator[Finding]:
    for key, owed in facts.owed.items():
        age_s = facts.now - owed.sent_at
        if facts.is_running and age_s > message_s:
            text = f"That {key} is {owed.report.state} is not confirmed after {age_s:.0f} s."
            yield codes.REPORT_UNCONFIRMED.found(key, text)
