"""What the tests of this plugin share."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from anynode_compute_libvirt.driver import LibvirtCompute

from appliance.hooks import Compute
from appliance.model import DiskAttachment, InstanceDefinition
from tests.rig import ROOT, Rig

DEMO_IMAGE = Path("/var/cache/anynode/demo-image")


@pytest.fixture(scope="session")
def image(libvirt_rig: Rig) -> Path:
    """Return a directory with the demo image where QEMU's user can read it."""
    if not (DEMO_IMAGE / "root.qcow2").exists():
        subprocess.run([sys.executable, ROOT / "image/demo/build.py"], check=True)
    own = libvirt_rig.directory / "image"
    own.mkdir()
    for name in ("vmlinuz", "initrd.img", "root.qcow2"):
        shutil.copyfile(DEMO_IMAGE / name, own / name)
    return own


@pytest.fixture(scope="session")
def compute(libvirt_rig: Rig) -> Compute:
    """Return the driver of the rig's libvirtd, from outside the rig."""
    return Compute(
        "libvirt",
        LibvirtCompute(
            uri=libvirt_rig.libvirt_uri,
            virtualization="auto",
            disk_path=libvirt_rig.directory,
        ),
    )


@pytest.fixture
def bootable(
    libvirt_rig: Rig, image: Path, request: pytest.FixtureRequest
) -> Callable[[str, int], InstanceDefinition]:
    """Return a maker of definitions with a disk of the demo image, without cards."""

    def make(instance_id: str, epoch: int) -> InstanceDefinition:
        directory = libvirt_rig.directory / "instances" / instance_id
        disk = directory / "disk.qcow2"
        if not directory.exists():
            directory.parent.mkdir(mode=0o711, exist_ok=True)
            directory.mkdir(mode=0o711)
            request.addfinalizer(lambda: shutil.rmtree(directory))
            subprocess.run(
                [
                    *("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2"),
                    *("-b", image / "root.qcow2", disk),
                ],
                check=True,
            )
        return InstanceDefinition(
            instance_id=instance_id,
            epoch=epoch,
            name="contract",
            directory=str(directory),
            vcpus=1,
            memory_mib=128,
            disks=(DiskAttachment(path=str(disk), format="qcow2", target="vda"),),
            taps=(),
            kernel_path=str(image / "vmlinuz"),
            ramdisk_path=str(image / "initrd.img"),
            kernel_command_line="root=/dev/vda console=ttyS0 no_timer_check",
        )

    return make
