"""A launch as its owner sees it, from RunInstances to a shell."""

import ipaddress

import pytest

from tests.node.cloud import READY, Instance
from tests.node.place import GATEWAY, NODE_OUTSIDE, PORT_OUTSIDE, WORLD, Place
from tests.rig import wait_for

pytestmark = pytest.mark.node


def test_it_is_described(one: Instance) -> None:
    found = one.describe()
    assert found["State"] == {"Code": 16, "Name": "running"}
    assert found["KeyName"] == "tests"
    assert found["Tags"] == [{"Key": "Name", "Value": "first"}]
    assert ipaddress.ip_address(found["PrivateIpAddress"]) in ipaddress.ip_network("10.64.0.0/24")
    assert one.tap in one.place.taps()
    assert one.place.qemu_pid(one.instance_id)


def test_the_key_opens_it_and_it_knows_its_name_and_network(one: Instance) -> None:
    said = one.shell("hostname; ip -4 addr show eth0; ip route; cat /etc/resolv.conf")
    lines = said.splitlines()
    assert lines[0].split(".")[0] == one.describe()["PrivateDnsName"].split(".")[0]
    assert f"inet {one.address}/24" in said
    assert "mtu 1500" in said
    assert f"default via {GATEWAY}" in said
    assert f"nameserver {GATEWAY}" in said


def test_user_data_ran_once(one: Instance) -> None:
    name = one.describe()["PrivateDnsName"].split(".")[0]
    ran = "cat /root/user-data-ran"
    said = wait_for(lambda: one.shell(ran, is_checked=False), 30, "user data to have run")
    assert said.startswith("user data ran on")
    assert name in said


def test_the_console_tells_that_it_is_ready(one: Instance) -> None:
    console = one.console()
    assert f"{READY} instance {one.instance_id}" in console
    assert "user data ended with exit status 0" in console


def test_names_of_others_resolve(one: Instance, other: Instance) -> None:
    name = other.describe()["PrivateDnsName"]
    for form in (name, name.partition(".")[0]):
        assert f"({other.address})" in one.shell(f"ping -c 1 -W 1 {form}", is_checked=False)


def test_it_reaches_the_outside_with_the_address_of_the_node(one: Instance, listening: str) -> None:
    assert listening == NODE_OUTSIDE
    assert one.shell(f"nc {WORLD} {PORT_OUTSIDE} < /dev/null") == listening


def test_its_disk_is_an_overlay_with_a_named_format(one: Instance, place: Place) -> None:
    domain = place.rig.run(["virsh", "dumpxml", f"anynode-{one.instance_id}"])
    assert "<driver name='qemu' type='qcow2'/>" in domain
    path = place.state_dir / "instances" / one.instance_id / "disk-0.qcow2"
    said = place.rig.run(["qemu-img", "info", "-U", str(path)])
    assert "backing file format: qcow2" in said
