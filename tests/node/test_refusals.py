"""Launches that cannot be, and images that are unlike the others."""

from collections.abc import Iterator

import pytest
from botocore.exceptions import ClientError

from tests.node.cloud import Cloud, Instance
from tests.node.conftest import import_demo
from tests.node.place import Place

pytestmark = pytest.mark.node


def test_what_fits_nowhere_is_terminated_and_says_why(place: Place, cloud: Cloud) -> None:
    instance = cloud.launch(InstanceType="t3.xlarge")
    reason = instance.wait_end()["StateReason"]
    assert reason["Code"] == "Server.InsufficientInstanceCapacity"
    assert "None of 1 nodes can hold it" in reason["Message"]
    assert "memory" in reason["Message"]
    said = place.cli("explain", instance.instance_id)
    assert "None of 1 nodes can hold it" in said
    assert "no node" in said
    place.verify()


def test_all_of_a_reservation_or_nothing(place: Place, cloud: Cloud) -> None:
    before = set(place.taps())
    wanted = {"ImageId": cloud.image_id, "InstanceType": "t3.medium"}
    answer = cloud.run_instances(MinCount=3, MaxCount=3, **wanted)
    for each in answer["Instances"]:
        found = Instance(cloud, each["InstanceId"]).wait_end()
        assert found["StateReason"]["Code"] == "Server.InsufficientInstanceCapacity"
    assert set(place.taps()) == before
    place.verify()


def test_a_foreign_key_name_is_refused_at_once(cloud: Cloud) -> None:
    with pytest.raises(ClientError) as caught:
        cloud.launch(KeyName="nobody's")
    assert caught.value.response["Error"]["Code"] == "InvalidKeyPair.NotFound"


@pytest.fixture
def drive(place: Place, cloud: Cloud) -> Iterator[Instance]:
    """An instance whose image wants the other form of the config disk."""
    group_id = cloud.make_group("drive")
    image_id = import_demo(place, "drive", "--property", "config-drive=config-2")
    instance = cloud.launch(ImageId=image_id, SecurityGroupIds=[group_id])
    yield instance
    instance.terminate()
    cloud.delete_security_group(GroupId=group_id)


def test_the_other_config_disk_brings_key_and_name(drive: Instance) -> None:
    drive.wait_state("running")
    drive.wait_booted()
    assert "label config-2" in drive.console()
    assert drive.shell("hostname").startswith(drive.describe()["PrivateDnsName"].split(".")[0])
