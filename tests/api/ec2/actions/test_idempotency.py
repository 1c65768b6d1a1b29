"""A client token stands for one launch: with any other parameter it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import botocore.session
import pytest

from appliance.store import schema
from tests.api.ec2.examples.stage import Refused, Stage
from tests.api.front import Front

MISMATCH = "IdempotentParameterMismatch"

_input = botocore.session.get_session().get_service_model("ec2")
MEMBERS = _input.operation_model("RunInstances").input_shape.members
NEVER_PART_OF_IT = {"ClientToken", "DryRun"}


def sample(shape: Any) -> Any:
    """Return a value of a shape, with every member of its structures."""
    if shape.type_name == "structure":
        return {name: sample(member) for name, member in shape.members.items()}
    if shape.type_name == "list":
        return [sample(shape.member)]
    if shape.type_name == "string":
        return shape.enum[-1] if shape.enum else "x"
    return {"boolean": True, "integer": 3, "float": 1.5, "timestamp": "2026-01-02T03:04:05Z"}[
        shape.type_name
    ]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    front = Front(tmp_path_factory.mktemp("stage"))
    made = Stage(front)
    made.ask("RunInstances", **launch(made))
    yield made
    front.close()


def launch(stage: Stage, **more: Any) -> dict[str, Any]:
    image_id = stage.front.image.image_id
    return {"ImageId": image_id, "MinCount": 1, "MaxCount": 1, "ClientToken": "t", **more}


@pytest.mark.parametrize("member", sorted(set(MEMBERS) - NEVER_PART_OF_IT))
def test_every_parameter_is_part_of_a_launch(stage: Stage, member: str) -> None:
    with pytest.raises(Refused):
        stage.ask("RunInstances", **launch(stage, **{member: sample(MEMBERS[member])}))
    assert len(stage.front.rows(schema.reservations)) == 1


ACCEPTED: list[dict[str, Any]] = [
    {"AdditionalInfo": "x"},
    {"CreditSpecification": {"CpuCredits": "unlimited"}, "InstanceType": "t3.nano"},
    {"DisableApiStop": True},
    {"DisableApiTermination": True},
    {"EbsOptimized": True},
    {"InstanceInitiatedShutdownBehavior": "terminate"},
    {"InstanceType": "m1.tiny"},
    {"MaintenanceOptions": {"AutoRecovery": "default"}},
    {"MaxCount": 2},
    {"MetadataOptions": {"HttpTokens": "required"}},
    {"Monitoring": {"Enabled": True}},
    {"Placement": {"AvailabilityZone": "local-1a"}},
    {"SecurityGroups": ["default"]},
    {"TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "a", "Value": "b"}]}]},
    {"UserData": "eA=="},
]


@pytest.mark.parametrize("more", ACCEPTED, ids=lambda more: next(iter(more)))
def test_what_would_be_accepted_is_a_mismatch(stage: Stage, more: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        stage.ask("RunInstances", **launch(stage, **more))
    assert (refused.value.code, refused.value.status) == (MISMATCH, 400)
    assert refused.value.message == (
        "Arguments on this idempotent request are inconsistent with arguments used in previous "
        "request(s)."
    )


def test_the_same_request_is_answered_with_the_same_reservation(stage: Stage) -> None:
    [row] = stage.front.rows(schema.reservations)
    assert stage.ask("RunInstances", **launch(stage))["ReservationId"] == row.id
