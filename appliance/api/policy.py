"""What each action needs: the one place where it is decided who may do what."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from appliance.access_levels import ACCESS_LEVELS, ADMIN, MEMBER, READER
from appliance.model import Identity

_RANK = {level: rank for rank, level in enumerate(ACCESS_LEVELS)}

NEEDED: Mapping[str, str] = MappingProxyType(
    {
        "AuthorizeSecurityGroupEgress": MEMBER,
        "AuthorizeSecurityGroupIngress": MEMBER,
        "CreateKeyPair": MEMBER,
        "CreateSecurityGroup": MEMBER,
        "CreateTags": MEMBER,
        "DeleteKeyPair": MEMBER,
        "DeleteSecurityGroup": MEMBER,
        "DeleteTags": MEMBER,
        "DescribeAccountAttributes": READER,
        "DescribeAvailabilityZones": READER,
        "DescribeImageAttribute": READER,
        "DescribeImages": READER,
        "DescribeInstanceAttribute": READER,
        "DescribeInstanceCreditSpecifications": READER,
        "DescribeInstanceStatus": READER,
        "DescribeInstanceTypeOfferings": READER,
        "DescribeInstanceTypes": READER,
        "DescribeInstances": READER,
        "DescribeKeyPairs": READER,
        "DescribeNetworkInterfaces": READER,
        "DescribeRegions": READER,
        "DescribeSecurityGroupRules": READER,
        "DescribeSecurityGroups": READER,
        "DescribeSubnets": READER,
        "DescribeTags": READER,
        "DescribeVpcAttribute": READER,
        "DescribeVpcs": READER,
        "GetCallerIdentity": READER,
        "GetConsoleOutput": READER,
        "GetPasswordData": READER,
        "ImportKeyPair": MEMBER,
        "ModifyImageAttribute": ADMIN,
        "ModifyInstanceAttribute": MEMBER,
        "ModifySecurityGroupRules": MEMBER,
        "MonitorInstances": MEMBER,
        "RebootInstances": MEMBER,
        "ResetImageAttribute": ADMIN,
        "RevokeSecurityGroupEgress": MEMBER,
        "RevokeSecurityGroupIngress": MEMBER,
        "RunInstances": MEMBER,
        "StartInstances": MEMBER,
        "StopInstances": MEMBER,
        "TerminateInstances": MEMBER,
        "UnmonitorInstances": MEMBER,
        "UpdateSecurityGroupRuleDescriptionsEgress": MEMBER,
        "UpdateSecurityGroupRuleDescriptionsIngress": MEMBER,
    }
)
"""The least access level by action; what is not named here nobody may do."""


def is_allowed(identity: Identity, action: str) -> bool:
    """Say whether the caller's access level in its project is enough for an action."""
    needed = NEEDED.get(action)
    level = _RANK.get(identity.access_level)
    return needed is not None and level is not None and level >= _RANK[needed]


def is_change(action: str) -> bool:
    """Say whether an action changes something: whatever asks for more than reading."""
    return NEEDED.get(action, READER) != READER
