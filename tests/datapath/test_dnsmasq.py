"""What is written for dnsmasq: exactly our directives, whatever a network or a port is called."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.datapath.dnsmasq import Places, render_config, render_lease, render_names
from appliance.errors import InputError
from appliance.model import NetworkSpec, PortSpec
from appliance.testing.network import HOSTILE_HOSTNAMES, make_network, make_port

PLACES = Places(private=Path("/run/a/subnet-1"), reachable=Path("/run/b/subnet-1"))
NETWORK = make_network("flatdhcp")
PORT = make_port(NETWORK)

CONFIG = """\
user=dnsmasq
pid-file=/run/a/subnet-1/dnsmasq.pid
interface=anbrt1
except-interface=lo
bind-dynamic
no-hosts
addn-hosts=/run/b/subnet-1/names
domain=anynode.internal
local=/anynode.internal/
domain-needed
bogus-priv
dhcp-authoritative
dhcp-ignore-clid
no-ping
leasefile-ro
dhcp-hostsfile=/run/b/subnet-1/leases
dhcp-range=10.64.1.0,static,255.255.255.0,3600
dhcp-option=option:router,10.64.1.1
dhcp-option=option:dns-server,10.64.1.1
dhcp-option=option:mtu,1450
no-resolv
strict-order
server=192.0.2.53
"""

CONFIG6 = """\
enable-ra
ra-param=anbrt1,mtu:1450,0,0
dhcp-range=fd00:64::,static,64,3600
dhcp-option=option6:dns-server,[fd00:64::1]
"""


def with_ipv6() -> tuple[NetworkSpec, PortSpec]:
    network = msgspec.structs.replace(NETWORK, cidr6="fd00:64::/64", gateway6="fd00:64::1", dns=())
    addresses = (*PORT.addresses, "fd00:64::5")
    return network, msgspec.structs.replace(PORT, addresses=addresses)


def test_config() -> None:
    assert render_config(NETWORK, PLACES, "dnsmasq") == CONFIG
    network, _ = with_ipv6()
    assert render_config(network, PLACES, "dnsmasq") == CONFIG.partition("no-resolv")[0] + CONFIG6


def test_lease_and_names() -> None:
    network, port = with_ipv6()
    assert render_lease(network, port) == (
        "06:a0:00:00:01:01,10.64.1.5,[fd00:64::5],host-1.anynode.internal\n"
    )
    assert render_names(network, port) == (
        "10.64.1.5 host-1.anynode.internal host-1\nfd00:64::5 host-1.anynode.internal host-1\n"
    )


@pytest.mark.parametrize("hostname", HOSTILE_HOSTNAMES)
def test_t53_hostile_hostname_is_not_written(hostname: str) -> None:
    port = msgspec.structs.replace(PORT, hostname=hostname)
    for render in (render_lease, render_names):
        with pytest.raises(InputError):
            render(NETWORK, port)


@given(st.text(max_size=70), st.text(max_size=20), st.text(max_size=20))
def test_t53_a_lease_is_one_line_of_known_fields(hostname: str, mac: str, address: str) -> None:
    for changes in ({"hostname": hostname}, {"mac": mac}, {"addresses": (address,)}):
        try:
            line = render_lease(NETWORK, msgspec.structs.replace(PORT, **changes))
        except InputError:
            continue
        mac_field, address_field, name = line.removesuffix("\n").split(",")
        assert len(mac_field) == 17
        assert ipaddress.ip_address(address_field) in ipaddress.ip_network(NETWORK.cidr)
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")


@given(st.text(max_size=30), st.sampled_from(["domain", "bridge", "gateway", "cidr", "network_id"]))
def test_t53_a_config_has_no_foreign_directive(text: str, field: str) -> None:
    try:
        config = render_config(msgspec.structs.replace(NETWORK, **{field: text}), PLACES, "dnsmasq")
    except InputError:
        return
    ours = [line.partition("=")[0] for line in CONFIG.splitlines()]
    assert [line.partition("=")[0] for line in config.splitlines()] == ours
