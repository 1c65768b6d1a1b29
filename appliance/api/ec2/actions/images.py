"""Images, kernels and ramdisks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from appliance.api.ec2 import errors
from appliance.api.ec2.action import Page, action
from appliance.api.ec2.call import Call
from appliance.api.ec2.paging import filters_of, page_of, place_of, tag_set
from appliance.store import Transaction, image_filters, images
from appliance.store.filters import TAGS
from appliance.store.images import MACHINE, Image

_ID = re.compile(r"(?:ami|aki|ari)-(?:[0-9a-f]{8}|[0-9a-f]{17})")
_OWNER = re.compile(r"self|amazon|aws-marketplace|aws-backup-vault|\d{12}", re.ASCII)


def check_image_id(image_id: str, prefix: str = "ami") -> str:
    """Return an image's id if it has the form of one.

    :raises Ec2Error: it has not.
    """
    if not _ID.fullmatch(image_id):
        raise errors.malformed_id("InvalidAMIID", image_id, f"{prefix}-")
    return image_id


@action(
    filters=(*image_filters.FILTERS, *TAGS),
    page=Page(smallest=1),
    ignores=("IncludeDeprecated", "IncludeDisabled"),
)
def describe_images(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return the images that the project may use: its own, public ones, those shared with it."""
    ids = [check_image_id(each) for each in dict.fromkeys(params.get("ImageIds", ()))]
    for owner in params.get("Owners", ()):
        if not _OWNER.fullmatch(owner):
            raise errors.Ec2Error(
                "InvalidUserID.Malformed", f'Invalid user id: "{errors.shorten(owner)}"'
            )
    size = params.get("MaxResults")
    operator_id = call.parts.config.api.account_id

    def read(tx: Transaction) -> tuple[list[Image], dict[str, list[tuple[str, str]]]]:
        missing = [each for each in ids if each not in images.find(tx, call.project_id, ids)]
        if missing:
            raise errors.images_not_found(missing)
        found = images.list_page(
            tx,
            call.project_id,
            operator_id=operator_id,
            wanted=filters_of(params),
            ids=ids,
            owners=params.get("Owners", ()),
            executable_by=params.get("ExecutableUsers", ()),
            after=place_of(params, float, str),
            limit=None if size is None else size + 1,
        )
        return found, images.tags_of(tx, call.project_id, found)

    images_found, found_tags = call.read(read)
    found, reply = page_of(images_found, size, lambda image: (image.created_at, image.image_id))
    reply["Images"] = [
        _description(image, operator_id, found_tags.get(image.image_id, ())) for image in found
    ]
    return reply


def image_gib(image: Image) -> int:
    """Return the size of an image's disk in whole GiB."""
    return max(1, math.ceil(image.virtual_size_bytes / (1 << 30)))


def block_device_mappings(image: Image) -> list[dict[str, Any]]:
    """Return the one disk of a machine image, as replies carry it."""
    return [
        {
            "DeviceName": image.root_device_name,
            "Ebs": {
                "DeleteOnTermination": True,
                "VolumeSize": image_gib(image),
                "VolumeType": "standard",
                "Encrypted": False,
            },
        }
    ]


def _description(
    image: Image, operator_id: str, tag_pairs: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "ImageId": image.image_id,
        "ImageLocation": f"{image.project_id}/{image.name}",
        "State": image.state,
        "OwnerId": image.project_id,
        "ImageOwnerAlias": "amazon" if image.project_id == operator_id else None,
        "CreationDate": _creation_date(image.created_at),
        "Public": image.is_public,
        "Architecture": "x86_64",
        "ImageType": image.kind,
        "Name": image.name,
        "Description": image.description or None,
        "Hypervisor": "xen",
        "EnaSupport": False,
        "Tags": tag_set(tag_pairs),
    }
    if image.state_reason:
        shown["StateReason"] = {"Code": "Server.InternalError", "Message": image.state_reason}
    if image.kind != MACHINE:
        return shown | {"RootDeviceType": "instance-store", "VirtualizationType": "hvm"}
    return shown | {
        "KernelId": image.kernel_id,
        "RamdiskId": image.ramdisk_id,
        "VirtualizationType": "hvm",
        "RootDeviceName": image.root_device_name,
        "RootDeviceType": "ebs",
        "BlockDeviceMappings": block_device_mappings(image),
        "PlatformDetails": "Linux/UNIX",
        "UsageOperation": "RunInstances",
    }


def _creation_date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:23] + "Z"
