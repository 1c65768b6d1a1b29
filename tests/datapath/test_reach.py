"""What plugins are told of ports elsewhere, also after they have refused or lost it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from anynode_network_fake import FakeNetwork

from appliance.datapath.bridged import BridgedNetworks
from appliance.datapath.reach import ReachKeeper, Spanning
from appliance.errors import Unavailable
from appliance.hooks import Network
from appliance.hookspecs import PluginContext, PluginSource, hookimpl
from appliance.model import NetworkReach, NetworkSpec
from appliance.testing.network import make_network, make_remote

NETWORK = make_network("fake")
ONE, TWO, THREE = (make_remote(NETWORK, number) for number in (1, 2, 3))


class Flaky(FakeNetwork):
    """A plugin that refuses once in a while."""

    def __init__(self) -> None:
        super().__init__(None)
        self.refuses = False
        self.told: list[NetworkReach] = []

    @hookimpl
    def network_reach(self, network: NetworkSpec, reach: NetworkReach) -> None:
        if self.refuses:
            raise Unavailable("The kernel is busy.")
        self.told.append(reach)
        super().network_reach(network, reach)


class Place:
    def __init__(self) -> None:
        self.restart()
        self.is_here = True
        self.keeper = ReachKeeper(self.spanning)

    def restart(self) -> None:
        """Give the node another object of the plugin."""
        self.plugin = Flaky()
        self.driver = Network("fake", self.plugin)
        self.driver.prepare(NETWORK)

    def spanning(self, network_id: str) -> Spanning | None:
        assert network_id == NETWORK.network_id
        return Spanning(network=NETWORK, driver=self.driver) if self.is_here else None

    def update(self, reach: NetworkReach) -> None:
        self.keeper.update(NETWORK.network_id, reach)

    @property
    def revision(self) -> int | None:
        return self.keeper.revision(NETWORK.network_id)

    def known(self) -> set[str]:
        remotes = self.driver.list().remotes.get(NETWORK.network_id, ())
        return {remote.port_id for remote in remotes}


@pytest.fixture
def place() -> Place:
    made = Place()
    assert made.revision == -1
    made.update(NetworkReach(revision=4, remotes=(ONE, TWO), is_whole=True))
    assert made.revision == 4
    return made


def test_differences_go_through(place: Place) -> None:
    change = NetworkReach(revision=5, remotes=(THREE,), removed_port_ids=(ONE.port_id,))
    place.update(change)
    assert place.revision == 5
    assert place.plugin.told[-1] == change
    assert place.known() == {TWO.port_id, THREE.port_id}


def test_a_plugin_that_knows_nothing_is_told_the_whole(place: Place) -> None:
    place.restart()
    place.update(NetworkReach(revision=5, remotes=(THREE,)))
    assert place.known() == {ONE.port_id, TWO.port_id, THREE.port_id}
    assert place.revision == 5


def test_what_was_refused_is_asked_for_again(place: Place) -> None:
    place.plugin.refuses = True
    place.update(NetworkReach(revision=5, remotes=(THREE,)))
    assert place.revision == -1
    place.plugin.refuses = False
    place.keeper.repeat(NETWORK.network_id)
    assert place.known() == {ONE.port_id, TWO.port_id}
    place.update(NetworkReach(revision=6, remotes=(THREE,), is_whole=True))
    assert place.known() == {THREE.port_id}
    assert place.revision == 6


def test_what_was_lost_is_told_again(place: Place) -> None:
    place.update(NetworkReach(revision=5, remotes=(THREE,), removed_port_ids=(ONE.port_id,)))
    place.restart()
    place.keeper.repeat(NETWORK.network_id)
    assert place.known() == {TWO.port_id, THREE.port_id}


def test_a_network_that_ends_at_the_node_needs_no_reach(place: Place) -> None:
    place.is_here = False
    assert place.revision is None
    place.keeper.repeat(NETWORK.network_id)


def test_a_plugin_may_leave_the_hook_out(tmp_path: Path) -> None:
    context = PluginContext(
        node_name="n1", state_dir=tmp_path, run_dir=tmp_path, plugins=cast(PluginSource, None)
    )
    ending = BridgedNetworks(context, type_name="x", nat_table="x", dhcp_user="dnsmasq")
    driver = Network("x", ending)
    assert not driver.spans_nodes
    assert Network("fake", FakeNetwork(None)).spans_nodes
