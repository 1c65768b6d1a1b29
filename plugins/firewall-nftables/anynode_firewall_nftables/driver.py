"""The hooks: a change is rendered, applied in one transaction, read back, then flows are cut."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from pathlib import Path

from anynode_firewall_nftables import bridging
from anynode_firewall_nftables.base import TABLE, hooked_chains, render_base
from anynode_firewall_nftables.change import choose_zone, difference, replacement
from anynode_firewall_nftables.cutting import FlowJudge, lost_addresses, narrowed_ports
from anynode_firewall_nftables.force import InForce, apply_delta, compile_policy
from anynode_firewall_nftables.kernel import Leftover, Ruleset, Stored
from anynode_firewall_nftables.names import checked_network_id
from anynode_firewall_nftables.netfilter import Netfilter
from appliance.errors import CommandFailed, Stale
from appliance.firewall.rules import IPAddress
from appliance.hookspecs import hookimpl
from appliance.model import FirewallPort, FirewallState, NetworkPolicy, PolicyDelta

log = logging.getLogger(__name__)

_NO_ADDRESSES: frozenset[IPAddress] = frozenset()


class NftablesFirewall:
    """The driver. It remembers what it has put in force; the kernel's own record decides."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._ruleset = Ruleset()
        self._in_force: dict[str, InForce] = {}
        self._lock = threading.Lock()

    @hookimpl
    def firewall_guard(self) -> None:
        """Put guard and anti-spoofing in place, whatever rules of networks there are."""
        with self._lock:
            bridging.switch_on(self._state_dir)
            self._ruleset.apply([*self._outdated(), *render_base()])
            self._check_base()

    @hookimpl
    def firewall_sync(self, policy: NetworkPolicy) -> None:
        """Replace all that the kernel has of a network by the policy."""
        net = checked_network_id(policy.network.network_id)
        with self._lock:
            outdated = self._outdated()
            stored = {} if outdated else self._ruleset.stored() or {}
            new = compile_policy(policy, choose_zone(policy, stored))
            leftover = self._ruleset.leftover(net) if net in stored else Leftover()
            change = replacement(leftover, stored.get(net), new)
            self._ruleset.apply([*outdated, *render_base(), *change])
            old = self._in_force.get(net)
            self._in_force[net] = new
            self._check_stored(new)
            lost = lost_addresses(old, new) if old else _NO_ADDRESSES
            self._cut(new, new.ports.values(), lost)

    @hookimpl
    def firewall_update(self, delta: PolicyDelta) -> None:
        """Apply a difference to what this process has put in force."""
        net = delta.network.network_id
        with self._lock:
            old = self._in_force.get(net)
            stored = (self._ruleset.stored() or {}).get(net)
            if not old or not stored or (stored.revision, stored.zone) != (old.revision, old.zone):
                self._in_force.pop(net, None)
                raise Stale(f"The rules of network {net} are not those that this process made.")
            if old.revision != delta.from_revision:
                raise Stale(
                    f"The rules of network {net} are at revision {old.revision}, "
                    f"not {delta.from_revision}."
                )
            if old.network.bridge != delta.network.bridge:
                raise Stale(f"Network {net} has another bridge now.")
            new = apply_delta(old, delta)
            self._ruleset.apply(difference(old, new))
            self._in_force[net] = new
            self._check_stored(new)
            lost, narrowed = lost_addresses(old, new), narrowed_ports(old, new)
            if lost or narrowed:
                self._cut(new, narrowed, lost)

    @hookimpl
    def firewall_forget(self, network_id: str) -> None:
        """Remove all that the kernel has of a network."""
        net = checked_network_id(network_id)
        with self._lock:
            stored = (self._ruleset.stored() or {}).get(net)
            old = self._in_force.pop(net, None)
            if stored:
                leftover = self._ruleset.leftover(net)
                self._ruleset.apply(replacement(leftover, stored, None))
            if old:
                nothing = InForce(network=old.network, revision=0, zone=old.zone)
                self._cut(nothing, (), lost_addresses(old, nothing))

    @hookimpl
    def firewall_state(self) -> FirewallState:
        """Return what the kernel has; a network whose rules someone has damaged is left out."""
        with self._lock:
            warnings = bridging.faults()
            stored = self._ruleset.stored()
            faults = self._base_faults()
            return FirewallState(
                is_guarded=not faults,
                revisions={net: item.revision for net, item in (stored or {}).items()},
                taps=tuple(sorted(self._ruleset.taps() or ())),
                warnings=(*warnings, *faults),
            )

    @hookimpl
    def firewall_withdraw(self) -> None:
        """Remove our tables and put br_netfilter's switches back."""
        with self._lock:
            for family in ("inet", "bridge"):
                if self._ruleset.has_layout(family) is not None:
                    self._ruleset.apply([f"delete table {family} {TABLE}"])
            self._in_force.clear()
            bridging.restore(self._state_dir)

    def _outdated(self) -> list[str]:
        """Return commands that remove tables of another release, in the same transaction."""
        return [
            f"delete table {family} {TABLE}"
            for family in ("bridge", "inet")
            if self._ruleset.has_layout(family) is False
        ]

    def _base_faults(self) -> list[str]:
        faults = []
        for family, chains in hooked_chains().items():
            if self._ruleset.has_layout(family) is None:
                return ["The firewall's tables are missing."]
            counts = self._ruleset.rule_counts(family)
            faults += [
                f"Chain {name} of table {family} {TABLE} has lost rules."
                for name, expected in chains.items()
                if counts.get(name, -1) != expected
            ]
        return faults

    def _check_base(self) -> None:
        if faults := self._base_faults():
            raise CommandFailed(f"The firewall's guard is not in place: {' '.join(faults)}")

    def _check_stored(self, state: InForce) -> None:
        net = state.network.network_id
        expected = Stored(bridge=state.network.bridge, revision=state.revision, zone=state.zone)
        found = (self._ruleset.stored() or {}).get(net)
        if found != expected:
            self._in_force.pop(net, None)
            raise CommandFailed(
                f"The kernel does not show the rules of network {net} that were put in force: "
                f"{found} in place of {expected}."
            )

    def _cut(
        self, state: InForce, judged: Iterable[FirewallPort], lost: frozenset[IPAddress]
    ) -> None:
        judge = FlowJudge(state, judged, lost)
        with Netfilter() as netfilter:
            ended = [flow for flow in netfilter.flows() if judge.ends(flow)]
            count = netfilter.end(ended)
        if count:
            log.info("network %s: cut %d flows", state.network.network_id, count)
