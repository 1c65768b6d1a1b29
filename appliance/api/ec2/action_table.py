"""The actions that are served, by EC2's names."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from appliance.api.ec2.action import Action
from appliance.api.ec2.actions import (
    console,
    images,
    instance_types,
    instances,
    key_pairs,
    launch,
    power,
    regions,
    security_group_rules,
    security_groups,
)

ACTIONS: Mapping[str, Action] = MappingProxyType(
    {
        "AuthorizeSecurityGroupEgress": security_group_rules.authorize_egress,
        "AuthorizeSecurityGroupIngress": security_group_rules.authorize_ingress,
        "CreateKeyPair": key_pairs.create_key_pair,
        "CreateSecurityGroup": security_groups.create_security_group,
        "DeleteKeyPair": key_pairs.delete_key_pair,
        "DeleteSecurityGroup": security_groups.delete_security_group,
        "DescribeAvailabilityZones": regions.describe_availability_zones,
        "DescribeImages": images.describe_images,
        "DescribeInstanceTypes": instance_types.describe_instance_types,
        "DescribeInstances": instances.describe_instances,
        "DescribeKeyPairs": key_pairs.describe_key_pairs,
        "DescribeRegions": regions.describe_regions,
        "DescribeSecurityGroups": security_groups.describe_security_groups,
        "GetConsoleOutput": console.get_console_output,
        "ImportKeyPair": key_pairs.import_key_pair,
        "RebootInstances": power.reboot_instances,
        "RevokeSecurityGroupEgress": security_group_rules.revoke_egress,
        "RevokeSecurityGroupIngress": security_group_rules.revoke_ingress,
        "RunInstances": launch.run_instances,
        "StartInstances": power.start_instances,
        "StopInstances": power.stop_instances,
        "TerminateInstances": power.terminate_instances,
    }
)
