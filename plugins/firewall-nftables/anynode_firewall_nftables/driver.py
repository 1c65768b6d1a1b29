"""The hooks: a change is rendered, applied in one transaction, read back, then flows are judged.

What takes something away is two transactions: the rules, then the epoch. A set of ranges changes
a moment after the transaction that it is in, and a flow that met it then would be judged by what
was before.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from anynode_firewall_nftables import bridging
from anynode_firewall_nftables.base import render_base
from anynode_firewall_nftables.change import choose_zone, difference, replacement
from anynode_firewall_nftables.cutting import (
    allows_less,
    gained_addresses,
    lost_addresses,
    owners,
    owners_in,
)
from anynode_firewall_nftables.force import InForce, apply_delta, compile_policy
from anynode_firewall_nftables.inspection import base_faults, damaged, taps_of
from anynode_firewall_nftables.judging import Judging
from anynode_firewall_nftables.kernel import Leftover, Ruleset, Stored
from anynode_firewall_nftables.names import checked_network_id
from anynode_firewall_nftables.netfilter import Netfilter
from anynode_firewall_nftables.parts import TABLE
from appliance.errors import CommandFailed, Stale
from appliance.firewall.rules import IPAddress
from appliance.hookspecs import hookimpl
from appliance.model import FirewallState, NetworkPolicy, PolicyDelta

log = logging.getLogger(__name__)

_NOTHING: frozenset[IPAddress] = frozenset()
_FEW_ADDRESSES = 60
"""Flows of more than these, gained at once, are looked for and ended: they would fill a set."""


class NftablesFirewall:
    """The driver. It remembers what it has put in force; the kernel's own record decides."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._ruleset = Ruleset()
        self._netfilter = Netfilter()
        self._judging = Judging(self._ruleset, self._netfilter, self._apply)
        self._in_force: dict[str, InForce] = {}
        self._sound_at = -1
        self._lock = threading.Lock()

    @hookimpl
    def firewall_guard(self) -> None:
        """Put guard and anti-spoofing in place, whatever rules of networks there are."""
        with self._lock:
            bridging.switch_on(self._state_dir)
            self._judging.apply_with_base([*self._outdated(), *render_base()])
            if faults := base_faults(self._ruleset):
                raise CommandFailed(f"The firewall's guard is not in place: {' '.join(faults)}")

    @hookimpl
    def firewall_sync(self, policy: NetworkPolicy) -> None:
        """Replace all that the kernel has of a network by the policy."""
        net = checked_network_id(policy.network.network_id)
        with self._lock:
            outdated = self._outdated()
            stored = {} if outdated else self._ruleset.stored() or {}
            new = compile_policy(policy, choose_zone(policy, stored))
            leftover = self._leftover(net, stored)
            change = replacement(leftover, stored.get(net), new)
            self._judging.apply_with_base([*outdated, *render_base(), *change])
            old = self._in_force.get(net)
            self._in_force[net] = new
            self._check_stored(new)
            self._judging.anew(new.network.bridge)
            if net in stored:
                gained = owners_in(new) - owners(leftover.elements)
            else:
                gained = owners_in(new) - owners_in(old) if old else frozenset()
            if gained:
                self._judging.end(new.zone, {address for _, address in gained})

    @hookimpl
    def firewall_update(self, delta: PolicyDelta) -> None:
        """Apply a difference to what this process has put in force."""
        net = delta.network.network_id
        with self._lock:
            old = self._current(net)
            if old.revision != delta.from_revision:
                raise Stale(
                    f"The rules of network {net} are at revision {old.revision}, "
                    f"not {delta.from_revision}."
                )
            if old.network.bridge != delta.network.bridge:
                raise Stale(f"Network {net} has another bridge now.")
            new = apply_delta(old, delta)
            gained = gained_addresses(old, new)
            few = gained if len(gained) <= _FEW_ADDRESSES else _NOTHING
            lost = lost_addresses(old, new)
            self._judging.apply(difference(old, new), new.network.bridge, few, lost)
            self._in_force[net] = new
            self._check_stored(new)
            if gained or allows_less(old, new):
                self._judge_anew(new, few, gained - few)

    @hookimpl
    def firewall_forget(self, network_id: str) -> None:
        """Remove all that the kernel has of a network."""
        net = checked_network_id(network_id)
        with self._lock:
            stored = self._ruleset.stored() or {}
            old = self._in_force.get(net)
            lost, zone = owners_in(old) if old else frozenset(), old.zone if old else 0
            if net in stored:
                leftover, zone = self._leftover(net, stored), stored[net].zone
                self._judging.forget(replacement(leftover, stored[net], None), stored[net].bridge)
                lost |= owners(leftover.elements)
            self._in_force.pop(net, None)
            if lost:
                self._judging.end(zone, {address for _, address in lost})

    @hookimpl
    def firewall_state(self) -> FirewallState:
        """Return what the kernel has; a network whose rules someone has damaged is left out."""
        with self._lock:
            now = self._netfilter.generation()
            stored = self._ruleset.stored() or {}
            faults: list[str] = []
            is_guarded = True
            if now != self._sound_at or stored.keys() != self._in_force.keys():
                faults = base_faults(self._ruleset)
                is_guarded = not faults
                hurt = damaged(self._ruleset, self._in_force)
                taps = set(self._ruleset.taps() or ())
                if not faults and not hurt and self._netfilter.generation() == now:
                    self._sound_at = now
                for net in hurt:
                    del self._in_force[net]
                    stored.pop(net, None)
                    faults.append(f"Rules of network {net} were removed by someone else.")
            else:
                taps = taps_of(self._in_force.values())
            return FirewallState(
                is_guarded=is_guarded,
                revisions={net: item.revision for net, item in stored.items()},
                taps=tuple(sorted(taps)),
                warnings=(*bridging.faults(), *faults),
            )

    @hookimpl
    def firewall_withdraw(self) -> None:
        """Remove our tables and put br_netfilter's switches back."""
        with self._lock:
            tables = [
                f"delete table {family} {TABLE}"
                for family in ("inet", "bridge")
                if self._ruleset.has_layout(family) is not None
            ]
            if tables:
                self._ruleset.apply(tables)
            self._in_force.clear()
            bridging.restore(self._state_dir)

    def _outdated(self) -> list[str]:
        """Return commands that remove tables of another release, in the same transaction."""
        return [
            f"delete table {family} {TABLE}"
            for family in ("bridge", "inet")
            if self._ruleset.has_layout(family) is False
        ]

    def _leftover(self, net: str, stored: Mapping[str, Stored]) -> Leftover:
        if net not in stored:
            return Leftover()
        return self._ruleset.leftover(net, stored[net].bridge)

    def _apply(self, commands: Iterable[str]) -> None:
        """Apply a transaction; what was sound before and met no other transaction is sound."""
        before = self._netfilter.generation()
        self._ruleset.apply(commands)
        was_sound = before == self._sound_at
        self._sound_at = (
            before + 1 if was_sound and self._netfilter.generation() == before + 1 else -1
        )

    def _current(self, net: str) -> InForce:
        """Return what is in force of a network, as this process has made it.

        :raises Stale: the kernel's record says otherwise, or this process has made nothing.
        """
        state = self._in_force.get(net)
        if state and self._netfilter.generation() == self._sound_at:
            return state
        stored = (self._ruleset.stored() or {}).get(net)
        if state is None or stored != _record_of(state):
            self._in_force.pop(net, None)
            raise Stale(f"The rules of network {net} are not those that this process made.")
        return state

    def _check_stored(self, state: InForce) -> None:
        net = state.network.network_id
        found = (self._ruleset.stored() or {}).get(net)
        if found != _record_of(state):
            self._in_force.pop(net, None)
            raise CommandFailed(
                f"The kernel does not show the rules of network {net} that were put in force: "
                f"{found} in place of {_record_of(state)}."
            )

    def _judge_anew(
        self, new: InForce, few: Iterable[IPAddress], many: Iterable[IPAddress]
    ) -> None:
        """Let every flow meet the rules again; until that is done the network is not in order."""
        try:
            self._judging.anew(new.network.bridge, few)
            if many := list(many):
                self._judging.end(new.zone, many)
        except BaseException:
            self._in_force.pop(new.network.network_id, None)
            raise


def _record_of(state: InForce) -> Stored:
    return Stored(bridge=state.network.bridge, revision=state.revision, zone=state.zone)
