"""Epochs that come to their end, former addresses that are many, marks of other programs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from anynode_firewall_nftables import judging
from anynode_firewall_nftables.driver import NftablesFirewall
from anynode_firewall_nftables.epochs import ENDED, MASK, SHIFT
from anynode_firewall_nftables.kernel import Ruleset
from anynode_firewall_nftables.netfilter import Flow, Netfilter

from appliance.errors import Stale
from appliance.firewall import UPLINK, Packet
from appliance.firewall.rules import ICMP
from appliance.model import FirewallPort
from appliance.run import run
from appliance.testing.firewall import allow, make_network, make_port
from appliance.testing.firewall_draws import UPLINK_MAC
from appliance.testing.firewall_lab import FirewallLab, uplink_name
from appliance.testing.firewall_packets import STRANGER, Bench, answer_to, outward
from appliance.testing.frames import encode

pytestmark = pytest.mark.node

UDP_7 = allow(17, 7, 7, peer="0.0.0.0/0")
UDP_9 = allow(17, 9, 9, peer="0.0.0.0/0")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    lab = FirewallLab(NftablesFirewall(tmp_path))
    yield Bench(lab, make_network(1))
    lab.close()


def take_rules_away(bench: Bench) -> None:
    """Take a rule away that no flow needs, and put it back."""
    group_a, group_b = bench.policy.groups
    extra = allow(6, 99, 99, peer="192.0.2.0/24")
    bench.update(
        groups=(group_a, msgspec.structs.replace(group_b, ingress=(*group_b.ingress, extra)))
    )
    bench.update(groups=(group_a, group_b))


def epoch(bench: Bench) -> int | None:
    return bench.lab.namespace.call(Ruleset().epoch)


def flows(bench: Bench, port: int) -> list[Flow]:
    found: list[Flow] = bench.lab.namespace.call(Netfilter().flows)
    # The port of the far end: it is in the tuple, whose bytes the handle has.
    return [flow for flow in found if port.to_bytes(2, "big") in flow.handle]


def test_no_flow_is_judged_by_an_epoch_of_the_same_number(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Revoked, silent until the epochs have begun again, and still not let through."""
    monkeypatch.setattr(judging, "LAST", 5)
    bench.sync(UDP_7, UDP_9)
    for _ in range(6):
        bench.policy = msgspec.structs.replace(bench.policy, revision=bench.policy.revision + 1)
        bench.sync(UDP_7, UDP_9)
        silent, kept = bench.packet(), bench.packet(destination_port=9)
        for packet in (silent, kept):
            assert bench.does_pass(packet)
            assert bench.does_pass(answer_to(packet))
        group_a, group_b = bench.policy.groups
        bench.update(groups=(group_a, msgspec.structs.replace(group_b, ingress=(UDP_9,))))
        seen = set()
        for _ in range(7):
            seen.add(epoch(bench))
            assert bench.does_pass(answer_to(kept))
            take_rules_away(bench)
        assert seen == {1, 2, 3, 4, 5}
        assert not bench.does_pass(answer_to(silent), wanted=False)
        assert not bench.does_pass(silent, wanted=False)


def test_many_former_addresses_are_swept_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "FORMER_LIMIT", 7)
    bench.sync(UDP_7)
    kept = bench.packet()
    assert bench.does_pass(kept)
    for number in range(20, 30):
        port = make_port(bench.network, number, "sg-a")
        bench.lab.add_ports(bench.network, [port])
        own = {"source": port.tap, "ether_src": port.mac, "ip_src": port.addresses[0]}
        others = bench.policy.ports
        bench.update(ports=(*others, port))
        asked = msgspec.structs.replace(outward(bench), **own)
        assert bench.does_pass(asked)
        bench.update(ports=others)
        heir = adopt(bench, port, number + 50)
        mine = msgspec.structs.replace(asked, source=heir.tap, ether_src=heir.mac)
        assert not bench.does_pass(answer_to(mine), wanted=False)
        assert bench.does_pass(answer_to(kept))
    former = bench.lab.namespace.call(Ruleset().former)
    assert 0 < len(former) <= 7
    addresses = [str(flow.source) for flow in flows(bench, 7)]
    assert "10.64.1.20" not in addresses, "flows of those long gone were ended"
    assert bench.a.addresses[0] in addresses


def adopt(bench: Bench, port: FirewallPort, number: int) -> FirewallPort:
    """Give the addresses of a port that is gone to another one."""
    heir = msgspec.structs.replace(
        make_port(bench.network, number, "sg-a"), addresses=port.addresses
    )
    bench.lab.add_ports(bench.network, [heir])
    bench.update(ports=(*bench.policy.ports, heir))
    return heir


def test_a_new_daemon_knows_epoch_and_former_addresses(bench: Bench, tmp_path: Path) -> None:
    bench.sync(UDP_7)
    asked = outward(bench)
    assert bench.does_pass(asked)
    bench.update(ports=(bench.b,))
    before = epoch(bench)
    bench.lab.install(NftablesFirewall(tmp_path))
    with pytest.raises(Stale):
        bench.update(ports=(bench.a, bench.b))
    bench.lab.firewall.guard()
    bench.lab.firewall.sync(bench.policy)
    assert before is not None
    assert epoch(bench) == before + 1
    for number in (41, 42):
        heir = adopt(bench, bench.a, number)
        mine = msgspec.structs.replace(asked, source=heir.tap, ether_src=heir.mac)
        assert not bench.does_pass(answer_to(mine), wanted=False)
        assert bench.does_pass(mine)
        bench.update(ports=(bench.b,))


def test_marks_are_cleared_where_no_epoch_is_known(bench: Bench) -> None:
    """After somebody has flushed all rules, no flow passes because of what it was marked with."""
    bench.sync(UDP_7)
    packet = bench.packet()
    assert bench.does_pass(packet)
    assert bench.does_pass(answer_to(packet))
    bench.lab.namespace.call(run, ["nft", "flush", "ruleset"], deadline_s=30)
    bench.sync()
    assert not bench.does_pass(answer_to(packet), wanted=False)
    assert not bench.does_pass(packet, wanted=False)


@pytest.mark.parametrize(
    "statement", ["ct mark set ct mark and 0xfff00000 or 0x42", "ct mark set 0x42"]
)
def test_marks_of_others_stay_and_cut_nothing(bench: Bench, statement: str) -> None:
    """Another program marks flows, in its bits or carelessly in all: ours go on, or are cut."""
    rule = (
        "add table inet other; add chain inet other c { type filter hook forward priority 5; }; "
        f"add rule inet other c {statement}"
    )
    bench.lab.namespace.call(run, ["nft", rule], deadline_s=30)
    bench.sync(UDP_7)
    packet = bench.packet()
    for _ in range(3):
        assert bench.does_pass(packet)
        assert bench.does_pass(answer_to(packet))
        take_rules_away(bench)
    bench.lab.namespace.call(run, ["nft", "delete table inet other"], deadline_s=30)
    assert bench.does_pass(answer_to(packet))
    (flow,) = flows(bench, packet.source_port)
    assert flow.mark & ~MASK == 0x42
    assert flow.mark >> SHIFT == epoch(bench)
    group_a, group_b = bench.policy.groups
    bench.update(groups=(group_a, msgspec.structs.replace(group_b, ingress=())))
    assert not bench.does_pass(answer_to(packet), wanted=False)
    (flow,) = flows(bench, packet.source_port)
    assert (flow.mark & ~MASK, flow.mark >> SHIFT) == (0x42, ENDED)


def test_an_error_speaks_for_no_flow(bench: Bench) -> None:
    """Errors of a flow that has ended do not pass; and none keeps a flow that is not allowed."""
    bench.sync(UDP_7)
    packet = bench.packet()
    assert bench.does_pass(packet)
    assert bench.does_pass(answer_to(packet))
    assert reports(bench, packet), "the flow is alive"
    group_a, group_b = bench.policy.groups
    bench.update(groups=(group_a, msgspec.structs.replace(group_b, ingress=())))
    assert not reports(bench, packet), "nobody has sent anything since"
    assert not bench.does_pass(answer_to(packet), wanted=False)
    assert not bench.does_pass(packet, wanted=False)
    assert not reports(bench, packet)


def reports(bench: Bench, packet: Packet) -> bool:
    """Report from the world that a packet of ``a`` could not be delivered; say whether it comes."""
    error = bench.packet(
        source=UPLINK,
        destination=packet.source,
        ether_src=UPLINK_MAC,
        ether_dst=packet.ether_src,
        ip_src=STRANGER,
        ip_dst=packet.ip_src,
        protocol=ICMP,
        icmp_type=3,
        icmp_code=1,
        source_port=0,
    )
    (inner,) = encode(packet)
    (frame,) = encode(error, inner[14 : 14 + 28])
    bench.lab.received(bench.a.tap)
    bench.lab.send(uplink_name(bench.network), frame)
    return any(inner[14:42] in got for got in bench.lab.received(bench.a.tap))


def test_an_address_that_nobody_has_is_forgotten(bench: Bench) -> None:
    """What remembers its former owners goes with it; who has it next is told apart from all."""
    bench.sync(UDP_7)
    before = bench.lab.namespace.call(Ruleset().former)
    others = bench.policy.ports
    port = make_port(bench.network, 20, "sg-a")
    bench.lab.add_ports(bench.network, [port])
    own = {"source": port.tap, "ether_src": port.mac, "ip_src": port.addresses[0]}
    asked = msgspec.structs.replace(outward(bench), **own)
    for _ in range(2):
        bench.update(ports=(*others, port))
        assert bench.does_pass(asked)
        bench.update(ports=others)
        assert bench.lab.namespace.call(Ruleset().former) == before
    heir = adopt(bench, port, 70)
    mine = msgspec.structs.replace(asked, source=heir.tap, ether_src=heir.mac)
    assert not bench.does_pass(answer_to(mine), wanted=False)
