"""DescribeImages: the filters of what images have, and of what they cannot have here."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.store import images
from tests.api.ec2.examples.networks import where
from tests.api.ec2.examples.stage import Stage
from tests.api.front import GIB


@pytest.fixture(scope="module")
def made(stage: Stage) -> dict[str, str]:
    """Return a machine image of 3 GiB that failed, and a kernel, both of the project."""
    own = {"project_id": stage.project_id, "is_public": False}
    machine = stage.front.make_image(
        name="mine",
        description="a [web] server",
        virtual_size_bytes=2 * GIB + 1,
        root_device_name="/dev/sda1",
        **own,
    )
    stage.front.change(lambda tx: images.set_state(tx, machine.image_id, "failed", "it is torn"))
    kernel = stage.front.make_image(name="vmlinuz", kind=images.KERNEL, format="raw", **own)
    return {"machine": machine.image_id, "kernel": kernel.image_id, "": stage.front.image.image_id}


@pytest.mark.parametrize(
    ("filters", "fitting"),
    [
        ({"architecture": "x86_64"}, ["", "kernel", "machine"]),
        ({"architecture": "arm64"}, []),
        ({"block-device-mapping.delete-on-termination": "true"}, ["", "machine"]),
        ({"block-device-mapping.device-name": "/dev/sda1"}, ["machine"]),
        ({"block-device-mapping.encrypted": "false"}, ["", "machine"]),
        ({"block-device-mapping.volume-size": "3"}, ["machine"]),
        ({"block-device-mapping.volume-size": "1"}, [""]),
        ({"block-device-mapping.volume-type": "standard"}, ["", "machine"]),
        ({"creation-date": "20*"}, ["", "kernel", "machine"]),
        ({"creation-date": "*T??:??:??.???Z"}, ["", "kernel", "machine"]),
        ({"creation-date": "1999-*"}, []),
        ({"creation-date": ["20", "*z", ""]}, []),
        ({"description": "a [web]*"}, ["machine"]),
        ({"ena-support": "false"}, ["", "kernel", "machine"]),
        ({"image-type": ["kernel", "ramdisk"]}, ["kernel"]),
        ({"is-public": "true"}, [""]),
        ({"is-public": "false"}, ["kernel", "machine"]),
        ({"is-public": "perhaps"}, []),
        ({"manifest-location": "*/mine"}, ["machine"]),
        ({"name": "M*"}, []),
        ({"name": "m*", "state": "failed"}, ["machine"]),
        ({"owner-alias": "amazon"}, [""]),
        ({"owner-alias": "*"}, [""]),
        ({"platform": "windows"}, []),
        ({"product-code": "*"}, []),
        ({"root-device-name": "/dev/vda"}, [""]),
        ({"root-device-type": "instance-store"}, ["kernel"]),
        ({"root-device-type": "ebs"}, ["", "machine"]),
        ({"source-instance-id": "*"}, []),
        ({"state-reason-code": "*"}, ["machine"]),
        ({"state-reason-message": "*torn"}, ["machine"]),
        ({"virtualization-type": "paravirtual"}, []),
    ],
)
def test_filters(
    stage: Stage, made: dict[str, str], filters: dict[str, Any], fitting: list[str]
) -> None:
    found = stage.ask("DescribeImages", Filters=where(**filters))["Images"]
    assert {image["ImageId"] for image in found} == {made[name] for name in fitting}
