"""What a launch says about the metadata service is shown, and reaches the instance."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.store import Transaction, instances
from tests.api.front import Front

TAGS = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "web"}]}]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({}, {}),
        ({"InstanceMetadataTags": "disabled"}, {}),
        ({"InstanceMetadataTags": "enabled"}, {"Name": "web"}),
    ],
)
def test_tags_are_told_only_where_that_was_asked_for(
    front: Front, ec2: Any, asked: dict[str, str], told: dict[str, str]
) -> None:
    reply = ec2.run_instances(
        ImageId=front.image.image_id,
        MinCount=1,
        MaxCount=1,
        InstanceType="m1.tiny",
        TagSpecifications=TAGS,
        MetadataOptions=asked,
    )
    [instance] = reply["Instances"]
    shown = instance["MetadataOptions"]["InstanceMetadataTags"]
    assert shown == asked.get("InstanceMetadataTags", "disabled")

    def bind(tx: Transaction) -> dict[str, str]:
        binding = instances.bind(tx, instance["InstanceId"], 1, region="local-1", quarantine_s=0)
        return binding.metadata.tags

    assert front.store.transaction(bind) == told
