"""The actions that the usual clients call, and both sides of the protocol."""

from __future__ import annotations

from typing import Any

import botocore.loaders
import botocore.model
import pytest

from appliance.api.ec2.protocol.model import ServiceModel, load_model
from appliance.api.ec2.protocol.parser import RequestParser
from appliance.api.ec2.protocol.serializer import ReplySerializer

_CALLED = """
    RunInstances DescribeInstances TerminateInstances RebootInstances CreateKeyPair
    DescribeKeyPairs DeleteKeyPair CreateSecurityGroup DescribeSecurityGroups
    DeleteSecurityGroup AuthorizeSecurityGroupIngress RevokeSecurityGroupIngress DescribeImages
    DescribeAvailabilityZones DescribeRegions GetConsoleOutput ImportKeyPair
    AuthorizeSecurityGroupEgress RevokeSecurityGroupEgress AllocateAddress AssociateAddress
    DisassociateAddress ReleaseAddress DescribeAddresses CreateVolume AttachVolume DetachVolume
    DeleteVolume DescribeVolumes CreateSnapshot DeleteSnapshot DescribeSnapshots CreateImage
    RegisterImage DeregisterImage DescribeImageAttribute ModifyImageAttribute CreateTags
    DeleteTags DescribeTags StartInstances StopInstances DescribeInstanceAttribute
    ModifyInstanceAttribute DescribeInstanceStatus DescribeInstanceTypes DescribeVpcs
    DescribeSubnets DescribeNetworkInterfaces GetPasswordData ModifyVolume
    DescribeVolumesModifications DescribeSecurityGroupRules DescribeAddressesAttribute
    DescribeInstanceCreditSpecifications DescribeInstanceTypeOfferings
    DescribeIamInstanceProfileAssociations ModifyInstanceMetadataOptions ModifySnapshotAttribute
    CopyImage
"""
ACTIONS = _CALLED.split()


@pytest.fixture(params=ACTIONS)
def action(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def actions() -> list[str]:
    return ACTIONS


@pytest.fixture(scope="session")
def model() -> ServiceModel:
    return load_model(ACTIONS)


@pytest.fixture(scope="session")
def parser(model: ServiceModel) -> RequestParser:
    return RequestParser(model)


@pytest.fixture(scope="session")
def serializer(model: ServiceModel) -> ReplySerializer:
    return ReplySerializer(model)


@pytest.fixture(scope="session")
def reference() -> Any:
    """botocore's own reading of the same description."""
    description = botocore.loaders.Loader().load_service_model("ec2", "service-2")
    return botocore.model.ServiceModel(description, "ec2")
