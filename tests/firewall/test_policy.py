"""Differences of policies."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import Stale
from appliance.firewall import apply_delta, diff
from appliance.model import NetworkPolicy
from appliance.testing.firewall import allow, make_group, make_network, make_policy, make_port

NETWORK = make_network(1)


@st.composite
def policies(draw: st.DrawFn, revision: int) -> NetworkPolicy:
    ports = draw(st.sets(st.integers(2, 7)))
    groups = draw(st.dictionaries(st.sampled_from(("sg-a", "sg-b", "sg-c")), st.integers(1, 3)))
    inside = draw(st.sampled_from(("sg-a", "sg-b")))
    return NetworkPolicy(
        network=NETWORK,
        revision=revision,
        ports=tuple(make_port(NETWORK, number, inside) for number in sorted(ports)),
        groups=tuple(
            make_group(group_id, [allow(6, port, port, peer="0.0.0.0/0")])
            for group_id, port in sorted(groups.items())
        ),
    )


def as_sets(policy: NetworkPolicy) -> tuple[object, ...]:
    return policy.network, policy.revision, set(policy.ports), set(policy.groups)


@given(policies(1), policies(2))
def test_a_difference_leads_from_one_to_the_other(old: NetworkPolicy, new: NetworkPolicy) -> None:
    assert as_sets(apply_delta(old, diff(old, new))) == as_sets(new)


@given(policies(1))
def test_no_change_is_an_empty_difference(policy: NetworkPolicy) -> None:
    delta = diff(policy, policy)
    named = (delta.ports, delta.groups, delta.removed_port_ids, delta.removed_group_ids)
    assert not any(named)
    assert apply_delta(policy, delta) == policy


def test_another_revision_or_network_is_stale() -> None:
    policy = make_policy(NETWORK, 3)
    late = diff(msgspec.structs.replace(policy, revision=2), policy)
    with pytest.raises(Stale, match="revision 3"):
        apply_delta(policy, late)
    other = diff(make_policy(make_network(2), 3), make_policy(make_network(2), 4))
    with pytest.raises(Stale, match="is for network"):
        apply_delta(policy, other)
