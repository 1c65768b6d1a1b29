"""The rules of the way out, as text."""

from __future__ import annotations

import msgspec

from appliance.datapath.nat import render
from appliance.testing.network import make_network

ONE = make_network("flatdhcp", 1)
NEAR = make_network("flatdhcp", 2)
FAR = msgspec.structs.replace(make_network("flatdhcp", 3), vpc_id="vpc-2")

RULES = """\
add table ip anynode_nat
delete table ip anynode_nat
table ip anynode_nat {
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr 10.64.1.0/24 ip daddr != { 10.64.1.0/24, 10.64.2.0/24 } \
oifname != "anbrt1" masquerade comment "subnet-00000000000000001"
    ip saddr 10.64.2.0/24 ip daddr != { 10.64.1.0/24, 10.64.2.0/24 } \
oifname != "anbrt2" masquerade comment "subnet-00000000000000002"
    ip saddr 10.64.3.0/24 ip daddr != { 10.64.3.0/24 } \
oifname != "anbrt3" masquerade comment "subnet-00000000000000003"
  }
}
"""


def test_networks_of_one_vpc_see_each_others_own_addresses() -> None:
    assert render([FAR, NEAR, ONE]) == RULES


def test_no_network_removes_the_table() -> None:
    assert render([]) == "add table ip anynode_nat\ndelete table ip anynode_nat\n"


def test_each_type_has_its_own_table() -> None:
    assert "anynode_nat " not in render([ONE], "anynode_nat_vlan")
