"""Attributes of images: above all who may launch them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.api.ec2 import errors
from appliance.api.ec2.action import Refusal, action
from appliance.api.ec2.actions.images import block_device_mappings, check_image_id
from appliance.api.ec2.call import Call
from appliance.store import Transaction, image_shares, images
from appliance.store.images import MACHINE, Image

LAUNCH_PERMISSION = "launchPermission"
EVERYBODY = "all"
LONGEST_DESCRIPTION = 255

_ACCOUNT = re.compile(r"\d{12}", re.ASCII)
_ORGANIZATIONS = "There are no organizations here."


@dataclass(frozen=True, kw_only=True)
class _Permissions:
    """Accounts, and whether everybody is meant."""

    accounts: Sequence[str] = field(default_factory=tuple)
    is_everybody: bool = False

    def __bool__(self) -> bool:
        return bool(self.accounts) or self.is_everybody

    def said(self, sign: str) -> str:
        """Return them as the audit log names them."""
        names = [EVERYBODY] * self.is_everybody + list(self.accounts)
        return "".join(f" {sign}{name}" for name in names)


@action()
def describe_image_attribute(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return one attribute of an image of the project."""
    image_id = check_image_id(params["ImageId"])
    describe = _DESCRIBED.get(params["Attribute"])
    if describe is None:
        raise errors.unsupported_operation(f"Images have no {params['Attribute']} here.")

    def read(tx: Transaction) -> dict[str, Any]:
        return describe(tx, _own_image(tx, call, image_id))

    return {"ImageId": image_id} | call.read(read)


@action(
    refuses=[
        Refusal(parameter="LaunchPermission.Add.OrganizationArn", text=_ORGANIZATIONS),
        Refusal(parameter="LaunchPermission.Add.OrganizationalUnitArn", text=_ORGANIZATIONS),
        Refusal(parameter="OrganizationArns", text=_ORGANIZATIONS),
        Refusal(parameter="OrganizationalUnitArns", text=_ORGANIZATIONS),
        Refusal(parameter="ProductCodes", text="There are no product codes here."),
        Refusal(parameter="ImdsSupport", text="How metadata is reached is said at launch."),
    ]
)
def modify_image_attribute(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Share an image of the project, share it no longer, or describe it anew."""
    image_id = check_image_id(params["ImageId"])
    added, removed = _wanted_permissions(params)
    description = _wanted_description(params)
    if (description is not None) is bool(added or removed):
        raise errors.invalid_parameter_combination(
            "Name one attribute to modify: the launch permission or the description."
        )

    def change(tx: Transaction) -> None:
        image = _own_image(tx, call, image_id)
        if description is not None:
            images.set_description(tx, image.image_id, description)
            return
        image_shares.share(tx, image_id, [a for a in added.accounts if a != call.project_id])
        image_shares.unshare(tx, image_id, removed.accounts)
        if added.is_everybody or removed.is_everybody:
            image_shares.publish(tx, image_id, is_public=not removed.is_everybody)

    what = "description" if description is not None else added.said("+") + removed.said("-")
    call.change(change, f"{image_id} {what.strip()}")
    return {}


@action()
def reset_image_attribute(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Share an image of the project with nobody."""
    image_id = check_image_id(params["ImageId"])

    def change(tx: Transaction) -> None:
        _own_image(tx, call, image_id)
        image_shares.clear(tx, image_id)
        image_shares.publish(tx, image_id, is_public=False)

    call.change(change, image_id)
    return {}


def _own_image(tx: Transaction, call: Call, image_id: str) -> Image:
    """Return an image that belongs to the project; what it may only use tells it no more."""
    image = images.find(tx, call.project_id, [image_id]).get(image_id)
    if image is None:
        raise errors.images_not_found([image_id])
    if image.project_id != call.project_id:
        raise errors.Ec2Error("AuthFailure", f"Not authorized for image:{image_id}")
    return image


def _launch_permissions(tx: Transaction, image: Image) -> dict[str, Any]:
    accounts = image_shares.of(tx, [image.image_id]).get(image.image_id, [])
    everybody = [{"Group": EVERYBODY}] if image.is_public else []
    return {"LaunchPermissions": [*everybody, *({"UserId": each} for each in accounts)]}


def _devices(tx: Transaction, image: Image) -> dict[str, Any]:
    is_disk = image.kind == MACHINE
    return {"BlockDeviceMappings": block_device_mappings(image) if is_disk else []}


_DESCRIBED: Mapping[str, Callable[[Transaction, Image], dict[str, Any]]] = {
    LAUNCH_PERMISSION: _launch_permissions,
    "blockDeviceMapping": _devices,
    "description": lambda tx, image: {"Description": {"Value": image.description}},
    "kernel": lambda tx, image: {"KernelId": {"Value": image.kernel_id}},
    "productCodes": lambda tx, image: {"ProductCodes": []},
    "ramdisk": lambda tx, image: {"RamdiskId": {"Value": image.ramdisk_id}},
}


def _wanted_permissions(params: Mapping[str, Any]) -> tuple[_Permissions, _Permissions]:
    """Return whom to let launch, and whom no longer, in whichever of EC2's two forms it is said."""
    changes = params.get("LaunchPermission", {})
    added, removed = _permissions(changes.get("Add", ())), _permissions(changes.get("Remove", ()))
    listed = [{"UserId": each} for each in params.get("UserIds", ())]
    listed += [{"Group": each} for each in params.get("UserGroups", ())]
    if not listed:
        return added, removed
    if added or removed:
        raise errors.invalid_parameter_combination("Name users and groups in one form only.")
    operation = params.get("OperationType")
    if operation is None:
        raise errors.missing_parameter("OperationType")
    found = _permissions(listed)
    return (found, _Permissions()) if operation == "add" else (_Permissions(), found)


def _permissions(items: Sequence[Mapping[str, str]]) -> _Permissions:
    accounts = [item["UserId"] for item in items if "UserId" in item]
    for account in accounts:
        if not _ACCOUNT.fullmatch(account):
            raise _bad_item(account, "userId")
    groups = [item["Group"] for item in items if "Group" in item]
    for group in groups:
        if group != EVERYBODY:
            raise _bad_item(group, "group")
    return _Permissions(accounts=tuple(dict.fromkeys(accounts)), is_everybody=bool(groups))


def _bad_item(value: str, kind: str) -> errors.Ec2Error:
    return errors.Ec2Error(
        "InvalidAMIAttributeItemValue",
        f'Invalid attribute item value "{errors.shorten(value)}" for {kind} item type.',
    )


def _wanted_description(params: Mapping[str, Any]) -> str | None:
    """Return the new description; ``None`` when none is wanted."""
    attribute = params.get("Attribute", "")
    if attribute not in ("", LAUNCH_PERMISSION, "description"):
        raise errors.unsupported_operation(f"{errors.shorten(attribute)} cannot be modified.")
    text: str | None = params.get("Description", {}).get("Value")
    if attribute == "description":
        text = params.get("Value", text)
    if text is not None and len(text) > LONGEST_DESCRIPTION:
        raise errors.invalid_parameter_value(
            "description", text, f"It is limited to {LONGEST_DESCRIPTION} characters."
        )
    return text
