"""The power goes: every process is killed, and all that a reboot takes away is taken away."""

import shutil
from pathlib import Path

import pytest

from tests.node.cloud import Cloud, Instance
from tests.node.place import Place
from tests.rig import wait_for

pytestmark = pytest.mark.node


def cut_power(place: Place) -> None:
    """Leave of the node what a machine has just after a boot: its disk."""
    place.kill()
    place.end_processes("qemu-system-x86_64", "libvirtd", "virtlogd", "dnsmasq")
    for link in [*place.taps(), "anbr0"]:
        place.rig.run(["ip", "link", "delete", link], is_checked=False)
    place.rig.run(["nft", "flush", "ruleset"])
    place.rig.run(["conntrack", "-F"], is_checked=False)
    shutil.rmtree(place.run_dir)
    place.rig.run(["sh", "-c", "rm -rf /run/libvirt /run/anynode* /run/*.pid"])


def test_what_ran_comes_up_again_behind_its_rules(
    one: Instance, other: Instance, cloud: Cloud, place: Place, tmp_path: Path
) -> None:
    (group,) = one.describe()["SecurityGroups"]
    off = cloud.launch(SecurityGroupIds=[group["GroupId"]])
    off.wait_state("running")
    cloud.stop_instances(InstanceIds=[off.instance_id], Force=True)
    off.wait_state("stopped")
    other.shell("echo kept > /root/note; sync")
    addresses = {each: each.address for each in (one, other, off)}
    boots = {each: each.boots() for each in (one, other)}
    for each in (one, other):
        each.disconnect()

    cut_power(place)
    place.begin()
    # Nobody may ping the second instance: not one answer may come, however early it is asked.
    asking = f"while sleep 0.02; do ping -n -q -c 1 -W 0.2 {addresses[other]} 2>&1; done"
    answers = tmp_path / "answers"
    with answers.open("wb") as file:
        watch = place.rig.popen(["sh", "-c", asking], stdout=file)
    place.wait_up()
    for each, count in boots.items():
        each.wait_state("running")
        each.wait_booted(count + 1)
    # However soon they are up again, it is asked often enough to be believed.
    wait_for(lambda: answers.read_bytes().count(b"1 packets transmitted") > 50, 60, "50 pings")
    place.rig.signal(watch)
    watch.wait(timeout=10)
    said = answers.read_bytes()

    assert said.count(b"1 packets transmitted") > 50
    assert b" 1 received" not in said
    assert {each: each.address for each in addresses} == addresses
    assert other.shell("cat /root/note") == "kept\n"
    assert off.state == "stopped"
    assert place.qemu_pid(off.instance_id) is None
    place.verify()
    off.terminate()
    place.verify()


def test_a_reboot_of_the_machine_while_one_stops(one: Instance, cloud: Cloud, place: Place) -> None:
    cloud.stop_instances(InstanceIds=[one.instance_id])
    one.disconnect()
    cut_power(place)
    place.start()
    one.wait_state("stopped")
    wait_for(lambda: place.qemu_pid(one.instance_id) is None, 10, "it to be off")
    place.verify()
