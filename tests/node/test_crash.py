"""The node's process dies in the middle of a launch, a stop or a removal, and goes on later."""

from collections.abc import Iterator

import pytest

from tests.node.cloud import Cloud, Instance
from tests.node.place import Place

pytestmark = [pytest.mark.node, pytest.mark.faults("kill: libvirt", quick=True)]

SIGKILLED = (-9, 137)


@pytest.fixture
def group_id(cloud: Cloud) -> Iterator[str]:
    """A group for instances that nobody enters."""
    group: str = cloud.create_security_group(GroupName="crash", Description="crash")["GroupId"]
    yield group
    cloud.delete_security_group(GroupId=group)


def restart(place: Place, crash_at: str) -> None:
    """Start the node anew, so that it kills itself at a point."""
    place.stop()
    place.begin(environment={"ANYNODE_CRASH_AT": crash_at})
    place.wait_up()


def end(instance: Instance, place: Place) -> None:
    tap = instance.tap
    instance.terminate()
    assert tap not in place.taps()
    assert not (place.state_dir / "instances" / instance.instance_id).exists()
    place.verify()


@pytest.mark.parametrize("step", ["attach-ports", "create-disks", "start"])
def test_a_launch_that_was_cut_off_is_finished(
    place: Place, cloud: Cloud, group_id: str, step: str
) -> None:
    restart(place, f"step.{step}.after")
    instance = cloud.launch(SecurityGroupIds=[group_id])
    assert place.wait_for_end() in SIGKILLED
    place.start()
    instance.wait_state("running")
    assert place.qemu_pid(instance.instance_id)
    place.verify()
    end(instance, place)


def test_a_removal_that_was_cut_off_is_finished(place: Place, cloud: Cloud, group_id: str) -> None:
    instance = cloud.launch(SecurityGroupIds=[group_id])
    instance.wait_state("running")
    tap = instance.tap
    restart(place, "step.forget.after")
    cloud.terminate_instances(InstanceIds=[instance.instance_id])
    assert place.wait_for_end() in SIGKILLED
    place.start()
    instance.wait_end()
    assert tap not in place.taps()
    place.verify()
