"""What our rules cost a packet of a flow that is let through, beside the same path without them."""

from __future__ import annotations

import math
import statistics
import time

from appliance.firewall import Packet
from appliance.model import NetworkPolicy
from appliance.run import run
from appliance.testing.firewall_lab import FirewallLab
from appliance.testing.frames import encode
from tests.bench.figure import Figure, Figures
from tests.bench.firewall_lab import lab, policy_of

_ROUNDS = 5
_BURSTS, _BURST = 100, 100
_INSTANCES = 5_000
_TRACKING = "add table inet track; add chain inet track idle; add rule inet track idle ct state new"
"""Switches connection tracking on in a network namespace without a rule on a packet's way."""


def measure(is_quick: bool) -> Figures:
    """Measure rounds of bursts by turns, so that all paths meet the machine in the same mood."""
    rounds, bursts = (1, 3) if is_quick else (_ROUNDS, _BURSTS)
    with lab() as bare, lab() as few, lab() as many:
        small, large = policy_of(2), policy_of(20 if is_quick else _INSTANCES)
        bare.namespace.call(run, ["nft", _TRACKING], deadline_s=30)
        paths = {
            "bare": _Path(bare, small, is_guarded=False),
            "few": _Path(few, small, is_guarded=True),
            "many": _Path(many, large, is_guarded=True),
        }
        costs: dict[str, list[float]] = {name: [] for name in paths}
        for _ in range(rounds):
            best = dict.fromkeys(paths, math.inf)
            for _ in range(bursts):
                for name, path in paths.items():
                    best[name] = min(best[name], path.burst_s())
            for name, cost in best.items():
                costs[name].append(cost)
    pairs = zip(costs["many"], costs["bare"], strict=True)
    return {
        "packet between two taps, without our rules": _us(costs["bare"]),
        "packet between two taps, 2 instances": _us(costs["few"]),
        "packet between two taps, 5,000 instances": _us(costs["many"]),
        "packet, 5,000 instances to without our rules": Figure(
            round(statistics.median(many / bare for many, bare in pairs), 3), "ratio", 1.5
        ),
    }


def _us(costs: list[float]) -> Figure:
    return Figure(round(statistics.median(costs) * 1e6, 3), "us")


class _Path:
    """A flow of UDP between two taps of a bridge; both ends have spoken."""

    def __init__(self, bench: FirewallLab, policy: NetworkPolicy, *, is_guarded: bool) -> None:
        self._bench = bench
        a, b = policy.ports[:2]
        bench.add_network(policy.network)
        bench.add_ports(policy.network, [a, b])
        if is_guarded:
            bench.firewall.guard()
            bench.firewall.sync(policy)
        self._from, self._to = a.tap, b.tap
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
        self._frame = frame = encode(there, bytes(64))[0]
        # Each end speaks once, so that the bridge knows where it is and the flow is established.
        back = frame[6:12] + frame[:6] + frame[12:26] + frame[30:34] + frame[26:30]
        bench.send(b.tap, back + frame[36:38] + frame[34:36] + frame[38:])
        bench.send(a.tap, frame)
        bench.received(a.tap)
        assert bench.received(b.tap)

    def burst_s(self) -> float:
        """Return the CPU seconds per packet, infinity when a thread of the kernel had to help."""
        send, source, frame = self._bench.send, self._from, self._frame
        start = time.process_time()
        for _ in range(_BURST):
            send(source, frame)
        got = len(self._bench.received(self._to))
        spent = time.process_time() - start
        return math.inf if got < _BURST else spent / _BURST
