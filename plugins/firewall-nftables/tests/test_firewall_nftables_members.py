"""Members that join and leave a group change its set, and no more than that."""

from __future__ import annotations

from anynode_firewall_nftables.force import apply_delta, compile_policy

from appliance.firewall import apply_delta as apply_to_model
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
    cidr="10.64.0.0/24",
    gateway="10.64.0.1",
    bridge="anbr0",
)
GROUP = FirewallGroup(
    group_id="sg-1",
    ingress=(FirewallRule(rule_id="sgr-1", protocol=-1, source_group_id="sg-1"),),
    members=("10.64.0.4", "10.64.0.5"),
)
PORT = FirewallPort(
    port_id="eni-0123456789abcdef0",
    tap="an0123456789ab",
    mac="06:a0:00:00:00:01",
    addresses=("10.64.0.4",),
    group_ids=("sg-1",),
)
POLICY = NetworkPolicy(network=NETWORK, revision=1, ports=(PORT,), groups=(GROUP,))


def test_members_join_and_leave() -> None:
    change = MemberChange(group_id="sg-1", added=("10.64.0.9",), removed=("10.64.0.5",))
    delta = PolicyDelta(network=NETWORK, from_revision=1, to_revision=2, member_changes=(change,))
    after = apply_delta(compile_policy(POLICY, zone=1), delta)
    assert after.members("sg-1") == {"10.64.0.4", "10.64.0.9"}
    assert after.policy() == apply_to_model(POLICY, delta)
