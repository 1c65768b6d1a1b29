"""The part of the rules that does not depend on any network: tables, hooks, guard, anti-spoofing.

Bridge family: what a tap may send and receive, stateless, keyed by the tap. Inet family: state
and group rules, keyed by (bridge, address), because br_netfilter shows the bridge and not the
tap. A bridged packet proves with a class in ``meta priority`` that it has been through the inet
family: without br_netfilter nothing would set it, and the packet is dropped.
"""

from __future__ import annotations

from itertools import product

from anynode_firewall_nftables import epochs
from anynode_firewall_nftables.parts import TABLE

LAYOUT = "layout-3"
"""Name of a set that says which structure the tables have; another one is replaced whole."""

PROOF = "a11e:b0de"
"""Class that marks a bridged packet between the inet family and the bridge's forward hook."""

BRIDGE_SETS = {
    "taps": "type ifname",
    "mac": "type ifname . ether_addr",
    "own4": "type ifname . ether_addr . ipv4_addr",
    "own6": "type ifname . ether_addr . ipv6_addr",
    "arp_targets": "type ifname . ipv4_addr",
    "nd_targets": "typeof iifname . @th,64,128",
}

NETWORK_MAPS = {
    "zones": "goto",
    "egress": "goto",
    "ingress": "goto",
    "bridged": "jump",
    "input": "goto",
    "output": "goto",
}
"""Verdict maps from a bridge to the chain of its network, one for each place that asks."""

MULTICAST_REPORTS = "{ mld-listener-report, mld-listener-done, mld2-listener-report }"
_SOLICIT = "ip6 hoplimit 255 icmpv6 type nd-neighbor-solicit"
_ARP_PROBE = "arp operation request arp saddr ip 0.0.0.0"
_JUDGED = "jump known"
_UNKNOWN_FROM = 'iifname "an*" iifname . meta mark @tap_names drop'
_UNKNOWN_TO = 'oifname "an*" oifname != @networks oifname . meta mark @tap_names drop'

# One comparison after the other: cheaper for a packet than looking its protocol up in a set.
_WHOLE = (
    "meta l4proto udp jump udp-from-tap",
    "meta l4proto icmp jump icmp-from-tap",
    "meta l4proto ipv6-icmp jump icmp-from-tap",
)

_BRIDGE_CHAINS: dict[str, tuple[str, ...]] = {
    "prerouting": (
        "type filter hook prerouting priority -300; policy accept;",
        "ether type ip iifname . ether saddr . ip saddr @own4 accept",
        "ether type ip6 iifname . ether saddr . ip6 saddr @own6 accept",
        "iifname @taps goto from-tap",
        _UNKNOWN_FROM,
    ),
    "input": (
        "type filter hook input priority 0; policy accept;",
        "ether daddr 01:80:c2:00:00:00-01:80:c2:00:00:0f iifname @taps drop",
        'iifname "an*" iifname != @taps iifname . meta mark @tap_names drop',
        *_WHOLE,
    ),
    "forward": (
        "type filter hook forward priority 10; policy accept;",
        *_WHOLE,
        f"meta priority {PROOF} meta priority set none accept",
        "ether type { ip, ip6 } iifname @taps drop",
        "ether type { ip, ip6 } oifname @taps drop",
    ),
    "postrouting": (
        "type filter hook postrouting priority -300; policy accept;",
        "ether type ip oifname . ether daddr . ip daddr @own4 accept",
        "ether type ip6 oifname . ether daddr . ip6 daddr @own6 accept",
        "oifname @taps goto to-tap",
        _UNKNOWN_FROM.replace("iifname", "oifname"),
    ),
    "from-tap": (
        "",
        "ether type != { ip, ip6, arp } drop",
        "iifname . ether saddr != @mac drop",
        "ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept",
        f"ip6 saddr :: icmpv6 type {MULTICAST_REPORTS} accept",
        "ip6 saddr :: ip6 hoplimit 255 icmpv6 type nd-router-solicit accept",
        f"{_SOLICIT} ip6 saddr :: iifname . @th,64,128 @nd_targets accept",
        "ether type != arp drop",
        "arp htype != 1 drop",
        "arp ptype != ip drop",
        "arp hlen != 6 drop",
        "arp plen != 4 drop",
        "iifname . arp saddr ether != @mac drop",
        "arp operation { request, reply } iifname . ether saddr . arp saddr ip @own4 accept",
        f"{_ARP_PROBE} iifname . ether saddr . arp daddr ip @own4 accept",
        "drop",
    ),
    # What only a whole packet shows: forward and input see fragments put together.
    "udp-from-tap": (
        "",
        "th sport 67 iifname @taps drop",
        "th sport 547 iifname @taps drop",
        "th dport 68 iifname @taps drop",
        "th dport 546 iifname @taps drop",
    ),
    "icmp-from-tap": (
        "",
        "icmp type redirect iifname @taps drop",
        "icmpv6 type { mld-listener-query, nd-router-advert, nd-redirect } iifname @taps drop",
        "icmpv6 type nd-neighbor-advert iifname @taps iifname . @th,64,128 != @nd_targets drop",
    ),
    "to-tap": (
        "",
        "ether type != { ip, ip6, arp } drop",
        "ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 oifname . ether daddr != @mac drop",
        "arp htype 1 arp ptype ip arp hlen 6 arp plen 4 oifname . arp daddr ip @arp_targets accept",
        "ip daddr 255.255.255.255 udp sport 67 udp dport 68 accept",
        "ip6 daddr != ff02::/16 drop",
        "icmpv6 type mld-listener-query accept",
        "ip6 hoplimit != 255 drop",
        f"{_SOLICIT} oifname . @th,64,128 @nd_targets accept",
        "icmpv6 type { nd-router-advert, nd-neighbor-advert } accept",
        "drop",
    ),
}

_INET_CHAINS: dict[str, tuple[str, ...]] = {
    "prerouting": (
        "type filter hook prerouting priority -300; policy accept;",
        "iifname vmap @zones",
        _UNKNOWN_FROM,
    ),
    "egress": (
        "type filter hook forward priority -20; policy accept;",
        _JUDGED,
        "iifname vmap @egress",
    ),
    "ingress": (
        "type filter hook forward priority -10; policy accept;",
        "iifname vmap @bridged",
        _JUDGED,
        "oifname vmap @ingress",
        _UNKNOWN_TO,
        "iifname @networks goto accepted",
    ),
    "input": (
        "type filter hook input priority -10; policy accept;",
        _JUDGED,
        "iifname vmap @input",
    ),
    "output": (
        "type filter hook output priority -10; policy accept;",
        _JUDGED,
        "oifname vmap @output",
        _UNKNOWN_TO,
    ),
    "ended": ("", f"{epochs.END} drop"),
    # Flows of one who had the address before are as if they were not tracked.
    "former-from": (
        "",
        f"iifname . ip saddr . ct mark @former4 {epochs.END}",
        f"iifname . ip6 saddr . ct mark @former6 {epochs.END}",
    ),
    "former-to": (
        "",
        f"oifname . ip daddr . ct mark @former4 {epochs.END}",
        f"oifname . ip6 daddr . ct mark @former6 {epochs.END}",
    ),
}


def _tap_names() -> str:
    """Return a set of patterns for taps: "an" and hexadecimal digits, so not the bridge anbr0.

    Beside each stands any mark: with every change of elements libnftables lists all sets of
    ranges, in every table of the machine, except those of more than one field.
    """
    pairs = ("".join(pair) for pair in product("0123456789abcdef", repeat=2))
    return ", ".join(f'"an{pair}*" . 0-0xffffffff' for pair in pairs)


def hooked_chains() -> dict[str, dict[str, int]]:
    """Return for each family the chains of this module and how many rules each must have."""
    counts = {
        family: {name: len(lines) - 1 for name, lines in chains.items()}
        for family, chains in (("bridge", _BRIDGE_CHAINS), ("inet", _INET_CHAINS))
    }
    counts["inet"] |= epochs.RULES
    return counts


def render_base() -> list[str]:
    """Return commands that put the base in place and leave all else as it is; repeatable."""
    lines: list[str] = []
    for family, chains in (("bridge", _BRIDGE_CHAINS), ("inet", _INET_CHAINS)):
        table = f"{family} {TABLE}"
        lines.append(f"add table {table}")
        lines.append(f"add set {table} {LAYOUT} {{ type mark; }}")
        lines.append(f"add set {table} tap_names {{ type ifname . mark; flags interval; }}")
        # Not flushed before: what is there already is passed over, ten times as fast.
        lines.append(f"add element {table} tap_names {{ {_tap_names()} }}")
        if family == "bridge":
            lines += [f"add set {table} {name} {{ {kind}; }}" for name, kind in BRIDGE_SETS.items()]
        else:
            lines.append(f"add set {table} networks {{ type ifname; }}")
            lines += [
                f"add map {table} {name} {{ type ifname : verdict; }}" for name in NETWORK_MAPS
            ]
            lines += [f"add set {table} {name} {{ {kind}; }}" for name, kind in epochs.SETS.items()]
            lines += [f"add chain {table} {name}" for name in epochs.RULES]
        for name, (hook, *_) in chains.items():
            lines.append(f"add chain {table} {name}" + (f" {{ {hook} }}" if hook else ""))
            lines.append(f"flush chain {table} {name}")
        for name, (_, *rules) in chains.items():
            lines += [f"add rule {table} {name} {rule}" for rule in rules]
    return lines
