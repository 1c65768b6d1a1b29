"""Figures of the firewall plugin nftables: what a change and a packet cost.

Needs root; works in network namespaces of its own. Prints one line per figure: name, value, unit,
target. Run it with: python tests/bench/bench_firewall.py
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
from anynode_firewall_nftables.driver import NftablesFirewall

from appliance.firewall import Packet, diff
from appliance.model import FirewallPort, NetworkPolicy, tap_name
from appliance.testing.firewall import allow, make_group, make_network
from appliance.testing.firewall_lab import FirewallLab
from appliance.testing.frames import encode

_ROUNDS = 9
_BURSTS, _BURST = 300, 100


def report(name: str, value: float, unit: str, target: str) -> None:
    """Print one figure."""
    print(f"{name:<58} {value:>10.2f} {unit:<5} {target}", flush=True)


def milliseconds(work: Callable[[], object]) -> float:
    """Return the CPU time of a call, the kernel's part included: others share the machine."""
    start = time.process_time()
    work()
    return (time.process_time() - start) * 1e3


def port_number(number: int) -> FirewallPort:
    """Return one of up to 60,000 ports of a network 10.0.0.0/16."""
    port_id = f"eni-{number:012x}00000"
    return FirewallPort(
        port_id=port_id,
        tap=tap_name(port_id),
        mac=f"06:a0:00:00:{number >> 8:02x}:{number & 0xFF:02x}",
        addresses=(f"10.0.{number >> 8}.{number & 0xFF}", f"fd00:1::{number:x}"),
        group_ids=("sg-default", f"sg-{number % 20}"),
    )


def policy_of(size: int, revision: int = 1, *, extra_rules: int = 0) -> NetworkPolicy:
    """Return a policy of so many instances, all in one group and each in one of twenty more."""
    network = make_network(1, cidr="10.0.0.0/16", gateway="10.0.0.1")
    ports = tuple(port_number(number) for number in range(2, 2 + size))
    members = tuple(address for port in ports for address in port.addresses)
    rules = [allow(peer="sg-default"), allow(6, 22, 22, peer="0.0.0.0/0")]
    rules += [allow(6, 8000 + i, 8000 + i, peer="10.0.0.0/8") for i in range(extra_rules)]
    groups = [make_group("sg-default", rules, members)]
    groups += [
        make_group(f"sg-{i}", [allow(17, 100 + i, 200 + i, peer="192.0.2.0/24")]) for i in range(20)
    ]
    return NetworkPolicy(network=network, revision=revision, ports=ports, groups=tuple(groups))


def bench_changes(size: int, add_target_ms: float) -> None:
    """Measure one instance more and one rule more or less where ``size`` instances are."""
    with tempfile.TemporaryDirectory() as directory:
        lab = FirewallLab(NftablesFirewall(Path(directory)))
        policy = policy_of(size)
        lab.firewall.guard()
        took = milliseconds(lambda: lab.firewall.sync(policy))
        report(f"sync of {size} instances", took, "ms", "")
        lab.firewall.state()
        adding: list[float] = []
        ruling: list[float] = []
        revoking: list[float] = []
        reading: list[float] = []
        for round_number in range(_ROUNDS):
            bigger = policy_of(size + round_number + 1, policy.revision + 1)
            delta = diff(policy, bigger)
            adding.append(milliseconds(partial(lab.firewall.update, delta)))
            policy = bigger
            ruled = policy_of(size + round_number + 1, policy.revision + 1, extra_rules=1)
            for times, new in ((ruling, ruled), (revoking, policy)):
                new = msgspec.structs.replace(new, revision=policy.revision + 1)
                delta = diff(policy, new)
                times.append(milliseconds(partial(lab.firewall.update, delta)))
                policy = new
            reading.append(milliseconds(lab.firewall.state))
        target = f"<= {add_target_ms:g}"
        median = statistics.median
        report(f"one instance more at {size}", median(adding), "ms", target)
        report(f"one rule more in a group of {size}", median(ruling), "ms", target)
        report(f"one rule less in a group of {size}, flows cut", median(revoking), "ms", "")
        report(f"state at {size}", median(reading), "ms", "")
        lab.close()


def packet_cost(size: int | None) -> float:
    """Return microseconds per packet of a flow between two taps; ``None``: without our rules."""
    with tempfile.TemporaryDirectory() as directory:
        lab = FirewallLab(NftablesFirewall(Path(directory)))
        policy = policy_of(size or 2)
        a, b = policy.ports[:2]
        lab.add_network(policy.network)
        lab.add_ports(policy.network, [a, b])
        if size is not None:
            lab.firewall.guard()
            lab.firewall.sync(policy)
        there = Packet(
            source=a.tap,
            destination=b.tap,
            ether_src=a.mac,
            ether_dst=b.mac,
            ip_src=a.addresses[0],
            ip_dst=b.addresses[0],
            protocol=17,
            source_port=5000,
            destination_port=6000,
        )
        frame = encode(there, bytes(64))[0]
        # Each end speaks once, so that the bridge knows where it is and the flow is established.
        back = frame[6:12] + frame[:6] + frame[12:26] + frame[30:34] + frame[26:30]
        lab.send(b.tap, back + frame[36:38] + frame[34:36] + frame[38:])
        lab.send(a.tap, frame)
        lab.received(a.tap)
        assert lab.received(b.tap)
        best = min(_burst(lab, a.tap, b.tap, frame) for _ in range(_BURSTS))
        lab.close()
        return best


def _burst(lab: FirewallLab, source: str, destination: str, frame: bytes) -> float:
    start = time.process_time()
    for _ in range(_BURST):
        lab.send(source, frame)
    got = len(lab.received(destination))
    spent = time.process_time() - start
    # Less than all: a thread of the kernel had to help, and its time is not in this measure.
    return math.inf if got < _BURST else spent / _BURST * 1e6


def main() -> None:
    """Print all figures."""
    bench_changes(1000, 3)
    bench_changes(10000, 25)
    bare = packet_cost(None)
    report("packet between two taps, without our rules", bare, "us", "")
    for size in (2, 5000):
        cost = packet_cost(size)
        report(f"packet between two taps, {size} instances", cost, "us", f"<= {1.5 * bare:.2f}")


if __name__ == "__main__":
    main()
