"""Rules of security groups as sets of services: parsed, merged and made disjoint.

A *service* is one number, protocol * 65536 + port; for ICMP and ICMPv6 the port is type * 256 +
code. A rule then is a peer and one span of services, whatever its protocol, and merging rules is
merging spans.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from appliance.model import FirewallRule

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Span = tuple[int, int]

ICMP, TCP, UDP, DCCP, ICMPV6, SCTP = 1, 6, 17, 33, 58, 132
PROTOCOLS_WITH_PORTS = frozenset({TCP, UDP, DCCP, SCTP})
EVERYTHING: Span = (0, 256 * 65536 - 1)
FAMILIES = (4, 6)


@dataclass(frozen=True, kw_only=True)
class Match:
    """What one rule matches in one IP family: either a range of peers or the members of a group."""

    rule_id: str
    family: int
    span: Span
    cidr: IPNetwork | None = None
    source_group_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """All matches of one family, merged: no two entries of ``cidrs`` overlap.

    ``cidrs`` maps a range of peers to spans of services, ``groups`` a group to spans.
    """

    cidrs: dict[IPNetwork, tuple[Span, ...]] = field(default_factory=dict)
    groups: dict[str, tuple[Span, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Service:
    """A rectangle of services: a range of protocols whole, or a range of ports of one protocol."""

    first_protocol: int
    last_protocol: int
    first_port: int = 0
    last_port: int = 65535

    @property
    def is_whole(self) -> bool:
        """Whether every port of the protocols belongs to it."""
        return self.first_port == 0 and self.last_port == 65535


@lru_cache(maxsize=1 << 17)
def parse_address(text: str) -> IPAddress | None:
    """Return the address; ``None`` when the text is none."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


@lru_cache(maxsize=1 << 12)
def parse_rule(rule: FirewallRule) -> tuple[Match, ...]:
    """Return what a rule matches, one item per IP family; nothing when it is malformed.

    The front door refuses malformed rules. One that came this far matches no packet and does not
    disturb the rules beside it.
    """
    span = _span(rule)
    if span is None or bool(rule.cidr) == bool(rule.source_group_id):
        return ()
    if rule.cidr:
        try:
            cidr = ipaddress.ip_network(rule.cidr, strict=True)
        except ValueError:
            return ()
        if rule.protocol == {4: ICMPV6, 6: ICMP}[cidr.version]:
            return ()
        return (Match(rule_id=rule.rule_id, family=cidr.version, span=span, cidr=cidr),)
    return tuple(
        Match(rule_id=rule.rule_id, family=family, span=span, source_group_id=rule.source_group_id)
        for family in FAMILIES
        if rule.protocol != {4: ICMPV6, 6: ICMP}[family]
    )


def _span(rule: FirewallRule) -> Span | None:
    protocol, low, high = rule.protocol, rule.from_port, rule.to_port
    if protocol == -1:
        return EVERYTHING
    if not 0 <= protocol <= 255:
        return None
    base = protocol << 16
    if (low, high) == (-1, -1):
        return base, base | 0xFFFF
    if protocol in (ICMP, ICMPV6):
        if not 0 <= low <= 255 or not -1 <= high <= 255:
            return None
        if high == -1:
            return base | low << 8, base | low << 8 | 0xFF
        return base | low << 8 | high, base | low << 8 | high
    if protocol in PROTOCOLS_WITH_PORTS and 0 <= low <= high <= 65535:
        return base | low, base | high
    return None


def service_number(protocol: int, port: int = 0, icmp_type: int = 0, icmp_code: int = 0) -> int:
    """Return the service that a packet asks for."""
    if protocol in (ICMP, ICMPV6):
        return protocol << 16 | icmp_type << 8 | icmp_code
    return protocol << 16 | (port if protocol in PROTOCOLS_WITH_PORTS else 0)


def merge(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Return the spans in order, with what overlaps or touches made one."""
    merged: list[Span] = []
    for low, high in sorted(spans):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def subtract(spans: Iterable[Span], taken: Iterable[Span]) -> tuple[Span, ...]:
    """Return what of the first spans is not in the second; both must be merged."""
    left = list(spans)
    for low, high in taken:
        rest: list[Span] = []
        for first, last in left:
            if last < low or high < first:
                rest.append((first, last))
                continue
            if first < low:
                rest.append((first, low - 1))
            if high < last:
                rest.append((high + 1, last))
        left = rest
    return tuple(left)


def compile_rules(rules: Iterable[FirewallRule], family: int) -> Compiled:
    """Merge the rules of one direction of a group for one IP family.

    Ranges of addresses are either disjoint or nested, so taking away from each what the ranges
    around it already allow leaves disjoint entries, at most a few for each rule.
    """
    by_cidr: dict[tuple[int, int], list[Span]] = {}
    by_group: dict[str, list[Span]] = {}
    for rule in rules:
        for match in parse_rule(rule):
            if match.family != family:
                continue
            if match.cidr is None:
                by_group.setdefault(match.source_group_id, []).append(match.span)
            else:
                key = (match.cidr.prefixlen, int(match.cidr.network_address))
                by_cidr.setdefault(key, []).append(match.span)
    own = {key: merge(spans) for key, spans in by_cidr.items()}
    bits = 32 if family == 4 else 128
    lengths = sorted({length for length, _ in own})
    cidrs: dict[IPNetwork, tuple[Span, ...]] = {}
    for length, base in sorted(own):
        around: list[Span] = []
        for shorter in lengths:
            if shorter < length:
                outer = base >> (bits - shorter) << (bits - shorter) if shorter else 0
                around.extend(own.get((shorter, outer), ()))
        spans = subtract(own[length, base], merge(around))
        if spans:
            network = ipaddress.IPv4Network if family == 4 else ipaddress.IPv6Network
            cidrs[network((base, length))] = spans
    return Compiled(
        cidrs=cidrs, groups={group: merge(spans) for group, spans in sorted(by_group.items())}
    )


def services(spans: Iterable[Span]) -> tuple[Service, ...]:
    """Return spans as rectangles that a packet filter can express."""
    found: list[Service] = []
    for low, high in spans:
        first, last = low >> 16, high >> 16
        low_port, high_port = low & 0xFFFF, high & 0xFFFF
        if first == last:
            found.append(_ports(first, low_port, high_port))
            continue
        if low_port:
            found.append(_ports(first, low_port, 0xFFFF))
            first += 1
        if high_port != 0xFFFF:
            found.append(_ports(last, 0, high_port))
            last -= 1
        if first <= last:
            found.append(Service(first_protocol=first, last_protocol=last))
    return tuple(found)


def _ports(protocol: int, low: int, high: int) -> Service:
    return Service(first_protocol=protocol, last_protocol=protocol, first_port=low, last_port=high)


def icmp_rectangles(service: Service) -> tuple[tuple[Span, Span], ...]:
    """Return a range of ICMP services as pairs of a range of types and a range of codes."""
    low_type, low_code = divmod(service.first_port, 256)
    high_type, high_code = divmod(service.last_port, 256)
    if low_type == high_type:
        return (((low_type, low_type), (low_code, high_code)),)
    found: list[tuple[Span, Span]] = []
    if low_code:
        found.append(((low_type, low_type), (low_code, 255)))
        low_type += 1
    if high_code != 255:
        found.append(((high_type, high_type), (0, high_code)))
        high_type -= 1
    if low_type <= high_type:
        found.append(((low_type, high_type), (0, 255)))
    return tuple(found)
