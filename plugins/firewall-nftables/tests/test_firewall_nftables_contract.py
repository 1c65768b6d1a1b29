"""The contracts of ``appliance.firewall``, on real packets in namespaces of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from anynode_firewall_nftables.driver import NftablesFirewall

from appliance.hooks import Firewall
from appliance.testing.firewall import FirewallContract, FirewallInside
from appliance.testing.firewall_packets import FirewallPacketContract
from appliance.testing.namespaces import Namespace

pytestmark = pytest.mark.node


class TestNftables(FirewallContract):
    @pytest.fixture
    def driver(self, tmp_path: Path) -> Iterator[Firewall]:
        with Namespace() as namespace:
            yield FirewallInside("nftables", NftablesFirewall(tmp_path), namespace)


class TestNftablesPackets(FirewallPacketContract):
    @pytest.fixture
    def make_plugin(self, tmp_path: Path) -> Callable[[], object]:
        return lambda: NftablesFirewall(tmp_path)
