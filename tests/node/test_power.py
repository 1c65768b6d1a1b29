"""Reboot, stop, start and terminate; and instances that go off by themselves."""

import os
import re

import pytest

from tests.node.cloud import BOOT_S, Cloud, Instance
from tests.node.place import Place
from tests.rig import wait_for

pytestmark = pytest.mark.node

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


def epoch(place: Place, instance_id: str) -> int:
    """Return the epoch that an instance's domain bears."""
    words = ["virsh", "metadata", f"anynode-{instance_id}", "urn:anynode:compute:1"]
    found = re.search(r'epoch="(\d+)"', place.rig.run(words))
    assert found is not None
    return int(found[1])


def is_on(place: Place, instance_id: str) -> bool:
    return f"anynode-{instance_id}" in place.rig.run(["virsh", "-q", "list", "--name"]).split()


def test_a_reboot_keeps_what_it_has(one: Instance, cloud: Cloud, place: Place) -> None:
    before = one.describe()
    boot_id, boots, process = one.shell(BOOT_ID), one.boots(), place.qemu_pid(one.instance_id)
    cloud.reboot_instances(InstanceIds=[one.instance_id])
    one.wait_booted(boots + 1)
    assert one.shell(BOOT_ID) != boot_id
    assert place.qemu_pid(one.instance_id) == process
    after = one.describe()
    assert after["State"]["Name"] == "running"
    assert after["PrivateIpAddress"] == before["PrivateIpAddress"]
    assert after["LaunchTime"] == before["LaunchTime"]


def test_a_stop_leaves_only_the_disk_and_a_start_goes_on_from_it(
    one: Instance, cloud: Cloud, place: Place
) -> None:
    before, tap, boots = one.describe(), one.tap, one.boots()
    epoch_before = epoch(place, one.instance_id)
    one.shell("echo kept > /root/note; sync")
    cloud.stop_instances(InstanceIds=[one.instance_id])
    stopped = one.wait_state("stopped")
    assert stopped["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    assert place.qemu_pid(one.instance_id) is None
    assert not is_on(place, one.instance_id)
    assert tap not in place.taps()
    assert stopped["PrivateIpAddress"] == before["PrivateIpAddress"]
    assert "anynode-demo: off" in one.console() or "reboot: Power down" in one.console()
    place.verify()

    cloud.start_instances(InstanceIds=[one.instance_id])
    one.wait_booted(boots + 1)
    after = one.describe()
    assert one.shell("cat /root/note") == "kept\n"
    assert after["PrivateIpAddress"] == before["PrivateIpAddress"]
    assert "StateReason" not in after
    assert epoch(place, one.instance_id) == epoch_before + 1
    place.verify()


def test_a_shutdown_from_inside_stops_it(one: Instance, place: Place) -> None:
    tap = one.tap
    one.shell("(sleep 0.2; poweroff) > /dev/null 2>&1 &")
    one.disconnect()
    found = one.wait_state("stopped", BOOT_S)
    assert found["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    assert tap not in place.taps()
    place.verify()


def test_the_death_of_its_process_stops_it_and_says_so(
    one: Instance, cloud: Cloud, place: Place
) -> None:
    process = place.qemu_pid(one.instance_id)
    assert process is not None
    place.rig.run(["kill", "-9", str(process)])
    found = one.wait_state("stopped")
    assert found["StateReason"]["Code"] == "Server.InternalError"
    assert "unexpectedly" in found["StateReason"]["Message"]
    place.verify()


def test_nothing_is_left_of_one_that_is_terminated(
    one: Instance, cloud: Cloud, place: Place
) -> None:
    (group,) = one.describe()["SecurityGroups"]
    doomed = cloud.launch(SecurityGroupIds=[group["GroupId"]])
    doomed.wait_state("running")
    address, tap = doomed.address, doomed.tap
    folder = place.state_dir / "instances" / doomed.instance_id
    assert folder.is_dir()
    assert tap in place.taps()
    assert holds(place, address)
    assert holds(place, tap)
    doomed.terminate()
    assert doomed.describe()["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    assert not folder.exists()
    assert tap not in place.taps()
    assert f"anynode-{doomed.instance_id}" not in place.domains()
    assert place.qemu_pid(doomed.instance_id) is None
    wait_for(lambda: not holds(place, address) and not holds(place, tap), 10, "rules to be gone")
    place.verify()


def test_many_that_come_and_go_leave_what_was_there(cloud: Cloud, place: Place) -> None:
    group: str = cloud.create_security_group(GroupName="many", Description="many")["GroupId"]

    def present() -> dict[str, object]:
        return {
            "taps": sorted(place.taps()),
            "domains": sorted(place.domains()),
            "folders": sorted(os.listdir(place.state_dir / "instances")),
            "programs": [len(place.find_processes(each)) for each in ("qemu-system-.*", "dnsmasq")],
            "rules": sizes(place),
        }

    before, taps = present(), len(place.taps())
    answer = cloud.run_instances(
        ImageId=cloud.image_id,
        InstanceType="m1.tiny",
        MinCount=4,
        MaxCount=4,
        SecurityGroupIds=[group],
    )
    several = [Instance(cloud, each["InstanceId"]) for each in answer["Instances"]]
    for each in several:
        each.wait_state("running")
    assert len({each.address for each in several}) == 4
    assert len(place.taps()) == taps + 4
    cloud.terminate_instances(InstanceIds=[each.instance_id for each in several])
    for each in several:
        each.wait_end()
    wait_for(lambda: present() == before, 15, "what was there before")
    cloud.delete_security_group(GroupId=group)
    place.verify()


def sizes(place: Place) -> dict[str, int]:
    """Return how much the kernel's rules have of each kind."""
    text = place.rules()
    return {word: len(re.findall(word, text)) for word in ("chain ", "set ", "map ", r"10\.64\.")}


def holds(place: Place, word: str) -> bool:
    """Say whether the kernel's rules, or the files of the node in /run, name an address or tap."""
    if re.search(rf"\b{re.escape(word)}\b", place.rig.run(["nft", "list", "ruleset"])):
        return True
    found = place.rig.run(
        ["grep", "-rlwF", word, place.run_dir, place.state_dir / "plugins"], is_checked=False
    )
    return bool(found.strip())
