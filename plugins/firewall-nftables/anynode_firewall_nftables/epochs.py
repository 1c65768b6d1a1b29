"""Epochs: when a flow was judged stands in its mark, so that a change judges all flows anew.

A flow that the rules let through is marked with the epoch that is in force, and passes from then
on without being asked again. A change that allows less begins the next epoch: every flow then
meets the rules once more with its next packet, and one that they refuse is marked as ended. The
kernel never lists its flows for this, and nothing is remembered beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from anynode_firewall_nftables.parts import INET, Transaction
from appliance.firewall.rules import IPAddress

SHIFT = 20
MASK = 0xFFF << SHIFT
"""The bits of a flow's mark that are ours; those of others stay as they are."""

FIRST, LAST, ENDED = 1, 0xFFE, 0xFFF
"""Epochs begin again after the last one. Zero is a flow that was never judged."""

FORMER_LIMIT = 256
"""How many new owners are remembered before the flows of the former ones are ended."""

IS_ENDED = f"ct mark and {MASK:#x} == {ENDED << SHIFT:#x}"
IS_LIVE = f"ct mark and {MASK:#x} != {ENDED << SHIFT:#x}"
END = f"ct mark set ct mark or {MASK:#x}"

SETS = {
    "epoch": "type mark",
    "former4": "type ifname . ipv4_addr . mark; flags interval",
    "former6": "type ifname . ipv6_addr . mark; flags interval",
}
"""``former``: bridge, address, and the marks of flows of those who had it before."""

RULES = {"known": 1, "accepted": 2}
"""Chains that bear the epoch, with the number of their rules."""

Former = Mapping[tuple[str, IPAddress], int]
"""Addresses, each with its network's bridge, and the last epoch in which another one had it."""


def switch(before: int | None, after: int) -> list[str]:
    """Return commands that put an epoch in force, which fail when another one is than thought.

    :param before: the epoch in force; ``None`` when there is none.
    """
    is_marked = f"ct mark and {MASK:#x} == {after << SHIFT:#x}"
    mark = f"ct mark set ct mark and {MASK ^ 0xFFFFFFFF:#x} or {after << SHIFT:#x}"
    expected = [] if before is None else [f"delete element {INET} epoch {{ {before} }}"]
    return [
        *expected,
        f"add element {INET} epoch {{ {after} }}",
        f"flush chain {INET} known",
        f"flush chain {INET} accepted",
        f"add rule {INET} known ct state established,related {is_marked} accept",
        # An error is reported by anybody on the way: it does not speak for the flow.
        f"add rule {INET} accepted ct state new,established {mark}",
        f"add rule {INET} accepted accept",
    ]


def disown(former: Former, addresses: Iterable[tuple[str, IPAddress]], epoch: int) -> list[str]:
    """Return commands after which no flow of the addresses outlives an epoch.

    :param former: what is in force.
    """
    change = Transaction()
    for bridge, address in addresses:
        name = f"{INET} former{address.version}"
        # The kernel refuses ranges that overlap.
        if (bound := former.get((bridge, address))) is not None:
            change.delete(name, [_range(bridge, address, bound)])
        change.add(name, [_range(bridge, address, epoch)])
    return change.commands()


def forget(former: Former, addresses: Iterable[tuple[str, IPAddress]]) -> list[str]:
    """Return commands that forget the former owners of addresses that nobody has any more.

    Whoever has one of them next is told apart from all who had it before.

    :param former: what is in force; what it does not hold is passed over.
    """
    change = Transaction()
    for bridge, address in addresses:
        if (bound := former.get((bridge, address))) is not None:
            name = f"{INET} former{address.version}"
            change.delete(name, [_range(bridge, address, bound)])
    return change.commands()


def disown_none() -> list[str]:
    """Return commands that forget former addresses."""
    return [f"flush set {INET} former{version}" for version in (4, 6)]


def _range(bridge: str, address: IPAddress, epoch: int) -> str:
    return f'"{bridge}" . {address} . 0-{(epoch + 1 << SHIFT) - 1:#x}'
