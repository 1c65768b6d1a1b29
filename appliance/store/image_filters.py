"""What images can be filtered by: every name that EC2 documents, as SQL.

What images cannot have here has the answer that is true: nothing matches.
"""

from __future__ import annotations

from sqlalchemy import String, case, cast, literal

from appliance.store import filters
from appliance.store.schema import images

MACHINE = "machine"
OPERATORS_ALIAS = "amazon"
"""What clients look for when they want the images of who runs the cloud."""

_GIB = 1 << 30
_is_machine = images.c.kind == MACHINE
_volume_gib = case(
    (images.c.virtual_size_bytes <= _GIB, 1),
    else_=((images.c.virtual_size_bytes + (_GIB - 1)) // _GIB),
)


def _of_disk(value: str) -> filters.Rule:
    """Return the rule for a property that is the same for all disks; only machines have one."""
    return filters.text(case((_is_machine, value)))


def rules(operator_id: str) -> dict[str, filters.Rule]:
    """Return all filters of images; ``operator_id`` is whose images have the alias."""
    is_operators = images.c.project_id == operator_id
    absent = (
        "block-device-mapping.snapshot-id",
        "boot-mode",
        "image-allowed",
        "image-watermark.source-image-creation-time",
        "image-watermark.source-image-id",
        "image-watermark.source-image-region",
        "image-watermark.watermark-creation-time",
        "image-watermark.watermark-key",
        "instance-type-specification.supported-instance-type",
        "instance-type-specification.unsupported-instance-type",
        "platform",
        "product-code",
        "product-code.type",
        "public-ssm-parameter-name",
        "scan-result.critical-fix-available-since",
        "scan-result.finding-scan-date",
        "scan-result.high-fix-available-since",
        "scan-result.highest-finding-severity-label",
        "scan-result.informational-fix-available-since",
        "scan-result.low-fix-available-since",
        "scan-result.medium-fix-available-since",
        "source-image-id",
        "source-image-region",
        "source-instance-id",
        "sriov-net-support",
    )
    return {
        **dict.fromkeys(absent, filters.nothing),
        "architecture": filters.constant("x86_64"),
        "block-device-mapping.delete-on-termination": _of_disk("true"),
        "block-device-mapping.device-name": filters.text(
            case((_is_machine, images.c.root_device_name))
        ),
        "block-device-mapping.encrypted": _of_disk("false"),
        "block-device-mapping.volume-size": filters.text(
            case((_is_machine, cast(_volume_gib, String)))
        ),
        "block-device-mapping.volume-type": _of_disk("standard"),
        "creation-date": filters.moment(images.c.created_at),
        "description": filters.text(images.c.description),
        "ena-support": filters.constant("false"),
        "free-tier-eligible": filters.constant("false"),
        "hypervisor": filters.constant("xen"),
        "image-id": filters.text(images.c.id),
        "image-type": filters.text(images.c.kind),
        "is-public": filters.flag(images.c.is_public),
        "kernel-id": filters.text(images.c.kernel_id),
        "manifest-location": filters.text(images.c.project_id + "/" + images.c.name),
        "name": filters.text(images.c.name),
        "owner-alias": filters.text(case((is_operators, OPERATORS_ALIAS))),
        "owner-id": filters.text(images.c.project_id),
        "ramdisk-id": filters.text(images.c.ramdisk_id),
        "root-device-name": filters.text(case((_is_machine, images.c.root_device_name))),
        "root-device-type": filters.text(case((_is_machine, "ebs"), else_="instance-store")),
        "state": filters.text(images.c.state),
        "state-reason-code": filters.text(
            case((images.c.state_reason != "", literal("Server.InternalError")))
        ),
        "state-reason-message": filters.text(images.c.state_reason),
        "virtualization-type": filters.constant("hvm"),
    }


FILTERS = frozenset(rules(""))
"""What images can be filtered by, tags aside."""
