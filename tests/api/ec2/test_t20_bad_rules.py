"""T20: whatever rules a tenant asks for, they are refused or brought into their one form, and the
rules of the other tenants on the same host stay in force."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from anynode_firewall_nftables.driver import NftablesFirewall
from sqlalchemy import insert

from appliance.config import Config, NetworkSettings, QuotaSettings
from appliance.firewall import diff, verdict
from appliance.firewall.packet import Packet
from appliance.model import FirewallPort, NetworkPolicy
from appliance.store import Transaction, groups, policy, schema
from appliance.store.groups import Match
from appliance.testing.firewall_lab import FirewallLab
from tests.api.ec2.examples.instances import running
from tests.api.ec2.examples.others import new_group
from tests.api.ec2.examples.stage import Stage
from tests.api.front import Front

MANY = 10_000
TCP = 6
V4, V6 = "10.0.0.0/8", "2001:db8::/32"


def rule(protocol: str = "tcp", *ports: int, v4: str = V4, v6: str = "", **more: Any) -> Any:
    """Return a permission; its ports are 22 to 22 unless they are given."""
    low, high = ports or (22, 22)
    made: dict[str, Any] = {"IpProtocol": protocol, "FromPort": low, "ToPort": high}
    if v4:
        made["IpRanges"] = [{"CidrIp": v4}]
    if v6:
        made["Ipv6Ranges"] = [{"CidrIpv6": v6}]
    return made | more


REFUSED = {
    "ports in the wrong order": rule("tcp", 443, 80),
    "a port beyond the last": rule("tcp", 0, 65536),
    "a port below the first": rule("udp", -2, 80),
    "half a range of ports": rule("tcp", -1, 80),
    "an ICMP type beyond the last": rule("icmp", 256, -1),
    "a code without a type": rule("icmp", -1, 3),
    "a protocol beyond the last": rule("256"),
    "no such protocol": rule("tcpp"),
    "a protocol with a sign": rule("+6"),
    "/33": rule(v4="10.0.0.0/33"),
    "/-1": rule(v4="10.0.0.0/-1"),
    "/129": rule(v4="", v6="::/129"),
    "IPv6 in IPv4": rule(v4="2001:db8::/32"),
    "IPv4 in IPv6": rule(v4="", v6="10.0.0.0/8"),
    "no length": rule(v4="10.0.0.0"),
    "a mask for a length": rule(v4="10.0.0.0/255.0.0.0"),
    "an octal octet": rule(v4="010.0.0.0/8"),
    "five octets": rule(v4="10.0.0.0.0/8"),
    "a scope": rule(v4="", v6="fe80::1%eth0/64"),
    "a rule of another language": rule(v4="10.0.0.0/8; drop"),
    "a line break": rule(v4="10.0.0.0/8\n"),
    "no peer": rule(v4=""),
    "the same twice": rule(IpRanges=[{"CidrIp": "10.0.0.1/8"}, {"CidrIp": "10.9.9.9/8"}]),
    "a description with quotes": rule(IpRanges=[{"CidrIp": V4, "Description": '"; flush'}]),
}
NORMALISED = {
    "a name in capitals": (rule("TCP"), (TCP, 22, 22, V4)),
    "a number for a name": (rule("6"), (TCP, 22, 22, V4)),
    "a protocol without ports": (rule("112"), (112, -1, -1, V4)),
    "all protocols with ports": (rule("-1"), (-1, -1, -1, V4)),
    "host bits": (rule(v4="10.1.2.3/8"), (TCP, 22, 22, V4)),
    "IPv6 host bits": (rule(v4="", v6="2001:DB8::1/32"), (TCP, 22, 22, V6)),
    "everybody": (rule(v4="10.0.0.0/0"), (TCP, 22, 22, "0.0.0.0/0")),
    "everybody of IPv6": (rule(v4="", v6="::1/0"), (TCP, 22, 22, "::/0")),
    "one host": (rule(v4="10.0.0.1/32"), (TCP, 22, 22, "10.0.0.1/32")),
    "all ports": (rule("tcp", 0, 65535), (TCP, 0, 65535, V4)),
}
OVERLAPPING = [
    rule("tcp", 1, 100, v4="0.0.0.0/0"),
    rule("tcp", 50, 150, v4="10.0.0.0/8"),
    rule("tcp", 60, 60, v4="10.64.0.0/16", v6="::/0"),
    rule("tcp", 0, 65535, v4="10.64.0.0/24"),
    rule("-1", v4="10.64.0.0/25", v6="fe80::/10"),
    rule("icmp", 8, -1, v4="0.0.0.0/0"),
    rule("icmp", 8, 0, v4="0.0.0.0/0"),
    rule("132", 7, 9, v4="0.0.0.0/0"),
    rule("47", v4="0.0.0.0/0"),
]


class Host:
    """A host with an instance of each of two tenants; the neighbour lets port 80 in."""

    def __init__(self, folder: Path) -> None:
        quota = QuotaSettings(rules=MANY)
        network = NetworkSettings(bridge="anbrt20")
        config = msgspec.structs.replace(Config(), quota=quota, network=network)
        self.front = Front(folder, config)
        self.tenant = Stage(self.front)
        self.neighbour = Stage(self.front, self.front.make_project("neighbour").project_id)
        self.group, self.port = self.instance_of(self.tenant, rule("tcp", 22, 22))
        _, self.others = self.instance_of(self.neighbour, rule("tcp", 80, 80, v4="0.0.0.0/0"))

    def instance_of(self, stage: Stage, permission: Any) -> tuple[str, str]:
        """Return the group and the port of a new instance on the host."""
        group = new_group(stage)
        stage.ask("AuthorizeSecurityGroupIngress", GroupId=group, IpPermissions=[permission])
        [instance_id] = running(stage, SecurityGroupIds=[group])
        row = {
            "instance_id": instance_id,
            "epoch": 1,
            "node_id": "node-1",
            "phase": "committed",
            "vcpus": 1,
            "memory_mib": 1,
            "disk_gib": 1,
            "created_at": 0.0,
            "changed_at": 0.0,
        }
        self.front.change(lambda tx: tx.execute(insert(schema.placements).values(row)))
        [port_id] = [
            each.id for each in self.front.rows(schema.ports) if each.instance_id == instance_id
        ]
        return group, port_id

    def policy(self) -> NetworkPolicy:
        """Return all that the host must enforce."""
        [network] = self.front.rows(schema.networks)
        return self.front.store.read(lambda tx: policy.whole(tx, network.id, "node-1"))

    def authorize(self, *permissions: Any) -> None:
        self.tenant.ask(
            "AuthorizeSecurityGroupIngress", GroupId=self.group, IpPermissions=list(permissions)
        )

    def add(self, matches: Sequence[Match]) -> None:
        """Let more in than one request can say."""

        def add(tx: Transaction) -> None:
            [group] = groups.find(tx, self.tenant.project_id, ids=[self.group])
            groups.add_rules(tx, group, is_egress=False, rules=[(each, "") for each in matches])

        self.front.change(add)

    def revoke_all(self) -> None:
        """Take back all that the tenant lets in but port 22."""

        def revoke(tx: Transaction) -> None:
            [group] = groups.find(tx, self.tenant.project_id, ids=[self.group])
            kept = Match(protocol=TCP, from_port=22, to_port=22, cidr=V4)
            rules = groups.rules_of(tx, [self.group])[self.group]
            gone = [r.rule_id for r in rules if not r.is_egress and r.match != kept]
            groups.remove_rules(tx, group, gone)

        self.front.change(revoke)

    def rules_in_force(self) -> set[tuple[int, int, int, str]]:
        """Return what the host lets in to the tenant."""
        [group] = [each for each in self.policy().groups if each.group_id == self.group]
        return {(r.protocol, r.from_port, r.to_port, r.cidr) for r in group.ingress}


def port_of(found: NetworkPolicy, port_id: str) -> FirewallPort:
    [port] = [each for each in found.ports if each.port_id == port_id]
    return port


def packet(found: NetworkPolicy, source: str, to: str, number: int, port: int) -> Packet:
    """Return the first packet of a connection from one instance to another."""
    sender, receiver = port_of(found, source), port_of(found, to)
    return Packet(
        source=sender.tap,
        destination=receiver.tap,
        ether_src=sender.mac,
        ether_dst=receiver.mac,
        ip_src=sender.addresses[0],
        ip_dst=receiver.addresses[0],
        protocol=TCP,
        source_port=number,
        destination_port=port,
    )


def assert_neighbour_is_served(host: Host) -> None:
    """Check the model: port 80 of the neighbour is open, and no other."""
    found = host.policy()
    for port, is_open in ((80, True), (22, False), (81, False)):
        judged = verdict([found], packet(found, host.port, host.others, 40000, port))
        assert judged.is_allowed is is_open, judged.why


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    made = Host(tmp_path_factory.mktemp("t20"))
    yield made
    made.front.close()


@pytest.mark.parametrize("permission", REFUSED.values(), ids=REFUSED.keys())
def test_t20_bad_rules_are_refused_and_change_nothing(host: Host, permission: Any) -> None:
    before = host.policy()
    for action in ("AuthorizeSecurityGroupIngress", "AuthorizeSecurityGroupEgress"):
        asked = [rule("tcp", 9, 9), permission]
        refused = host.tenant.refusal(action, GroupId=host.group, IpPermissions=asked)
        assert refused.startswith(("InvalidParameter", "MissingParameter", "InvalidPermission"))
    assert host.policy() == before


@pytest.mark.parametrize(("permission", "form"), NORMALISED.values(), ids=NORMALISED.keys())
def test_t20_bad_rules_that_mean_something_get_its_one_form(
    host: Host, permission: Any, form: tuple[int, int, int, str]
) -> None:
    host.revoke_all()
    before = host.rules_in_force()
    is_there = form in before
    if is_there:
        refused = host.tenant.refusal(
            "AuthorizeSecurityGroupIngress", GroupId=host.group, IpPermissions=[permission]
        )
        assert refused == "InvalidPermission.Duplicate"
    else:
        host.authorize(permission)
    assert host.rules_in_force() == before | {form}
    assert_neighbour_is_served(host)


def test_t20_bad_rules_beyond_the_ceiling_are_refused(front: Front) -> None:
    stage = Stage(front)
    group = new_group(stage)
    before = front.rows(schema.security_group_rules)
    ranges = [{"CidrIp": f"10.{n}.0.0/16"} for n in range(201)]
    many = [rule("tcp", n, n, v4="", IpRanges=ranges) for n in range(MANY // len(ranges))]
    for asked, code in (
        ([rule("tcp", v4="", IpRanges=ranges)], "RulesPerSecurityGroupLimitExceeded"),
        (many, "MalformedQueryString"),
    ):
        refused = stage.refusal("AuthorizeSecurityGroupIngress", GroupId=group, IpPermissions=asked)
        assert refused == code
    assert front.rows(schema.security_group_rules) == before


def many_matches() -> list[Match]:
    """Return 10 000 rules; all of them overlap."""
    return [
        Match(
            protocol=TCP,
            from_port=100 + step,
            to_port=200 + 2 * step,
            cidr=f"10.{n // 2}.0.0/{16 + n % 2 * 8}",
        )
        for step in range(MANY // 100)
        for n in range(100)
    ]


@pytest.mark.node
def test_t20_bad_rules_leave_those_of_others_in_force(host: Host, tmp_path: Path) -> None:
    host.revoke_all()
    found = host.policy()
    numbers = iter(range(40000, 50000))
    lab = FirewallLab(NftablesFirewall(tmp_path))
    try:
        lab.add_network(found.network)
        lab.add_ports(found.network, found.ports)
        lab.firewall.guard()
        lab.firewall.sync(found)

        def passes(to: str, port: int, *, wanted: bool) -> bool:
            source = host.port if to == host.others else host.others
            sent = packet(found, source, to, next(numbers), port)
            return lab.passes(found.network, sent, wait_s=2.0 if wanted else 0.0)

        def follow() -> None:
            """Bring the host to what the store says now."""
            nonlocal found
            lab.firewall.update(diff(found, new := host.policy()))
            found = new
            assert passes(host.others, 80, wanted=True)
            assert not passes(host.others, 81, wanted=False)

        follow()
        assert passes(host.port, 22, wanted=True)
        assert not passes(host.port, 60, wanted=False)
        host.authorize(*OVERLAPPING)
        follow()
        assert passes(host.port, 60, wanted=True)
        host.revoke_all()
        host.add(many_matches())
        assert len(host.rules_in_force()) == 1 + MANY
        follow()
        host.revoke_all()
        follow()
        assert not passes(host.port, 60, wanted=False)
    finally:
        lab.close()
        host.revoke_all()
