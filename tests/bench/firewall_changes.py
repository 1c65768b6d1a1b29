"""What a change of the firewall costs, with what the network role sends for it."""

from __future__ import annotations

import time

import msgspec
from anynode_firewall_nftables.netfilter import Netfilter

from appliance.firewall.policy import apply_delta
from appliance.model import MemberChange, NetworkPolicy, PolicyDelta
from appliance.testing.firewall import allow
from appliance.testing.firewall_lab import FirewallLab
from tests.bench.figure import Figures, ms
from tests.bench.firewall_lab import lab, open_flows, policy_of, port_number

_ROUNDS = 9
_FLOWS = 100
"""Flows of UDP that are tracked meanwhile."""


def measure(is_quick: bool) -> Figures:
    """Measure an instance and a rule more and less where a thousand and ten thousand are."""
    sizes = ((20, 3.0), (40, 25.0)) if is_quick else ((1_000, 3.0), (10_000, 25.0))
    return {
        name: figure
        for (size, target), word in zip(sizes, ("1,000", "10,000"), strict=True)
        for name, figure in _at(size, word, target, 2 if is_quick else _ROUNDS).items()
    }


def _at(size: int, word: str, target: float, rounds: int) -> Figures:
    with lab() as bench:
        policy = policy_of(size)
        bench.add_network(policy.network)
        bench.firewall.guard()
        whole = _spent(lambda: bench.firewall.sync(policy))
        bench.firewall.state()
        open_flows(bench, policy, _FLOWS)
        spent: dict[str, list[float]] = {}
        for number in range(rounds):
            for what, delta in _deltas(policy, size + 2 + number):
                delta = msgspec.structs.replace(
                    delta, from_revision=policy.revision, to_revision=policy.revision + 1
                )
                spent.setdefault(what, []).append(_update(bench, delta))
                policy = apply_delta(policy, delta)
        reading = min(_spent(bench.firewall.state) for _ in range(rounds))
        listing = min(_spent(lambda: _list_flows(bench)) for _ in range(rounds))
    return {
        **{
            f"firewall, {what} at {word}: CPU": ms(min(times), target)
            for what, times in spent.items()
        },
        f"firewall, read back at {word}: CPU": ms(reading),
        f"firewall, flows listed at {word}: CPU": ms(listing),
        f"firewall, everything anew at {word}: CPU": ms(whole),
    }


def _deltas(policy: NetworkPolicy, number: int) -> list[tuple[str, PolicyDelta]]:
    """Return what adds and removes an instance and a rule; the revisions are the caller's."""
    port = port_number(number)
    joined = tuple(MemberChange(group_id=one, added=port.addresses) for one in port.group_ids)
    left = tuple(MemberChange(group_id=one, removed=port.addresses) for one in port.group_ids)
    group = next(group for group in policy.groups if group.group_id == "sg-default")
    wider = msgspec.structs.replace(
        group, ingress=(*group.ingress, allow(6, 8000, 8000, peer="10.0.0.0/8"))
    )

    def delta(**values: object) -> PolicyDelta:
        return PolicyDelta(network=policy.network, from_revision=0, to_revision=0, **values)  # type: ignore[arg-type]

    return [
        ("one rule more", delta(groups=(wider,))),
        ("one rule less", delta(groups=(group,))),
        ("one instance more", delta(ports=(port,), member_changes=joined)),
        ("one instance less", delta(removed_port_ids=(port.port_id,), member_changes=left)),
    ]


def _list_flows(bench: FirewallLab) -> None:
    """Ask the kernel for its tracked flows, as a change does that gives many addresses away."""
    bench.namespace.call(Netfilter().flows)


def _update(bench: FirewallLab, delta: PolicyDelta) -> float:
    return _spent(lambda: bench.firewall.update(delta))


def _spent(work: object) -> float:
    """Return the CPU time of a call, the kernel's part included: others share the machine."""
    assert callable(work)
    start = time.process_time()
    work()
    return time.process_time() - start
