"""What other clients call, in their order and with what they demand of each reply.

Terraform's AWS provider and Packer are programs of their own that cannot be installed from where
this project takes its packages. Their calls are written down here, as read in their sources, and
made with botocore: what the reply must hold is what they would crash on, or act upon, otherwise.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any, TypeVar

from botocore.exceptions import ClientError

T = TypeVar("T")
PATIENCE_S = 60
INGRESS = {
    "IpProtocol": "tcp",
    "FromPort": 443,
    "ToPort": 443,
    "IpRanges": [{"CidrIp": "192.0.2.0/24", "Description": "the office"}],
}
_BEFORE_THE_END = ("pending", "running", "shutting-down", "stopped", "stopping")
EVERYWHERE = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
EVERYWHERE_6 = {"IpProtocol": "-1", "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}


def refusal(call: Callable[..., object], **parameters: Any) -> str:
    """Return the code with which a call is refused; empty when it is carried out."""
    try:
        call(**parameters)
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return ""


def until(look: Callable[[], T | None], what: str) -> T:
    """Ask until there is an answer, as a provider refreshes its state."""
    end = time.monotonic() + PATIENCE_S
    while (found := look()) is None:
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.2)
    return found


class TerraformKeyPair:
    """``aws_key_pair``: always imported, read by name, and by name deleted."""

    def __init__(self, ec2: Any, name: str, public_key: str) -> None:
        self._ec2, self.name, self._public_key = ec2, name, public_key

    def create(self) -> None:
        """Import it, and read it back."""
        tags = [{"Key": "made-by", "Value": "terraform"}]
        made = self._ec2.import_key_pair(
            KeyName=self.name,
            PublicKeyMaterial=self._public_key.encode(),
            TagSpecifications=[{"ResourceType": "key-pair", "Tags": tags}],
        )
        assert made["KeyName"] == self.name
        found = self.read()
        assert found["KeyPairId"].startswith("key-")
        assert found["KeyFingerprint"] == made["KeyFingerprint"]
        assert found["KeyType"] in ("rsa", "ed25519")
        assert found["Tags"] == tags
        # The provider compares the key itself, without the comment at its end.
        assert found["PublicKey"].split()[:2] == self._public_key.split()[:2]

    def read(self) -> Any:
        """Return the one key pair of the name."""
        reply = self._ec2.describe_key_pairs(KeyNames=[self.name], IncludePublicKey=True)
        [found] = reply["KeyPairs"]
        return found

    def destroy(self) -> None:
        """Delete it; the provider reads again, and that it is gone is an error by name."""
        self._ec2.delete_key_pair(KeyName=self.name)
        assert refusal(self.read) == "InvalidKeyPair.NotFound"


class TerraformSecurityGroup:
    """``aws_security_group``, with its rules in line."""

    def __init__(self, ec2: Any, name: str) -> None:
        self._ec2, self._name = ec2, name
        self.group_id = ""

    def create(self) -> None:
        """Make it, take its rules away that nobody asked for, and write those that were."""
        made = self._ec2.create_security_group(
            GroupName=self._name,
            Description="Managed by Terraform",
            TagSpecifications=[
                {"ResourceType": "security-group", "Tags": [{"Key": "Name", "Value": self._name}]}
            ],
        )
        self.group_id = made["GroupId"]
        assert self.group_id.startswith("sg-")
        found = self.read()
        assert found["VpcId"].startswith("vpc-")
        assert found["IpPermissionsEgress"][0]["IpProtocol"] == "-1"
        group = {"GroupId": self.group_id}
        self._ec2.revoke_security_group_egress(**group, IpPermissions=[EVERYWHERE])
        missing = refusal(
            self._ec2.revoke_security_group_egress, **group, IpPermissions=[EVERYWHERE_6]
        )
        assert missing == "InvalidPermission.NotFound"
        for authorize, permission in (
            (self._ec2.authorize_security_group_ingress, INGRESS),
            (self._ec2.authorize_security_group_egress, EVERYWHERE),
        ):
            authorize(**group, IpPermissions=[permission])
        found = self.read()
        assert found["IpPermissions"][0]["IpRanges"] == INGRESS["IpRanges"]
        assert found["IpPermissionsEgress"][0]["IpRanges"] == EVERYWHERE["IpRanges"]
        assert found["OwnerId"].isdigit()

    def read(self) -> Any:
        """Return the one group of the id."""
        [found] = self._ec2.describe_security_groups(GroupIds=[self.group_id])["SecurityGroups"]
        return found

    def update(self) -> None:
        """Write a rule anew, as a changed description does: revoke, then authorise."""
        group = {"GroupId": self.group_id}
        self._ec2.revoke_security_group_ingress(**group, IpPermissions=[INGRESS])
        changed = {**INGRESS, "IpRanges": [{"CidrIp": "198.51.100.0/24"}]}
        self._ec2.authorize_security_group_ingress(**group, IpPermissions=[changed])
        [permission] = self.read()["IpPermissions"]
        assert permission["IpRanges"] == changed["IpRanges"]

    def destroy(self, *, revokes_rules: bool = False) -> None:
        """Delete it when nothing uses it any more; ``revokes_rules`` is revoke_rules_on_delete."""
        if revokes_rules:
            self._revoke_all()
        self._ec2.describe_network_interfaces(
            Filters=[{"Name": "group-id", "Values": [self.group_id]}]
        )

        def deleted() -> bool | None:
            code = refusal(self._ec2.delete_security_group, GroupId=self.group_id)
            assert code in ("", "DependencyViolation", "InvalidGroup.InUse"), code
            return True if not code else None

        until(deleted, f"{self.group_id} to be unused")
        assert refusal(self.read) == "InvalidGroup.NotFound"

    def _revoke_all(self) -> None:
        rules = self._ec2.describe_security_group_rules(
            Filters=[{"Name": "group-id", "Values": [self.group_id]}]
        )["SecurityGroupRules"]
        assert rules
        for revoke, is_egress in (
            (self._ec2.revoke_security_group_ingress, False),
            (self._ec2.revoke_security_group_egress, True),
        ):
            ids = [each["SecurityGroupRuleId"] for each in rules if each["IsEgress"] is is_egress]
            assert all(each.startswith("sgr-") for each in ids)
            if ids:
                revoke(GroupId=self.group_id, SecurityGroupRuleIds=ids)
        found = self.read()
        assert not found["IpPermissions"]
        assert not found["IpPermissionsEgress"]


class TerraformInstance:
    """``aws_instance``, of a type of the t3 family, which brings the most calls."""

    def __init__(self, ec2: Any, image_id: str, group_id: str, key_name: str) -> None:
        self._ec2 = ec2
        self._wanted = {
            "ImageId": image_id,
            "InstanceType": "t3.micro",
            "KeyName": key_name,
            "SecurityGroupIds": [group_id],
        }
        self.instance_id = ""

    def create(self, token: str, zone: str) -> None:
        """Launch it, wait until it runs, and read it."""
        launched = self._ec2.run_instances(
            **self._wanted,
            ClientToken=token,
            MinCount=1,
            MaxCount=1,
            Monitoring={"Enabled": False},
            Placement={"AvailabilityZone": zone},
            CreditSpecification={"CpuCredits": "unlimited"},
            DisableApiTermination=True,
            EbsOptimized=False,
            InstanceInitiatedShutdownBehavior="stop",
            UserData="#!/bin/sh\n",
            TagSpecifications=[
                {"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": token}]},
                {"ResourceType": "volume", "Tags": [{"Key": "Name", "Value": token}]},
            ],
        )
        self.instance_id = launched["Instances"][0]["InstanceId"]
        assert self.instance_id.startswith("i-")
        self._wait("running", pending=("pending", "stopped"))
        found = self.read()
        assert found["Placement"]["AvailabilityZone"] == zone

    def read(self) -> Any:
        """Make the calls of a refresh, and look at what the provider looks at without asking."""
        ec2, instance_id = self._ec2, self.instance_id
        found = self._describe()
        assert found["State"]["Name"] != "terminated"
        for required in ("ImageId", "InstanceType", "Placement", "Monitoring", "EbsOptimized"):
            assert required in found, required
        assert found["Placement"]["Tenancy"] == "default"
        assert found["Monitoring"]["State"] in ("disabled", "enabled")
        assert found["MetadataOptions"]["HttpTokens"] in ("optional", "required")
        [card] = found["NetworkInterfaces"]
        assert card["Attachment"]["DeviceIndex"] == 0
        assert card["NetworkInterfaceId"].startswith("eni-")
        assert card["SubnetId"] == found["SubnetId"]
        [kind] = ec2.describe_instance_types(InstanceTypes=[found["InstanceType"]])["InstanceTypes"]
        is_burstable = kind["BurstablePerformanceSupported"]
        filters = {"resource-id": instance_id, "key": "aws:ec2launchtemplate:id"}
        tags = ec2.describe_tags(
            Filters=[{"Name": name, "Values": [value]} for name, value in filters.items()]
        )
        assert tags["Tags"] == []
        [vpc] = ec2.describe_vpcs(VpcIds=[found["VpcId"]])["Vpcs"]
        assert vpc["IsDefault"] is True
        attributes = {
            "instanceInitiatedShutdownBehavior": "InstanceInitiatedShutdownBehavior",
            "disableApiStop": "DisableApiStop",
            "disableApiTermination": "DisableApiTermination",
            "userData": "UserData",
        }
        for attribute, member in attributes.items():
            reply = ec2.describe_instance_attribute(InstanceId=instance_id, Attribute=attribute)
            # The provider takes .Value of it without looking whether there is one.
            assert member in reply, attribute
            assert "Value" in reply[member], attribute
        # Volumes come with DescribeVolumes, only of the mapped ones.
        if is_burstable:
            ec2.describe_instance_credit_specifications(InstanceIds=[instance_id])
        password = ec2.get_password_data(InstanceId=instance_id)
        assert password["PasswordData"] == ""
        return found

    def update_tags(self) -> None:
        """Change one tag and take another away."""
        ec2, resources = self._ec2, [self.instance_id]
        ec2.create_tags(Resources=resources, Tags=[{"Key": "stage", "Value": "live"}])
        ec2.delete_tags(Resources=resources, Tags=[{"Key": "Name"}])
        assert self._describe()["Tags"] == [{"Key": "stage", "Value": "live"}]

    def update_groups(self, *group_ids: str) -> None:
        """Move it to other groups while it runs."""
        self._modify(Groups=list(group_ids))
        found = {group["GroupId"] for group in self._describe()["SecurityGroups"]}
        assert found == set(group_ids)

    def update_type(self, instance_type: str, user_data: bytes) -> None:
        """Change what needs it to be off: stop, modify, start."""
        self._ec2.stop_instances(InstanceIds=[self.instance_id])
        self._wait("stopped", pending=("running", "stopping", "pending", "shutting-down"))
        self._modify(InstanceType={"Value": instance_type})
        self._modify(UserData={"Value": user_data})
        self._ec2.start_instances(InstanceIds=[self.instance_id])
        self._wait("running", pending=("pending", "stopped"))
        assert self.read()["InstanceType"] == instance_type
        data = self._ec2.describe_instance_attribute(
            InstanceId=self.instance_id, Attribute="userData"
        )
        assert base64.b64decode(data["UserData"]["Value"]) == user_data

    def destroy(self) -> None:
        """Lift its protection, terminate it, and wait until it is gone."""
        assert self._terminate() == "OperationNotPermitted"
        self._modify(DisableApiTermination={"Value": False})
        self._modify(DisableApiStop={"Value": False})
        assert self._terminate() == ""

        def gone() -> bool | None:
            code = refusal(self._ec2.describe_instances, InstanceIds=[self.instance_id])
            if code:
                assert code == "InvalidInstanceID.NotFound", code
                return True
            state = self._describe()["State"]["Name"]
            assert state in (*_BEFORE_THE_END, "terminated"), state
            return True if state == "terminated" else None

        until(gone, f"{self.instance_id} to end")

    def _terminate(self) -> str:
        return refusal(self._ec2.terminate_instances, InstanceIds=[self.instance_id])

    def _modify(self, **attribute: Any) -> None:
        self._ec2.modify_instance_attribute(InstanceId=self.instance_id, **attribute)

    def _describe(self) -> Any:
        """Return the instance; a reply without it would drop it from the provider's state."""
        [reservation] = self._ec2.describe_instances(InstanceIds=[self.instance_id])["Reservations"]
        [found] = reservation["Instances"]
        return found

    def _wait(self, state: str, pending: tuple[str, ...]) -> None:
        def reached() -> bool | None:
            name = self._describe()["State"]["Name"]
            assert name in (state, *pending), name
            return True if name == state else None

        until(reached, f"{self.instance_id} to be {state}")
