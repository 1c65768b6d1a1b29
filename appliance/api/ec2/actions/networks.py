"""VPCs and subnets: those of the cluster, as each project's own."""

from __future__ import annotations

from typing import Any

from appliance.api.ec2.action import Page, action
from appliance.api.ec2.call import Call
from appliance.api.ec2.errors import subnets_not_found, vpcs_not_found
from appliance.api.ec2.paging import check_ids, filters_of, missing_of, page_of, place_of, tag_set
from appliance.api.ec2.protocol.serializer import Constant
from appliance.store import Transaction, topology
from appliance.store.filters import TAGS
from appliance.store.topology import Subnet, Viewer, Vpc

_NAME_OPTIONS = Constant(
    {
        "HostnameType": "ip-name",
        "EnableResourceNameDnsARecord": False,
        "EnableResourceNameDnsAAAARecord": False,
    }
)
_UNBLOCKED = Constant({"InternetGatewayBlockMode": "off"})
_ATTRIBUTES = {
    "enableDnsSupport": {"EnableDnsSupport": {"Value": True}},
    # Names are given to public addresses, which no instance has.
    "enableDnsHostnames": {"EnableDnsHostnames": {"Value": False}},
    "enableNetworkAddressUsageMetrics": {"EnableNetworkAddressUsageMetrics": {"Value": False}},
}


@action(filters=(*topology.VPC_FILTERS, *TAGS), page=Page())
def describe_vpcs(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return VPCs; every project sees the cluster's, and its own tags of them."""
    ids = check_ids(params.get("VpcIds", ()), "vpc", "InvalidVpcID")
    size = params.get("MaxResults")

    def read(tx: Transaction) -> list[Vpc]:
        missing = missing_of(ids, topology.known_vpcs(tx, ids)) if ids else []
        if missing:
            raise vpcs_not_found(missing)
        return topology.list_vpcs(
            tx,
            viewer_of(call),
            ids=ids,
            wanted=filters_of(params),
            after=str(*place_of(params, str)),
            limit=None if size is None else size + 1,
        )

    found, reply = page_of(call.read(read), size, lambda vpc: (vpc.vpc_id,))
    reply["Vpcs"] = [_vpc(call, vpc) for vpc in found]
    return reply


@action()
def describe_vpc_attribute(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return one attribute of a VPC; they are the same for all."""
    [vpc_id] = ids = check_ids([params["VpcId"]], "vpc", "InvalidVpcID")
    if missing := missing_of(ids, call.read(lambda tx: topology.known_vpcs(tx, ids))):
        raise vpcs_not_found(missing)
    return {"VpcId": vpc_id} | _ATTRIBUTES[params["Attribute"]]


@action(filters=(*topology.SUBNET_FILTERS, *TAGS), page=Page())
def describe_subnets(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return subnets, with how many of their addresses can be taken now."""
    ids = check_ids(params.get("SubnetIds", ()), "subnet", "InvalidSubnetID")
    size = params.get("MaxResults")
    viewer = viewer_of(call)

    def read(tx: Transaction) -> list[Subnet]:
        missing = missing_of(ids, topology.known_subnets(tx, ids)) if ids else []
        if missing:
            raise subnets_not_found(missing)
        return topology.list_subnets(
            tx,
            viewer,
            ids=ids,
            wanted=filters_of(params),
            after=[str(each) for each in place_of(params, str, str)],
            limit=None if size is None else size + 1,
        )

    found, reply = page_of(call.read(read), size, lambda one: (one.zone, one.network_id))
    reply["Subnets"] = [_subnet(viewer, subnet) for subnet in found]
    return reply


def viewer_of(call: Call) -> Viewer:
    """Return the caller as one who looks at VPCs and subnets."""
    return Viewer(
        project_id=call.project_id,
        region=call.parts.region,
        zone=call.parts.zone,
        quarantine_s=call.parts.config.network.address_quarantine_s,
    )


def _vpc(call: Call, vpc: Vpc) -> dict[str, Any]:
    return {
        "VpcId": vpc.vpc_id,
        "OwnerId": call.project_id,
        "State": topology.AVAILABLE,
        "CidrBlock": vpc.cidr,
        "CidrBlockAssociationSet": [
            {
                "AssociationId": topology.association_id(vpc.vpc_id),
                "CidrBlock": vpc.cidr,
                "CidrBlockState": {"State": "associated"},
            }
        ],
        "DhcpOptionsId": topology.DHCP_OPTIONS,
        "InstanceTenancy": "default",
        "IsDefault": vpc.is_default,
        "BlockPublicAccessStates": _UNBLOCKED,
        "Tags": tag_set(vpc.tags),
    }


def _subnet(viewer: Viewer, subnet: Subnet) -> dict[str, Any]:
    return {
        "SubnetId": subnet.network_id,
        "SubnetArn": topology.subnet_arn(viewer, subnet.network_id),
        "VpcId": subnet.vpc_id,
        "OwnerId": viewer.project_id,
        "State": topology.AVAILABLE,
        "CidrBlock": subnet.cidr,
        "AvailableIpAddressCount": subnet.free_addresses,
        "AvailabilityZone": subnet.zone,
        "AvailabilityZoneId": subnet.zone,
        "DefaultForAz": subnet.is_default,
        "MapPublicIpOnLaunch": False,
        "MapCustomerOwnedIpOnLaunch": False,
        "AssignIpv6AddressOnCreation": False,
        "Ipv6CidrBlockAssociationSet": [],
        "Ipv6Native": False,
        "EnableDns64": False,
        "PrivateDnsNameOptionsOnLaunch": _NAME_OPTIONS,
        "BlockPublicAccessStates": _UNBLOCKED,
        "Tags": tag_set(subnet.tags),
    }
