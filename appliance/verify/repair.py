"""Repairing what has no owner any more: each finding is looked at anew before anything changes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from appliance.compute.attic import set_aside
from appliance.config import Config
from appliance.datapath.record import PORT
from appliance.journal import Journal
from appliance.model import Finding, NetworkPolicy
from appliance.store import Transaction, audit, policy, recount
from appliance.verify import codes, environment, invariants
from appliance.verify.facts import gather, open_store, read_store
from appliance.verify.node_facts import Drivers


def repair(config: Config, findings: Collection[Finding]) -> list[str]:
    """Repair what can be repaired, instances before their ports before their rules and files."""
    done: list[str] = []
    for code, work in REPAIRS.items():
        for finding in findings:
            if finding.code == code.code and _is_still_so(config, finding):
                what = work(config, finding.subject)
                if what:
                    done.append(what)
    return done


def _is_still_so(config: Config, finding: Finding) -> bool:
    facts = gather(config)
    found = [
        *invariants.compare(facts, progress_s=0.0, message_s=0.0),
        *environment.look(config, facts),
    ]
    return any((one.code, one.subject) == (finding.code, finding.subject) for one in found)


def _remove_domain(config: Config, instance_id: str) -> str:
    Drivers(config).compute().remove(instance_id)
    return f"removed {instance_id} from the hypervisor"


def _detach_port(config: Config, port_id: str) -> str:
    drivers = Drivers(config)
    for name, state in gather(config).network_states.items():
        if any(port.port_id == port_id for port in state.ports):
            drivers.network(name).detach(port_id)
    return f"removed the tap of {port_id}"


def _release_network(config: Config, network_id: str) -> str:
    drivers, facts = Drivers(config), gather(config)
    for name, state in facts.network_states.items():
        if network_id in state.network_ids:
            drivers.network(name).release(network_id)
    if facts.firewall and network_id in facts.firewall.revisions:
        drivers.firewall().forget(network_id)
    return f"released network {network_id}"


def _renew_rules(config: Config, tap: str) -> str:
    facts = gather(config)
    if facts.is_running or facts.firewall is None:
        return ""  # the node's own idea of what is in force would be wrong from then on
    firewall = Drivers(config).firewall()
    for network_id in facts.firewall.revisions:
        if network_id in facts.store.networks:
            wanted = _policy_of(facts.node_id, network_id)
            firewall.sync(read_store(config, wanted))
    return f"renewed the rules, without {tap}"


def _policy_of(node_id: str, network_id: str) -> Callable[[Transaction], NetworkPolicy]:
    return lambda tx: policy.whole(tx, network_id, node_id)


def _forget_port(config: Config, port_id: str) -> str:
    if gather(config).is_running:
        return ""  # the journal is the node's as long as it runs
    journal = Journal(config.state_dir / "datapath.sqlite")
    try:
        journal.delete(PORT, port_id)
    finally:
        journal.close()
    return f"forgot port {port_id}"


def _set_aside(config: Config, instance_id: str) -> str:
    facts = gather(config)
    if facts.hypervisor is None or instance_id in facts.hypervisor:
        return ""  # its disk may be in use
    source = config.state_dir / "instances" / instance_id
    target = set_aside(config.state_dir, source)
    return f"moved {source} to {target}"


def _delete_partial(config: Config, path: str) -> str:
    Path(path).unlink(missing_ok=True)
    return f"deleted {path}"


def _close_file(config: Config, path: str) -> str:
    file = Path(path)
    file.chmod(file.stat().st_mode & 0o700)
    return f"closed {path} to others"


def _free_address(config: Config, address: str) -> str:
    return _write(config, f"freed address {address}", lambda tx: recount.free_stray(tx, address))


def _recount_claims(config: Config, node_id: str) -> str:
    done = f"counted the claims on node {node_id}"
    return _write(config, done, lambda tx: recount.claims(tx, node_id))


def _recount_quota(config: Config, subject: str) -> str:
    return _write(config, f"counted the quotas ({subject})", recount.quotas_of_all)


def _write(config: Config, done: str, work: Callable[[Transaction], object]) -> str:
    """Change the store and say there what was done; return that, too."""

    def change(tx: Transaction) -> None:
        work(tx)
        audit.record_command(tx, "verify", "Repair", done)

    store = open_store(config)
    try:
        store.transaction(change)
    finally:
        store.close()
    return done


REPAIRS: dict[codes.Code, Callable[[Config, str], str]] = {
    codes.DOMAIN_ORPHAN: _remove_domain,
    codes.TAP_ORPHAN: _detach_port,
    codes.DATAPATH_STRAY: _forget_port,
    codes.RULES_STRAY: _renew_rules,
    codes.NETWORK_ORPHAN: _release_network,
    codes.FILES_ORPHAN: _set_aside,
    codes.PARTIAL_FILE: _delete_partial,
    codes.FILE_OPEN: _close_file,
    codes.ADDRESS_STRAY: _free_address,
    codes.CLAIMS_DIFFER: _recount_claims,
    codes.QUOTA_DIFFERS: _recount_quota,
}
"""What is done about each kind of finding, in order: rules go after the taps they guard."""
