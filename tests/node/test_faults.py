"""Death of the node's process and of libvirt's daemon: instances do not notice."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node.cloud import LIVE_S, STATE_S, Cloud, Instance, ping_from
from tests.node.place import GATEWAY, Place
from tests.node.sniffer import Sniffer
from tests.rig import wait_for

pytestmark = pytest.mark.node

STRANGER = "an00000000dead"
FLOOD = """
import fcntl, os, struct, sys, time
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", sys.argv[1].encode(), 0x1002))
print("open", flush=True)
sys.stdin.readline()
mac = bytes.fromhex("06a00000dead")
arp = bytes.fromhex("0001080006040001") + mac + bytes([10, 64, 0, 99]) + bytes(6) + bytes(
    [10, 64, 0, 1])
ip = bytes.fromhex("450000280000000040110000") + bytes([10, 64, 0, 99, 10, 64, 0, 1]) + bytes(20)
for _ in range(20):
    for kind, body in (("0806", arp), ("0800", ip), ("86dd", bytes(60))):
        os.write(tap, b"\\xff" * 6 + mac + bytes.fromhex(kind) + body)
    time.sleep(0.02)
print("sent", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def pinged(one: Instance, cloud: Cloud, place: Place) -> Iterator[Instance]:
    """The first instance, open to pings of the node."""
    (group,) = one.describe()["SecurityGroups"]
    with cloud.allowing(group["GroupId"], ping_from(f"{GATEWAY}/32")):
        wait_for(lambda: place.pings(one.address), LIVE_S, "an answer")
        yield one


def lost(watch: subprocess.Popen[bytes], place: Place) -> tuple[int, int]:
    """End a running ping and return how many were sent, and how many were lost.

    However quick what it watches was, it goes on until it has asked for two seconds.
    """
    ticks = Path("/proc", str(watch.pid), "stat").read_text().rpartition(")")[2].split()[19]
    began = int(ticks) / os.sysconf("SC_CLK_TCK")
    wait_for(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) > began + 2, 5, "two seconds")
    place.rig.signal(watch, signal.SIGINT)
    said, _ = watch.communicate(timeout=10)
    found = re.search(rb"(\d+) packets transmitted, (\d+) received", said)
    assert found is not None, said
    return int(found[1]), int(found[1]) - int(found[2])


def watch_pings(place: Place, address: str) -> subprocess.Popen[bytes]:
    words = ["ping", "-n", "-i", "0.1", "-W", "1", address]
    return place.rig.popen(words, stdout=subprocess.PIPE)


def test_the_death_of_the_node_goes_unnoticed(
    pinged: Instance, other: Instance, cloud: Cloud, place: Place
) -> None:
    processes = {each: place.qemu_pid(each.instance_id) for each in (pinged, other)}
    rules = place.rules()
    watch = watch_pings(place, pinged.address)
    place.kill()
    assert place.rules() == rules
    place.start()
    until = time.monotonic() + 2
    wait_for(lambda: place.pings(pinged.address) and time.monotonic() > until, 7, "an answer")
    sent, missing = lost(watch, place)
    assert sent > 10
    assert missing <= 1
    for each, process in processes.items():
        assert each.state == "running"
        assert place.qemu_pid(each.instance_id) == process
    place.verify()

    (group,) = other.describe()["SecurityGroups"]
    with cloud.allowing(group["GroupId"], ping_from(f"{GATEWAY}/32")):
        wait_for(lambda: place.pings(other.address), LIVE_S, "the new rule to be in force")
    wait_for(lambda: not place.pings(other.address), LIVE_S, "the rule to be gone")


def test_a_clean_restart_goes_unnoticed(pinged: Instance, place: Place) -> None:
    process = place.qemu_pid(pinged.instance_id)
    watch = watch_pings(place, pinged.address)
    assert place.stop() == 0
    place.start()
    sent, missing = lost(watch, place)
    assert sent > 10
    assert missing <= 1
    assert place.qemu_pid(pinged.instance_id) == process
    assert pinged.state == "running"
    place.verify()


def test_while_the_node_is_dead_a_new_tap_carries_nothing(one: Instance, place: Place) -> None:
    place.kill()
    stranger = subprocess.Popen(
        place.rig.command(["/usr/bin/python3", "-c", FLOOD, STRANGER]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert stranger.stdin is not None
    assert stranger.stdout is not None
    try:
        assert stranger.stdout.readline() == b"open\n"
        place.rig.run(["ip", "link", "set", STRANGER, "master", "anbr0", "up"])
        with Sniffer(place.inside) as sniffer:
            stranger.stdin.write(b"\n")
            stranger.stdin.flush()
            assert stranger.stdout.readline() == b"sent\n"
        assert sniffer.links_with(bytes.fromhex("06a00000dead")) == {STRANGER}
    finally:
        stranger.communicate(b"\n", timeout=10)
    place.start()
    place.verify()


@pytest.mark.faults("services: libvirtd")
def test_a_libvirtd_that_hangs_goes_unnoticed(pinged: Instance, cloud: Cloud, place: Place) -> None:
    process = place.qemu_pid(pinged.instance_id)
    (group,) = pinged.describe()["SecurityGroups"]
    watch = watch_pings(place, pinged.address)
    hung = place.find_processes("libvirtd")
    for pid in hung:
        place.rig.run(["kill", "-STOP", str(pid)])
    try:
        waiting = cloud.launch(SecurityGroupIds=[group["GroupId"]])
        wait_for(lambda: "libvirtd" in causes_of(place, waiting), 90, "its timeline to say why")
        assert waiting.state == "pending"
        assert pinged.state == "running"
    finally:
        for pid in hung:
            place.rig.run(["kill", "-CONT", str(pid)])
    waiting.wait_state("running", STATE_S)
    waiting.terminate()
    sent, missing = lost(watch, place)
    assert sent > 10
    assert missing <= 1
    assert place.qemu_pid(pinged.instance_id) == process
    assert pinged.shell("echo alive") == "alive\n"
    place.verify()


def causes_of(place: Place, instance: Instance) -> str:
    """Return why steps of an instance failed so far."""
    entries = place.cli_json("trace", instance.instance_id)
    return " ".join(cause for entry in entries for cause in entry["causes"])


@pytest.mark.faults("services: libvirtd", quick=True)
def test_the_death_of_libvirtd_goes_unnoticed(pinged: Instance, cloud: Cloud, place: Place) -> None:
    process = place.qemu_pid(pinged.instance_id)
    watch = watch_pings(place, pinged.address)
    place.end_processes("libvirtd")
    # While it goes to the background there are two of it.
    wait_for(lambda: len(place.find_processes("libvirtd")) == 1, 60, "libvirtd to be back")
    assert pinged.state == "running"
    assert place.qemu_pid(pinged.instance_id) == process
    # What needs the hypervisor works again: one comes and goes.
    (group,) = pinged.describe()["SecurityGroups"]
    brief = cloud.launch(SecurityGroupIds=[group["GroupId"]])
    brief.wait_state("running", STATE_S)
    brief.terminate()
    sent, missing = lost(watch, place)
    assert sent > 10
    assert missing <= 1
    assert pinged.shell("echo alive") == "alive\n"
    place.verify()


@pytest.mark.faults("services: dnsmasq", quick=True)
def test_services_and_rules_that_somebody_ended_come_back(
    one: Instance, other: Instance, place: Place
) -> None:
    leases = [
        "find",
        "/run",
        str(place.run_dir),
        "-path",
        "*/leases/eni-*",
        "-exec",
        "cat",
        "{}",
        "+",
    ]
    told = sorted(place.rig.run(leases, is_checked=False).splitlines())
    assert any(one.address in line for line in told)
    place.end_processes("dnsmasq")
    for family in ("inet", "bridge"):
        place.rig.run(["nft", "delete", "table", family, "anynode"])
    wait_for(lambda: place.find_processes("dnsmasq"), 60, "dnsmasq to be back")
    assert sorted(place.rig.run(leases, is_checked=False).splitlines()) == told
    wait_for(lambda: other.tap in place.rules(), 60, "rules to be back")
    name = one.describe()["PrivateDnsName"]
    wait_for(lambda: one.address in one.shell(f"nslookup {name}"), 10, "names to resolve")
    assert not place.inside.connects(other.address, 8080)
    place.verify()
