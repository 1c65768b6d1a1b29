"""The process of a real node is killed at every step once; libvirt and the kernel live on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.compute.launch import LAUNCH, REMOVAL, STOP
from appliance.crash_points import CRASH_AT
from tests.node.cloud import BOOT_S, STATE_S, Cloud, Instance
from tests.node.place import Place
from tests.node.test_crash import SIGKILLED
from tests.rig import wait_for

pytestmark = [pytest.mark.node, pytest.mark.faults("kill: libvirt")]

LAUNCH_STEPS = [step.name for step in LAUNCH]
STOP_STEPS = [step.name for step in STOP]
REMOVAL_STEPS = [step.name for step in REMOVAL]


@pytest.fixture(scope="module")
def group_id(only_cloud: Cloud) -> str:
    """A group for instances that nobody enters."""
    group: str = only_cloud.create_security_group(GroupName="kills", Description="k")["GroupId"]
    return group


@pytest.fixture(scope="module")
def only_kept(only_cloud: Cloud, group_id: str) -> Iterator[Instance]:
    """An instance that is there all the time."""
    instance = only_cloud.launch(SecurityGroupIds=[group_id])
    instance.wait_state("running")
    yield instance
    if not instance.place.is_running:
        instance.place.start()
    instance.terminate()
    only_cloud.delete_security_group(GroupId=group_id)


@pytest.fixture
def kept(place: Place, only_kept: Instance) -> Instance:
    """The instance that is there, running or stopped, on a node that is up."""
    wait_for(lambda: only_kept.state in ("running", "stopped"), STATE_S, "it to settle")
    return only_kept


def die_at(place: Place, step: str) -> None:
    """Start the node anew, so that it kills itself after a step."""
    place.stop()
    place.begin(environment={CRASH_AT: f"step.{step}.after"})
    place.wait_up()


def go_on(place: Place) -> None:
    """See that the node was killed, and start it again."""
    assert place.wait_for_end() in SIGKILLED
    place.start()


def bring_to(instance: Instance, state: str) -> None:
    """Start or stop an instance, if it is not in that state."""
    if instance.state == state:
        return
    ids = [instance.instance_id]
    if state == "running":
        instance.cloud.start_instances(InstanceIds=ids)
    else:
        instance.cloud.stop_instances(InstanceIds=ids, Force=True)
    instance.wait_state(state)


@pytest.mark.parametrize("step", LAUNCH_STEPS)
def test_killed_in_a_launch(
    place: Place, cloud: Cloud, kept: Instance, group_id: str, step: str
) -> None:
    bring_to(kept, "running")
    bystander = place.qemu_pid(kept.instance_id)
    die_at(place, step)
    instance = cloud.launch(SecurityGroupIds=[group_id])
    go_on(place)
    instance.wait_state("running")
    assert place.qemu_pid(instance.instance_id)
    place.verify()
    assert place.qemu_pid(kept.instance_id) == bystander
    instance.terminate()


@pytest.mark.parametrize("step", STOP_STEPS)
def test_killed_in_a_stop(place: Place, cloud: Cloud, kept: Instance, step: str) -> None:
    bring_to(kept, "running")
    address = kept.address
    if step == STOP_STEPS[0]:
        # One that is up shuts down when it is asked to; another is only waited for.
        bring_to(kept, "stopped")
        boots = kept.boots()
        bring_to(kept, "running")
        wait_for(lambda: kept.boots() > boots, BOOT_S, "it to boot")
    die_at(place, step)
    is_forced = step != STOP_STEPS[0]
    cloud.stop_instances(InstanceIds=[kept.instance_id], Force=is_forced)
    go_on(place)
    kept.wait_state("stopped")
    assert place.qemu_pid(kept.instance_id) is None
    assert kept.tap not in place.taps()
    place.verify()
    assert kept.address == address


@pytest.mark.parametrize("step", LAUNCH_STEPS)
def test_killed_in_a_start(place: Place, cloud: Cloud, kept: Instance, step: str) -> None:
    bring_to(kept, "stopped")
    disk = place.state_dir / "instances" / kept.instance_id / "disk-0.qcow2"
    inode, address = disk.stat().st_ino, kept.address
    die_at(place, step)
    cloud.start_instances(InstanceIds=[kept.instance_id])
    go_on(place)
    kept.wait_state("running")
    assert place.qemu_pid(kept.instance_id)
    place.verify()
    assert (disk.stat().st_ino, kept.address) == (inode, address)


@pytest.mark.parametrize("step", REMOVAL_STEPS)
def test_killed_in_a_removal(
    place: Place, cloud: Cloud, kept: Instance, group_id: str, step: str
) -> None:
    bring_to(kept, "running")
    bystander = place.qemu_pid(kept.instance_id)
    instance = cloud.launch(SecurityGroupIds=[group_id])
    instance.wait_state("running")
    tap = instance.tap
    die_at(place, step)
    cloud.terminate_instances(InstanceIds=[instance.instance_id])
    go_on(place)
    assert instance.wait_end()["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    place.verify()
    assert tap not in place.taps()
    assert f"anynode-{instance.instance_id}" not in place.domains()
    assert not (place.state_dir / "instances" / instance.instance_id).exists()
    assert place.qemu_pid(kept.instance_id) == bystander
