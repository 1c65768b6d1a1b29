"""Whether the kernel still has what was put there: rules may be flushed by hand or by a program.

The kernel numbers every transaction of nftables, ours and those of others. As long as nobody else
has made one, what was sound after our last transaction is sound now, and nothing is listed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from anynode_firewall_nftables.base import BRIDGE_SETS, hooked_chains
from anynode_firewall_nftables.force import InForce
from anynode_firewall_nftables.kernel import Ruleset
from anynode_firewall_nftables.parts import BRIDGE, TABLE, key_of


def base_faults(ruleset: Ruleset) -> list[str]:
    """Return what is missing of guard and anti-spoofing, as sentences."""
    faults = []
    for family, chains in hooked_chains().items():
        if not ruleset.has_layout(family):
            return ["The firewall's tables are missing."]
        counts = ruleset.rule_counts(family)
        faults += [
            f"Chain {name} of table {family} {TABLE} has lost rules."
            for name, expected in chains.items()
            if counts.get(name, -1) != expected
        ]
    if ruleset.epoch() is None:
        faults.append(f"Set epoch of table inet {TABLE} is empty.")
    return faults


def damaged(ruleset: Ruleset, networks: Mapping[str, InForce]) -> set[str]:
    """Return the networks of which the kernel lacks a rule or an element; lists everything."""
    rules, elements = ruleset.inventory()
    present = {
        f"{BRIDGE} {name}": set(ruleset.keys(f"{BRIDGE} {name}") or ()) for name in BRIDGE_SETS
    }
    found = set()
    for net, state in networks.items():
        wanted: dict[str, set[str]] = {}
        count: Counter[str] = Counter()
        for part in state.parts.values():
            for name, keys in part.elements.items():
                if name in present:
                    wanted.setdefault(name, set()).update(map(key_of, keys))
                else:
                    count[name] += len(keys)
        is_whole = (
            all(present[name] >= keys for name, keys in wanted.items())
            and all(elements.get(name, 0) >= number for name, number in count.items())
            and all(
                rules.get(name, -1) == len(lines)
                for part in state.parts.values()
                for name, lines in part.chains.items()
            )
        )
        if not is_whole:
            found.add(net)
    return found


def taps_of(networks: Iterable[InForce]) -> set[str]:
    """Return the taps that the rules of networks know."""
    return {
        key_of(element).strip('"')
        for state in networks
        for part in state.parts.values()
        for element in part.elements.get(f"{BRIDGE} taps", ())
    }
