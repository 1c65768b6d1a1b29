"""What a launch cannot have here."""

from __future__ import annotations

from appliance.api.ec2.action import Refusal

_UNSUPPORTED = {
    "LaunchTemplate": "Launch templates are not supported.",
    "IamInstanceProfile": "Instance profiles are not supported.",
    "InstanceMarketOptions": "Spot instances are not supported.",
    "ElasticGpuSpecification": "Elastic GPUs are not supported.",
    "ElasticInferenceAccelerators": "Inference accelerators are not supported.",
    "PrivateIpAddress": "An address cannot be chosen at launch.",
    "Ipv6Addresses": "An address cannot be chosen at launch.",
    "Ipv6AddressCount": "IPv6 addresses are not supported.",
    "SecondaryInterfaces": "Secondary interfaces are not supported.",
    "HibernationOptions.Configured": "Hibernation is not supported.",
    "EnclaveOptions.Enabled": "Enclaves are not supported.",
    "Placement.HostId": "Dedicated tenancy is not supported.",
    "Placement.GroupName": "Placement groups are not supported.",
    "Placement.GroupId": "Placement groups are not supported.",
    "NetworkInterfaces.NetworkInterfaceId": "Network interfaces are made with their instance.",
    "NetworkInterfaces.AssociatePublicIpAddress": (
        "There are no public addresses to assign at launch."
    ),
    "NetworkInterfaces.PrivateIpAddress": "An address cannot be chosen at launch.",
    "NetworkInterfaces.PrivateIpAddresses": "An address cannot be chosen at launch.",
    "NetworkInterfaces.Ipv6Addresses": "An address cannot be chosen at launch.",
    "BlockDeviceMappings.Ebs.Encrypted": "Encrypted disks are not supported.",
    "CapacityReservationSpecification.CapacityReservationTarget": (
        "Capacity reservations are not supported."
    ),
    "EnablePrimaryIpv6": "IPv6 addresses are not supported.",
    "LicenseSpecifications": "License configurations are not supported.",
    "Placement.Affinity": "Dedicated tenancy is not supported.",
    "Placement.HostResourceGroupArn": "Dedicated tenancy is not supported.",
    "Placement.PartitionNumber": "Placement groups are not supported.",
    "PrivateDnsNameOptions.EnableResourceNameDnsARecord": "Host names are made of addresses.",
    "PrivateDnsNameOptions.EnableResourceNameDnsAAAARecord": "IPv6 addresses are not supported.",
}
REFUSED = (
    *(Refusal(parameter=parameter, text=text) for parameter, text in _UNSUPPORTED.items()),
    Refusal(
        parameter="CpuOptions.AmdSevSnp",
        text="AMD SEV-SNP is not supported.",
        unless=("disabled",),
    ),
    Refusal(
        parameter="MetadataOptions.HttpEndpoint",
        text="The metadata service cannot be disabled.",
        unless=("enabled",),
    ),
    Refusal(
        parameter="MetadataOptions.HttpProtocolIpv6",
        text="The metadata service has no IPv6 address.",
        unless=("disabled",),
    ),
    Refusal(
        parameter="NetworkPerformanceOptions.BandwidthWeighting",
        text="Bandwidth weighting is not supported.",
        unless=("default",),
    ),
    Refusal(
        parameter="PrivateDnsNameOptions.HostnameType",
        text="Host names are made of addresses.",
        unless=("ip-name",),
    ),
    Refusal(
        parameter="Placement.Tenancy",
        text="Dedicated tenancy is not supported.",
        unless=("default",),
    ),
    Refusal(
        parameter="BlockDeviceMappings.Ebs.DeleteOnTermination",
        text="Root disks are deleted on termination.",
        unless=(True,),
    ),
)
"""Parameters of RunInstances that are answered with an error."""
