"""The contract of ``appliance.firewall`` on the fake, and what only the fake can do."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from anynode_firewall_fake import FakeFirewall, Settings, create

from appliance.errors import CommandFailed
from appliance.firewall import Packet
from appliance.hooks import Firewall
from appliance.hookspecs import PluginContext, PluginSource
from appliance.testing.firewall import FirewallContract, make_network, make_policy


class TestFake(FirewallContract):
    @pytest.fixture
    def driver(self) -> Firewall:
        return Firewall("fake", FakeFirewall())


def test_it_judges_packets_by_what_it_holds() -> None:
    plugin = FakeFirewall()
    policy = make_policy(make_network())
    one, two = policy.ports
    packet = Packet(
        source=one.tap,
        destination=two.tap,
        ether_src=one.mac,
        ether_dst=two.mac,
        ip_src=one.addresses[0],
        ip_dst=two.addresses[0],
        protocol=17,
        destination_port=7,
    )
    assert not plugin.verdict(packet).is_allowed
    Firewall("fake", plugin).sync(policy)
    assert plugin.verdict(packet).is_allowed


def test_it_refuses_what_it_was_told_to_and_keeps_the_rest() -> None:
    first, second = make_policy(make_network(1)), make_policy(make_network(2))
    refused = Settings(refused_networks=(second.network.network_id,))
    driver = Firewall("fake", FakeFirewall(refused))
    driver.sync(first)
    with pytest.raises(CommandFailed):
        driver.sync(second)
    assert driver.state().revisions == {first.network.network_id: 1}


@pytest.mark.parametrize("survives", [False, True])
def test_restart(tmp_path: Path, survives: bool) -> None:
    context = PluginContext(
        node_name="n1", state_dir=tmp_path, run_dir=tmp_path, plugins=cast(PluginSource, None)
    )
    settings = Settings(survives=survives)
    first = Firewall("fake", create(settings, context))
    first.guard()
    first.sync(make_policy(make_network()))
    second = Firewall("fake", create(settings, context))
    assert (second.state() == first.state()) is survives
    assert second.state().is_guarded is survives
