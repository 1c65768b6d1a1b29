"""Whether the node sends frames for ports on other nodes where the store says that they are."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.model import Finding, RemotePort
from appliance.verify import codes
from appliance.verify.facts import Facts


def compare(facts: Facts) -> Iterator[Finding]:
    """Yield the ports of which the kernel and the store say different things."""
    states = facts.network_states.values()
    there = {network_id: found for state in states for network_id, found in state.remotes.items()}
    for network_id, meant in sorted(facts.elsewhere.items()):
        has = {one.mac: _way(one) for one in there.get(network_id, ())}
        wants = {one.mac: _way(one) for one in meant}
        for mac in sorted(has.keys() | wants.keys()):
            if has.get(mac) != wants.get(mac):
                text = (
                    f"Frames of {network_id} for {mac} go to {has.get(mac, 'nobody')}, "
                    f"and should go to {wants.get(mac, 'nobody')}."
                )
                yield codes.REACH_DIFFERS.found(f"{network_id} {mac} {has.get(mac, '')}", text)


def _way(remote: RemotePort) -> str:
    return f"{' and '.join(sorted(remote.addresses))} at {remote.node_address}"
