"""One change of a network's rules as the commands of one transaction."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from anynode_firewall_nftables.force import InForce
from anynode_firewall_nftables.kernel import Leftover, Stored
from anynode_firewall_nftables.parts import EMPTY, INET, Transaction, key_of
from appliance.errors import Conflict
from appliance.model import NetworkPolicy

_NETWORKS = f"{INET} networks"
_ZONES = 65535


def choose_zone(policy: NetworkPolicy, stored: Mapping[str, Stored]) -> int:
    """Return the conntrack zone of a network: the one it has, else one that no other has.

    :raises Conflict: the bridge is that of another network, so that (bridge, address) would not
        tell the two apart.
    """
    network = policy.network
    for net, item in stored.items():
        if item.bridge == network.bridge and net != network.network_id:
            raise Conflict(f"Bridge {item.bridge} carries network {net} already.")
    if network.network_id in stored:
        return stored[network.network_id].zone
    taken = {item.zone for item in stored.values()}
    # From the id, so that two programs that choose at the same moment hardly choose the same.
    first = zlib.crc32(network.network_id.encode())
    return next(zone for n in range(_ZONES) if (zone := (first + n) % _ZONES + 1) not in taken)


def difference(old: InForce, new: InForce) -> list[str]:
    """Return commands that turn what is in force into what was made from it."""
    change = Transaction()
    for key in sorted(new.touched):
        before, after = old.parts.get(key, EMPTY), new.parts.get(key, EMPTY)
        if before is not after:
            change.replace(before, after)
    change.delete(_NETWORKS, [key_of(old.mark())])
    change.add(_NETWORKS, [new.mark()])
    return change.commands()


def replacement(leftover: Leftover, stored: Stored | None, new: InForce | None) -> list[str]:
    """Return commands that remove all of a network and put something new in its place.

    :param stored: what the kernel remembers of the network; ``None`` when it has nothing.
    :param new: ``None`` to put nothing in its place.
    """
    change = Transaction()
    change.flushed += [f"flush chain {INET} {name}" for name in sorted(leftover.chains)]
    change.flushed += [
        f"flush {kind} {INET} {name}" for name, kind in sorted(leftover.sets.items())
    ]
    for name, keys in leftover.elements.items():
        change.delete(name, keys)
    if stored:
        change.delete(_NETWORKS, [f'"{stored.bridge}"'])
    fresh = Transaction()
    parts = new.parts.values() if new else ()
    for part in parts:
        fresh.replace(EMPTY, part)
    if new:
        fresh.add(_NETWORKS, [new.mark()])
    chains = {name for part in parts for name in part.chains}
    sets = {name for part in parts for name in part.sets}
    dropped = [f"delete chain {INET} {name}" for name in sorted(leftover.chains - chains)]
    dropped += [
        f"delete {kind} {INET} {name}"
        for name, kind in sorted(leftover.sets.items())
        if name not in sets
    ]
    return [*change.commands(), *fresh.commands(), *dropped]
