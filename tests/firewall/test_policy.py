"""A node keeps the groups that its ports need, and no others."""

from appliance.firewall.policy import apply_delta, without_unused_groups
from appliance.model import (
    FirewallGroup,
    FirewallPort,
    FirewallRule,
    MemberChange,
    NetworkPolicy,
    NetworkSpec,
    PolicyDelta,
)

NETWORK = NetworkSpec(
    network_id="subnet-1",
    vpc_id="vpc-1",
    type="flatdhcp",
    cidr="10.0.0.0/24",
    gateway="10.0.0.1",
    bridge="br0",
    mtu=1500,
)


def port(name: str, *group_ids: str) -> FirewallPort:
    return FirewallPort(
        port_id=f"eni-{name}",
        tap=f"tap{name}",
        mac="06:a0:00:00:00:01",
        addresses=("10.0.0.4",),
        group_ids=group_ids,
    )


def group(group_id: str, source: str = "") -> FirewallGroup:
    rule = FirewallRule(
        rule_id="sgr-1",
        protocol=6,
        from_port=22,
        to_port=22,
        cidr="" if source else "10.0.0.1/32",
        source_group_id=source,
    )
    return FirewallGroup(group_id=group_id, ingress=(rule,), egress=(), members=())


POLICY = NetworkPolicy(
    network=NETWORK,
    revision=3,
    ports=(port("a", "sg-a"), port("b", "sg-b")),
    groups=(group("sg-a"), group("sg-b", source="sg-c"), group("sg-c")),
)


def delta(**changes: object) -> PolicyDelta:
    return PolicyDelta(network=NETWORK, from_revision=3, to_revision=4, **changes)  # type: ignore[arg-type]


def test_the_groups_of_a_port_go_with_it_and_their_sources_too() -> None:
    found = without_unused_groups(POLICY, delta(removed_port_ids=("eni-b",)))
    assert found.removed_group_ids == ("sg-b", "sg-c")
    after = apply_delta(POLICY, found)
    assert [each.group_id for each in after.groups] == ["sg-a"]


def test_a_group_that_another_port_needs_stays() -> None:
    both = apply_delta(
        POLICY,
        PolicyDelta(network=NETWORK, from_revision=3, to_revision=3, ports=(port("c", "sg-b"),)),
    )
    change = delta(removed_port_ids=("eni-b",))
    assert without_unused_groups(both, change) is change


def test_a_source_goes_with_the_rule_that_named_it() -> None:
    found = without_unused_groups(POLICY, delta(groups=(group("sg-b"),)))
    assert found.removed_group_ids == ("sg-c",)
    assert [each.group_id for each in found.groups] == ["sg-b"]


def test_a_group_that_comes_and_that_nobody_needs_is_left_out() -> None:
    found = without_unused_groups(POLICY, delta(groups=(group("sg-z"),)))
    assert found.groups == ()
    assert apply_delta(POLICY, found).groups == POLICY.groups


def test_a_change_of_members_costs_no_search() -> None:
    change = delta(member_changes=(MemberChange(group_id="sg-a", added=("10.0.0.9",)),))
    assert without_unused_groups(POLICY, change) is change
