"""Parsing and merging of rules, held to the naive reading of each rule by itself."""

from __future__ import annotations

import ipaddress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.firewall.rules import (
    EVERYTHING,
    Compiled,
    compile_rules,
    icmp_rectangles,
    merge,
    parse_address,
    parse_rule,
    service_number,
    services,
    subtract,
)
from appliance.model import FirewallRule
from appliance.testing.firewall import BAD_RULES, allow
from appliance.testing.firewall_draws import rules

SPANS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda pair: (pair[0], sum(pair)))
)


def numbers(spans: tuple[tuple[int, int], ...]) -> set[int]:
    return {number for low, high in spans for number in range(low, high + 1)}


@given(SPANS)
def test_merged_spans_are_the_union_in_order_and_apart(spans: list[tuple[int, int]]) -> None:
    merged = merge(spans)
    assert numbers(merged) == numbers(tuple(spans))
    assert all(first[1] + 1 < second[0] for first, second in pairwise(merged))


@given(SPANS, SPANS)
def test_subtraction_takes_away_exactly(
    spans: list[tuple[int, int]], taken: list[tuple[int, int]]
) -> None:
    left = subtract(merge(spans), merge(taken))
    assert numbers(left) == numbers(tuple(spans)) - numbers(tuple(taken))


@pytest.mark.parametrize("rule", BAD_RULES, ids=lambda rule: rule.rule_id)
def test_a_malformed_rule_matches_nothing(rule: FirewallRule) -> None:
    assert parse_rule(rule) == ()


@pytest.mark.parametrize(
    ("rule", "span"),
    [
        (allow(peer="0.0.0.0/0"), EVERYTHING),
        (allow(-1, 22, 22, peer="0.0.0.0/0"), EVERYTHING),
        (allow(6, peer="0.0.0.0/0"), (6 << 16, 6 << 16 | 65535)),
        (allow(6, 0, 0, peer="0.0.0.0/0"), (6 << 16, 6 << 16)),
        (allow(17, 53, 54, peer="0.0.0.0/0"), (17 << 16 | 53, 17 << 16 | 54)),
        (allow(1, 8, -1, peer="0.0.0.0/0"), (1 << 16 | 0x800, 1 << 16 | 0x8FF)),
        (allow(1, 3, 4, peer="0.0.0.0/0"), (1 << 16 | 0x304, 1 << 16 | 0x304)),
        (allow(112, peer="0.0.0.0/0"), (112 << 16, 112 << 16 | 65535)),
    ],
)
def test_the_services_of_a_rule(rule: FirewallRule, span: tuple[int, int]) -> None:
    (match,) = parse_rule(rule)
    assert match.span == span


def test_icmp_of_a_group_is_of_one_family() -> None:
    assert [match.family for match in parse_rule(allow(1, peer="sg-a"))] == [4]
    assert [match.family for match in parse_rule(allow(58, peer="sg-a"))] == [6]
    assert [match.family for match in parse_rule(allow(6, peer="sg-a"))] == [4, 6]


def test_overlapping_ports_and_ranges_become_disjoint() -> None:
    given_rules = [
        allow(6, 1, 65535, peer="0.0.0.0/0"),
        allow(6, 22, 22, peer="10.0.0.0/8"),
        allow(6, 20, 30, peer="10.1.0.0/16"),
        allow(17, 53, 53, peer="10.1.0.0/16"),
        allow(17, 50, 60, peer="10.1.2.0/24"),
    ]
    compiled = compile_rules(given_rules, 4)
    named = {str(cidr): spans for cidr, spans in compiled.cidrs.items()}
    udp = 17 << 16
    assert named == {
        "0.0.0.0/0": ((6 << 16 | 1, 6 << 16 | 65535),),
        "10.1.0.0/16": ((udp | 53, udp | 53),),
        "10.1.2.0/24": ((udp | 50, udp | 52), (udp | 54, udp | 60)),
    }


PEERS = ("10.64.1.2", "10.64.1.9", "192.0.2.7", "8.8.8.8", "fd00:1::2", "fd00:1::9", "fe80::1")
SERVICES = tuple(
    [service_number(protocol, port) for protocol in (6, 17) for port in (7, 22, 53, 80, 443, 65535)]
    + [service_number(1, icmp_type=kind, icmp_code=code) for kind in (3, 8) for code in (0, 1)]
    + [service_number(58, icmp_type=kind) for kind in (128, 135)]
    + [service_number(protocol) for protocol in (50, 89, 112, 253)]
)


@given(st.lists(rules(), max_size=12))
def test_merging_allows_what_the_single_rules_allow(drawn: list[FirewallRule]) -> None:
    for family in (4, 6):
        compiled = compile_rules(drawn, family)
        for text in PEERS:
            peer = parse_address(text)
            assert peer is not None
            if peer.version != family:
                continue
            for service in SERVICES:
                singly = any(
                    match.family == family
                    and match.cidr is not None
                    and peer in match.cidr
                    and match.span[0] <= service <= match.span[1]
                    for rule in drawn
                    for match in parse_rule(rule)
                )
                assert entries(compiled, peer, service) == int(singly)


def entries(compiled: Compiled, peer: object, service: int) -> int:
    """Return how many merged entries match: never more than one."""
    return sum(
        low <= service <= high
        for cidr, spans in compiled.cidrs.items()
        if peer in cidr
        for low, high in spans
    )


@given(st.lists(rules(), max_size=8))
def test_rectangles_cover_their_spans(drawn: list[FirewallRule]) -> None:
    for spans in compile_rules(drawn, 4).cidrs.values():
        found = set()
        for service in services(spans):
            assert service.is_whole or service.first_protocol == service.last_protocol
            for protocol in range(service.first_protocol, service.last_protocol + 1):
                low, high = service.first_port, service.last_port
                found |= {n for n in SERVICES if n >> 16 == protocol and low <= n & 0xFFFF <= high}
        assert found == {n for n in SERVICES for low, high in spans if low <= n <= high}


@pytest.mark.parametrize(
    ("low", "high"), [(0x800, 0x8FF), (0x803, 0x803), (0x803, 0xA02), (0, 0xFFFF), (0x8FF, 0x900)]
)
def test_icmp_rectangles_cover_types_and_codes(low: int, high: int) -> None:
    (service,) = services([(1 << 16 | low, 1 << 16 | high)])
    covered = {
        kind << 8 | code
        for (first, last), (low_code, high_code) in icmp_rectangles(service)
        for kind in range(first, last + 1)
        for code in range(low_code, high_code + 1)
    }
    assert covered == set(range(low, high + 1))


def test_ten_thousand_rules_are_merged_in_reasonable_time() -> None:
    base = int(ipaddress.IPv4Address("10.0.0.0"))
    many = [
        allow(6, n % 60000, n % 60000 + 3, peer=f"{ipaddress.IPv4Address(base + n)}/32")
        for n in range(9000)
    ]
    many += [allow(6, n, 65535, peer="0.0.0.0/0") for n in range(1000)]
    assert len(compile_rules(many, 4).cidrs) == 1
