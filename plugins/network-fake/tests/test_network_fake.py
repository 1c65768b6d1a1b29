"""The fake network plugin keeps the contract, and what it has is to be seen."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from anynode_network_fake import FakeNetwork, Settings, create

from appliance.hooks import Network
from appliance.hookspecs import PluginContext, PluginSource
from appliance.testing.network import SpanningNetworkContract, make_network, make_port


def context(directory: Path) -> PluginContext:
    return PluginContext(
        node_name="n1",
        state_dir=directory,
        run_dir=directory,
        plugins=cast(PluginSource, None),
    )


class TestFakeNetwork(SpanningNetworkContract):
    @pytest.fixture
    def network_type(self) -> str:
        return "fake"

    @pytest.fixture
    def driver(self, tmp_path: Path) -> Network:
        return Network("fake", create(Settings(), context(tmp_path)))


@pytest.mark.parametrize("survives", [False, True])
def test_restart(tmp_path: Path, survives: bool) -> None:
    network = make_network("fake")
    port = make_port(network)
    first = create(Settings(survives=survives), context(tmp_path))
    driver = Network("fake", first)
    driver.prepare(network)
    driver.attach(network, port)
    assert not first.node.ports[port.port_id].is_up
    driver.raise_link(port.port_id)
    assert first.node.ports[port.port_id].is_up

    second = create(Settings(survives=survives), context(tmp_path))
    assert isinstance(second, FakeNetwork)
    assert second.node == (first.node if survives else type(first.node)())
