"""Who reaches whom: default deny, rules while they change, and what an instance cannot forge."""

import socket
import time
from collections.abc import Callable

import pytest

from tests.node.cloud import LIVE_S, Cloud, Instance, ping_from, tcp
from tests.node.inside import Inside
from tests.node.place import GATEWAY, PORT_OUTSIDE, WORLD, Place
from tests.node.sniffer import Sniffer
from tests.rig import wait_for

pytestmark = pytest.mark.node

SERVE = (
    "[ -e /tmp/www/index.html ] || { mkdir -p /tmp/www; echo hello > /tmp/www/index.html; "
    "httpd -p 8080 -h /tmp/www; }"
)
FORGED_MAC = "06:a0:0b:ad:0b:ad"
FORGED_ADDRESS = "10.64.0.222"
IPV4, ARP = b"\x08\x00", b"\x08\x06"
CHANGE_MAC = f"""
become() {{
    ip link set eth0 down; ip link set eth0 address $1; ip link set eth0 up
    until ip route replace default via {GATEWAY}; do sleep 0.1; done
}}
mac=$(cat /sys/class/net/eth0/address)
become {FORGED_MAC}
ping -c 3 -W 1 {GATEWAY} > /tmp/forged 2>&1
become $mac
echo over >> /tmp/forged
"""


@pytest.fixture
def served(other: Instance) -> Instance:
    """The closed instance, with a web server that nobody may reach yet."""
    other.shell(SERVE)
    return other


@pytest.fixture
def group_id(other: Instance) -> str:
    """The group of the closed instance."""
    (group,) = other.describe()["SecurityGroups"]
    return str(group["GroupId"])


def fetches(instance: Instance, address: str) -> bool:
    command = f"timeout 1 wget -q -O - http://{address}:8080/"
    return instance.shell(command, is_checked=False) == "hello\n"


def soon(condition: Callable[[], bool]) -> None:
    wait_for(condition, LIVE_S, "the rules to be in force")


def test_nobody_gets_in_unless_a_rule_says_so(
    one: Instance, served: Instance, place: Place, outside: Inside
) -> None:
    assert not place.pings(served.address)
    assert not place.inside.connects(served.address, 8080)
    assert "1 packets received" not in one.shell(
        f"ping -c 1 -W 1 {served.address}", is_checked=False
    )
    assert not fetches(one, served.address)
    assert not outside.connects(served.address, 22)


def test_a_rule_opens_and_its_removal_closes(
    served: Instance, place: Place, cloud: Cloud, group_id: str
) -> None:
    address = served.address
    rules = (ping_from(f"{GATEWAY}/32"), tcp(8080, f"{GATEWAY}/32"))
    with cloud.allowing(group_id, *rules):
        soon(lambda: place.pings(address))
        soon(lambda: place.inside.connects(address, 8080))
    soon(lambda: not place.pings(address))
    soon(lambda: not place.inside.connects(address, 8080))


def test_another_group_opens_at_once_and_its_loss_closes(
    served: Instance, place: Place, cloud: Cloud, group_id: str
) -> None:
    address = served.address
    opening = cloud.make_group("opening", tcp(8080, f"{GATEWAY}/32"))
    named = {"InstanceId": served.instance_id}
    try:
        cloud.modify_instance_attribute(**named, Groups=[group_id, opening])
        soon(lambda: place.inside.connects(address, 8080))
    finally:
        cloud.modify_instance_attribute(**named, Groups=[group_id])
    soon(lambda: not place.inside.connects(address, 8080))
    cloud.delete_security_group(GroupId=opening)
    (status,) = cloud.describe_instance_status(InstanceIds=[served.instance_id])["InstanceStatuses"]
    assert status["SystemStatus"]["Status"] == status["InstanceStatus"]["Status"] == "ok"


def test_a_rule_for_one_source_is_none_for_another(
    one: Instance, served: Instance, place: Place, outside: Inside, cloud: Cloud, group_id: str
) -> None:
    address = served.address
    with cloud.allowing(group_id, tcp(8080, f"{WORLD}/32")):
        soon(lambda: outside.fetch(address, 8080).endswith("hello\n"))
        assert not fetches(one, address)
        assert not place.inside.connects(address, 8080)
    soon(lambda: not outside.connects(address, 8080))


def test_a_group_as_source_lets_its_members_in(
    one: Instance, served: Instance, place: Place, cloud: Cloud, group_id: str
) -> None:
    (group,) = one.describe()["SecurityGroups"]
    rule = {
        "IpProtocol": "tcp",
        "FromPort": 8080,
        "ToPort": 8080,
        "UserIdGroupPairs": [{"GroupId": group["GroupId"]}],
    }
    with cloud.allowing(group_id, rule):
        soon(lambda: fetches(one, served.address))
        assert not place.inside.connects(served.address, 8080)
    soon(lambda: not fetches(one, served.address))


def test_what_goes_out_can_be_closed(
    one: Instance, served: Instance, cloud: Cloud, group_id: str, listening: str
) -> None:
    reach = f"nc -w 1 {WORLD} {PORT_OUTSIDE} < /dev/null"
    assert served.shell(reach, is_checked=False) == listening
    everything = [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
    cloud.revoke_security_group_egress(GroupId=group_id, IpPermissions=everything)
    try:
        soon(lambda: served.shell(reach, is_checked=False) == "")
        assert one.shell(reach) == listening
    finally:
        cloud.authorize_security_group_egress(GroupId=group_id, IpPermissions=everything)
    soon(lambda: served.shell(reach, is_checked=False) == listening)


def test_the_removal_of_a_rule_cuts_what_flows(
    served: Instance, place: Place, cloud: Cloud, group_id: str
) -> None:
    serving = served.begin_shell("while sleep 0.2; do echo tick; done | nc -l -p 9000")
    try:
        with cloud.allowing(group_id, tcp(9000, f"{GATEWAY}/32")):
            flow = wait_for(lambda: connected(place, served.address), LIVE_S, "a flow")
            assert ticks(flow)
        revoked = time.monotonic()
        while ticks(flow):
            assert time.monotonic() - revoked < LIVE_S
        flow.close()
        assert served.shell("echo alive") == "alive\n"
    finally:
        served.shell("killall nc", is_checked=False)
        place.rig.signal(serving)
        serving.wait(10)


def connected(place: Place, address: str) -> socket.socket | None:
    try:
        return place.inside.connect(address, 9000)
    except OSError:
        return None


def ticks(flow: socket.socket) -> bool:
    """Say whether anything comes within a time in which five ticks should."""
    flow.settimeout(1)
    try:
        return flow.recv(100) != b""
    except OSError:
        return False


def test_another_address_is_not_let_out(one: Instance, place: Place) -> None:
    forged, own = socket.inet_aton(FORGED_ADDRESS), socket.inet_aton(one.address)
    with Sniffer(place.inside) as sniffer:
        one.shell(f"ip address add {FORGED_ADDRESS}/32 dev eth0")
        try:
            ping = f"ping -c 2 -W 1 -I {FORGED_ADDRESS} {GATEWAY}"
            assert " 0 packets received" in one.shell(ping, is_checked=False)
            one.shell(f"arping -U -c 2 -w 3 -I eth0 {FORGED_ADDRESS}", is_checked=False)
        finally:
            one.shell(f"ip address del {FORGED_ADDRESS}/32 dev eth0")
        one.shell(f"ping -c 1 -W 1 {GATEWAY}", is_checked=False)
        wait_for(lambda: "anbr0" in sniffer.links_with(own), 5, "the instance's own frames")
    assert sniffer.links_with(IPV4, forged) == {one.tap}
    assert sniffer.links_with(ARP, forged) == {one.tap}


def test_another_card_address_is_not_let_out(one: Instance, place: Place) -> None:
    forged = bytes.fromhex(FORGED_MAC.replace(":", ""))
    with Sniffer(place.inside) as sniffer:
        one.shell(f"cat > /tmp/change << 'END'\n{CHANGE_MAC}\nEND\n")
        one.shell("setsid sh /tmp/change > /dev/null 2>&1 < /dev/null &")
        one.disconnect()
        said = wait_for(lambda: finished(one), 60, "the forger to be done")
    assert " 0 packets received" in said
    assert sniffer.links_with(forged) == {one.tap}


def finished(instance: Instance) -> str:
    said = instance.shell("cat /tmp/forged", is_checked=False)
    return said if said.endswith("over\n") else ""
