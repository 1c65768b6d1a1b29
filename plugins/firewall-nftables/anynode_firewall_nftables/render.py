"""From values of a policy to parts: pure, one function for each kind of part."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import product

from anynode_firewall_nftables.base import MULTICAST_REPORTS, NETWORK_MAPS, PROOF
from anynode_firewall_nftables.epochs import IS_ENDED, IS_LIVE
from anynode_firewall_nftables.names import canonical_mac, checked_device, is_device, token
from anynode_firewall_nftables.parts import BRIDGE, EMPTY, INET, Part
from appliance.errors import InputError
from appliance.firewall import METADATA_ADDRESS, Compiled, compile_rules, own_addresses, services
from appliance.firewall.rules import FAMILIES, ICMP, ICMPV6, Service, Span, icmp_rectangles
from appliance.firewall.rules import parse_address as parse
from appliance.model import FirewallGroup, FirewallPort, NetworkSpec

_DISCOVERY = "ip6 hoplimit 255 icmpv6 type"
_NOT_OPENING = "tcp flags & (fin | syn | rst | ack) != syn drop"
_IS_ANSWER = f"ct direction reply {IS_LIVE}"
_DISCOVERED = f"{_DISCOVERY} {{ nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert }} accept"
_PROVE = f"meta priority set {PROOF}"
_IP = {4: "ip", 6: "ip6"}
_TYPES = {
    "p": "inet_proto",
    "s": "inet_proto . inet_service",
    "i": "icmp_type . icmp_code",
    "r": "icmp_type . icmp_code",
}
"""What stands beside the peer in the sets of ranges: protocols, services, ICMP and its answers."""
_ICMP = {4: ("icmp", ICMP), 6: ("icmpv6", ICMPV6)}
_ANSWERED = {4: {8: 0, 13: 14, 15: 16, 17: 18}, 6: {128: 129, 139: 140}}
"""Types of ICMP that open a flow, and those of their answers."""

_WAYS = ("in", "out", "in-answers", "out-answers")
"""What asks for rules: packets on their way in or out, and answers in flows that went so."""

_OPENER = {"p": "meta l4proto", "s": "meta l4proto . th dport", "i": "icmp type . icmp code"}
_ANSWER = {"p": "meta l4proto", "s": "meta l4proto . th sport", "r": "icmp type . icmp code"}
_FIELDS = {"in": _OPENER, "out": _OPENER, "in-answers": _ANSWER, "out-answers": _ANSWER}
_PEER = {"in": "saddr", "out": "daddr", "in-answers": "daddr", "out-answers": "saddr"}

_LAST_ASKED = ("in", "out-answers")
"""The ways that are asked after the others: what they let through has passed every rule."""

_VERDICT = {way: "goto accepted" if way in _LAST_ASKED else "accept" for way in _WAYS}


def network_part(network: NetworkSpec, zone: int) -> Part:
    """Return the chains of a network and its entries in the maps from bridge to chain.

    :raises InputError: the bridge or a range of the network is malformed.
    """
    net, bridge = network.network_id, checked_device(network.bridge)
    chains = {
        f"zones.{net}": tuple(_zone_rules(network, zone)),
        f"egress.{net}": (*_answers_from(net), *_by_address(net, "saddr", f"goto out.{net}")),
        f"from.{net}": _by_address(net, "saddr", f"goto in-answers.{net}"),
        f"ingress.{net}": (
            _DISCOVERED,
            "ct state established,related jump former-to",
            f"{_IS_ANSWER} goto to.{net}",
            *_by_address(net, "daddr", f"goto in.{net}"),
            "goto accepted",
        ),
        f"to.{net}": (*_by_address(net, "daddr", f"goto out-answers.{net}"), "goto accepted"),
        f"bridged.{net}": (
            f'oifname != "{bridge}" return',
            f"ct original zone {zone} {_PROVE} jump known",
            f"ct state untracked {_PROVE}",
        ),
        f"input.{net}": tuple(_input_rules(network)),
        f"output.{net}": (
            "meta nfproto ipv4 udp sport 67 udp dport 68 accept",
            "meta nfproto ipv6 udp sport 547 udp dport 546 accept",
            _DISCOVERED,
            "ct state established,related jump former-to",
            # What an instance asked of the node, and errors of what the node carries for it.
            f"{_IS_ANSWER} accept",
            f"ct state related {IS_LIVE} accept",
            *_by_address(net, "daddr", f"goto in.{net}"),
        ),
        f"out.{net}": (
            f"{_DISCOVERY} {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} accept",
            f"icmpv6 type {MULTICAST_REPORTS} accept",
            *_opening(f"profiles.out.{net}"),
        ),
        f"in.{net}": _opening(f"profiles.in.{net}"),
        **{
            f"{way}.{net}": (
                "ct state related drop",
                f"meta priority vmap @profiles.{way}.{net}",
                "goto ended",
            )
            for way in ("in-answers", "out-answers")
        },
    }
    return Part(
        sets={
            f"a4.{net}": "type ipv4_addr : classid",
            f"a6.{net}": "type ipv6_addr : classid",
            **{f"profiles.{way}.{net}": "type classid : verdict" for way in _WAYS},
        },
        chains=chains,
        elements={
            f"{INET} {name}": frozenset({f'"{bridge}" : {verdict} {name}.{net}'})
            for name, verdict in NETWORK_MAPS.items()
        },
    )


def _answers_from(net: str) -> tuple[str, ...]:
    return ("ct state established,related jump former-from", f"{_IS_ANSWER} goto from.{net}")


def _by_address(net: str, field: str, verdict: str) -> tuple[str, ...]:
    """Return the rules that look up the profile of an address of this network."""
    return tuple(
        f"meta priority set {_IP[family]} {field} map @a{family}.{net} {verdict}"
        for family in FAMILIES
    )


def _opening(profiles: str) -> tuple[str, ...]:
    """Return the rules for a packet that opens a flow, or that goes on with one in its direction.

    What has ended is as if it were not tracked: it has to be opened anew.
    """
    return (
        "ct state invalid,untracked,related drop",
        "meta nfproto ipv4 meta l4proto ipv6-icmp drop",
        "meta nfproto ipv6 meta l4proto icmp drop",
        f"ct state new {_NOT_OPENING}",
        f"{IS_ENDED} {_NOT_OPENING}",
        f"{IS_ENDED} ct direction reply meta l4proto {{ icmp, ipv6-icmp }} drop",
        f"meta priority vmap @{profiles}",
        "goto ended",
    )


def _zone_rules(network: NetworkSpec, zone: int) -> Iterator[str]:
    """Yield the choice of the conntrack zone.

    Within the network both directions count in its zone, so that equal ranges of two networks
    never meet. What leaves it has its answers in zone 0, where translated and routed packets come
    back; the node's own addresses are outside in this sense.
    """
    both = f"fib daddr . iif type != local ct zone set {zone} accept"
    if cidr := _range(network.cidr, 4):
        yield f"ip saddr {cidr} ip daddr {cidr} {both}"
    # A client without an address looks the same in every network, and so would its answers.
    yield f"ip saddr 0.0.0.0 ip daddr 255.255.255.255 ct zone set {zone} accept"
    ranges = [cidr for cidr in ("fe80::/10", _range(network.cidr6, 6)) if cidr]
    for source, destination in product(ranges, ranges):
        yield f"ip6 saddr {source} ip6 daddr {destination} {both}"
    yield f"ct original zone set {zone}"


def _range(cidr: str, version: int) -> str:
    if not cidr:
        return ""
    try:
        network = ipaddress.ip_network(cidr, strict=False)
    except ValueError as error:
        raise InputError(f"{cidr!r} is no range of addresses of a network.") from error
    if network.version != version:
        raise InputError(f"{cidr!r} is no range of IPv{version} addresses.")
    return str(network)


def _input_rules(network: NetworkSpec) -> Iterator[str]:
    net = network.network_id
    yield "meta nfproto ipv4 udp sport 68 udp dport 67 accept"
    yield "meta nfproto ipv6 udp sport 546 udp dport 547 accept"
    yield f"{_DISCOVERY} {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} accept"
    yield from _answers_from(net)
    yield (
        f"meta l4proto tcp ct original ip daddr {METADATA_ADDRESS} ct original proto-dst 80 "
        "goto accepted"
    )
    for family, gateway in ((4, network.gateway), (6, network.gateway6)):
        address = parse(gateway)
        if address and address.version == family:
            field = f"{_IP[family]} daddr {address}"
            yield f"{field} meta l4proto . th dport {{ tcp . 53, udp . 53 }} goto accepted"
            yield f"{field} {_ICMP[family][0]} type echo-request goto accepted"
    yield from _by_address(net, "saddr", "drop")


def port_part(network_id: str, port: FirewallPort, profile: int) -> Part:
    """Return the elements of a port; none for a malformed one, which the guard then drops."""
    mac = canonical_mac(port.mac)
    if mac is None or not is_device(port.tap):
        return EMPTY
    tap = f'"{port.tap}"'
    own = own_addresses(port)
    addresses = {
        family: [str(address) for address in own if address.version == family]
        for family in FAMILIES
    }
    targets = [int(address) for address in own if address.version == 6]
    value = f"{profile >> 16:x}:{profile & 0xFFFF:x}"
    return Part(
        elements={
            f"{BRIDGE} taps": frozenset({f'{tap} comment "{network_id}"'}),
            f"{BRIDGE} mac": frozenset({f"{tap} . {mac}"}),
            f"{BRIDGE} own4": frozenset(f"{tap} . {mac} . {a}" for a in addresses[4]),
            f"{BRIDGE} own6": frozenset(f"{tap} . {mac} . {a}" for a in addresses[6]),
            f"{BRIDGE} arp_targets": frozenset(f"{tap} . {a}" for a in addresses[4]),
            f"{BRIDGE} nd_targets": frozenset(f"{tap} . {number:#034x}" for number in targets),
            f"{INET} a4.{network_id}": frozenset(f"{a} : {value}" for a in addresses[4]),
            f"{INET} a6.{network_id}": frozenset(f"{a} : {value}" for a in addresses[6]),
        }
    )


def profile_part(network: NetworkSpec, group_ids: Iterable[str], profile: int) -> Part:
    """Return the chains of a set of groups that ports are in together.

    They begin by giving back the packet's class, which carried the number of the profile here.
    """
    network_id = network.network_id
    bridged = f'iifname "{network.bridge}" meta priority set {PROOF}'
    value = f"{profile >> 16:x}:{profile & 0xFFFF:x}"
    tokens = sorted(map(token, group_ids))
    return Part(
        chains={
            f"{way}.{network_id}.p{profile}": (
                "meta priority set none",
                *([bridged] if way in _LAST_ASKED else []),
                *(f"jump {way}.{network_id}.g.{group}" for group in tokens),
                "goto ended",
            )
            for way in _WAYS
        },
        elements={
            f"{INET} profiles.{way}.{network_id}": frozenset(
                {f"{value} : goto {way}.{network_id}.p{profile}"}
            )
            for way in _WAYS
        },
    )


def group_part(network_id: str, group: FirewallGroup) -> Part:
    """Return the chains with the rules of a group and the sets of the ranges in them.

    The sets are named, not part of a rule: the kernel fills a new set of ranges a moment after
    the rule that uses it is in force, and packets would be lost whenever a rule is made anew.
    """
    chains: dict[str, tuple[str, ...]] = {}
    sets: dict[str, str] = {}
    elements: dict[str, frozenset[str]] = {}
    for way, rules in (("in", group.ingress), ("out", group.egress)):
        own = f"{network_id}.g.{token(group.group_id)}"
        lines: dict[str, list[str]] = {way: [], f"{way}-answers": []}
        for family in FAMILIES:
            compiled = compile_rules(rules, family)
            for kind, keys in _range_keys(family, compiled).items():
                ranges = f"{kind}{family}.{way}.{own}"
                types = _TYPES[kind].replace("icmp", _ICMP[family][0])
                sets[ranges] = f"type ipv{family}_addr . {types}; flags interval"
                elements[f"{INET} {ranges}"] = frozenset(keys)
                for asking in lines:
                    if fields := _FIELDS[asking].get(kind):
                        fields = fields.replace("icmp", _ICMP[family][0])
                        peer = f"{_IP[family]} {_PEER[asking]} . {fields}"
                        lines[asking].append(f"{peer} @{ranges} {_VERDICT[asking]}")
            for group_id, spans in compiled.groups.items():
                members = f"m{family}.{network_id}.{token(group_id)}"
                for asking, found in lines.items():
                    peer = f"{_IP[family]} {_PEER[asking]} @{members}"
                    found += [
                        f"{peer} {match}{_VERDICT[asking]}"
                        for match in _matches(family, spans, _FIELDS[asking])
                    ]
        chains |= {f"{asking}.{own}": tuple(found) for asking, found in lines.items()}
    return Part(sets=sets, chains=chains, elements=elements)


def members_part(network_id: str, group_id: str, members: Iterable[str]) -> Part:
    """Return the sets of a group's members, malformed addresses left out."""
    names = {family: f"m{family}.{network_id}.{token(group_id)}" for family in FAMILIES}
    split = _by_family(members)
    return Part(
        sets={names[family]: f"type ipv{family}_addr" for family in FAMILIES},
        elements={f"{INET} {names[family]}": split[family] for family in FAMILIES},
    )


def changed_members(part: Part, before: frozenset[str], after: frozenset[str]) -> Part | None:
    """Return a group's sets with some members more and others less; costs what changed.

    ``None`` when one element may stand for several spellings of an address: then only rendering
    all of them tells which elements go.
    """
    if sum(map(len, part.elements.values())) != len(before):
        return None
    added, removed = _by_family(after - before), _by_family(before - after)
    elements = {
        name: keys - removed[family] | added[family]
        for family, (name, keys) in zip(FAMILIES, part.elements.items(), strict=True)
    }
    return Part(sets=part.sets, elements=elements)


def _by_family(members: Iterable[str]) -> dict[int, frozenset[str]]:
    found = frozenset(map(canonical_address, members)) - {""}
    six = frozenset(text for text in found if ":" in text)
    return {4: found - six, 6: six}


@lru_cache(maxsize=1 << 17)
def canonical_address(address: str) -> str:
    """Return the one spelling of an address; empty when it is malformed."""
    return str(parse(address) or "")


def _range_keys(family: int, compiled: Compiled) -> dict[str, list[str]]:
    """Return the keys of ranges of peers with services, by the kind of set they belong to."""
    found: dict[str, list[str]] = {}
    for cidr, spans in compiled.cidrs.items():
        for service in services(spans):
            for kind, keys in _keys(family, service).items():
                found.setdefault(kind, []).extend(f"{cidr} . {key}" for key in keys)
    return found


def _keys(family: int, service: Service) -> dict[str, list[str]]:
    protocol = service.first_protocol
    if service.is_whole:
        return {"p": [_interval(protocol, service.last_protocol)]}
    if protocol != _ICMP[family][1]:
        return {"s": [f"{protocol} . {_interval(service.first_port, service.last_port)}"]}
    rectangles = icmp_rectangles(service)
    answers = [
        f"{answer} . {_interval(*codes)}"
        for (low, high), codes in rectangles
        for asked, answer in _ANSWERED[family].items()
        if low <= asked <= high
    ]
    found = {"i": [f"{_interval(*kinds)} . {_interval(*codes)}" for kinds, codes in rectangles]}
    return found | ({"r": answers} if answers else {})


def _matches(family: int, spans: Iterable[Span], fields: Mapping[str, str]) -> Iterator[str]:
    """Yield a match for each service, without sets."""
    for service in services(spans):
        for kind, keys in _keys(family, service).items():
            if kind not in fields:
                continue
            names = fields[kind].replace("icmp", _ICMP[family][0]).split(" . ")
            for key in keys:
                pairs = zip(names, key.split(" . "), strict=True)
                yield "".join(f"{name} {value} " for name, value in pairs if value != "0-255")


def _interval(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"
