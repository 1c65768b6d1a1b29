"""Domain XML: golden files, libvirt's schema, and what must never be in it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt
import msgspec
import pytest
from anynode_compute_libvirt.domain import (
    NAMESPACE,
    Machine,
    digest,
    domain_name,
    domain_uuid,
    domain_xml,
    instance_of,
    read_record,
)

from appliance.errors import InputError
from appliance.model import DiskAttachment, InstanceDefinition, TapAttachment

GOLDEN = Path(__file__).with_name("golden")
DIRECTORY = "/var/lib/anynode/instances/i-0123456789abcdef0"
KERNEL_BOOT = InstanceDefinition(
    instance_id="i-0123456789abcdef0",
    epoch=3,
    name="web & <db>",
    directory=DIRECTORY,
    vcpus=1,
    memory_mib=128,
    disks=(
        DiskAttachment(
            path=f"{DIRECTORY}/disk.qcow2", format="qcow2", target="vda", serial="vol-0123"
        ),
        DiskAttachment(
            path=f"{DIRECTORY}/config.img", format="raw", target="vdb", is_read_only=True
        ),
    ),
    taps=(TapAttachment(tap="an0123456789ab", mac="06:a0:01:02:03:04", mtu=1450),),
    kernel_path="/var/lib/anynode/images/kernel.img",
    ramdisk_path="/var/lib/anynode/images/ramdisk.img",
    kernel_command_line="root=/dev/vda console=ttyS0",
)
DISK_BOOT = msgspec.structs.replace(
    KERNEL_BOOT,
    vcpus=4,
    memory_mib=8192,
    disks=(
        KERNEL_BOOT.disks[0],
        DiskAttachment(path=f"{DIRECTORY}/seed.iso", format="raw", target="hda", device="cdrom"),
    ),
    taps=(
        *KERNEL_BOOT.taps,
        TapAttachment(tap="an0123456789ac", mac="06:a0:01:02:03:05"),
    ),
    kernel_path="",
    ramdisk_path="",
    kernel_command_line="",
)
CASES = {
    "kernel-boot-emulated": (KERNEL_BOOT, Machine(is_kvm=False, owner=(64055, 108))),
    "disk-boot-kvm": (DISK_BOOT, Machine(is_kvm=True, owner=(64055, 108))),
    "no-disk-no-card": (
        msgspec.structs.replace(KERNEL_BOOT, name="", disks=(), taps=(), ramdisk_path=""),
        Machine(is_kvm=False),
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Return a golden file's name and what is made now."""
    return request.param, domain_xml(*CASES[request.param])


@pytest.fixture(scope="module")
def simulated() -> Iterator[Any]:
    """Return libvirt's own simulated hypervisor; nothing outside this process is touched."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    live = libvirt.open("test:///default")
    yield live
    live.close()


def test_xml_is_as_agreed(case: tuple[str, str], is_regenerating: bool) -> None:
    path = GOLDEN / f"{case[0]}.xml"
    if is_regenerating:
        path.write_text(case[1])
    assert case[1] == path.read_text()


def test_xml_fits_the_schema_and_is_read_back_as_meant(
    case: tuple[str, str], simulated: Any
) -> None:
    definition = CASES[case[0]][0]
    # The simulated hypervisor takes one type of domain only.
    xml = re.sub('type="(kvm|qemu)"', 'type="test"', case[1], count=1)
    domain = simulated.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    try:
        metadata = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE)
        assert read_record(metadata) == (definition.instance_id, 3, digest(definition))
        assert instance_of(domain.name(), domain.UUIDString()) == definition.instance_id
        assert domain.maxMemory() == definition.memory_mib << 10
        back = ElementTree.fromstring(domain.XMLDesc())
        formats = [disk.get("type") for disk in back.iterfind("./devices/disk/driver")]
        assert formats == [disk.format for disk in definition.disks]
        assert not back.findall("./devices/graphics")
    finally:
        domain.undefine()


def test_every_disk_names_its_format(case: tuple[str, str]) -> None:
    disks = ElementTree.fromstring(case[1]).findall("./devices/disk")
    assert all(disk.find("driver[@name='qemu'][@type]") is not None for disk in disks)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "vmdk"},
        {"format": ""},
        {"target": "xvda"},
        {"device": "cdrom"},
        {"path": "/a\0b"},
        {"serial": "a\nb"},
    ],
)
def test_impossible_disks_are_refused(change: dict[str, str]) -> None:
    disk = msgspec.structs.replace(KERNEL_BOOT.disks[0], **change)
    with pytest.raises(InputError):
        domain_xml(msgspec.structs.replace(KERNEL_BOOT, disks=(disk,)), Machine(is_kvm=False))


def test_markup_in_values_stays_text() -> None:
    line = 'x="</cmdline><kernel>/etc/shadow</kernel>'
    definition = msgspec.structs.replace(KERNEL_BOOT, kernel_command_line=line)
    system = ElementTree.fromstring(domain_xml(definition, Machine(is_kvm=False))).find("os")
    assert system is not None
    assert system.findtext("cmdline") == line
    assert [kernel.text for kernel in system.findall("kernel")] == [definition.kernel_path]


def test_digest_follows_every_field_and_no_other() -> None:
    again = msgspec.json.decode(msgspec.json.encode(KERNEL_BOOT), type=InstanceDefinition)
    assert digest(again) == digest(KERNEL_BOOT)
    assert digest(msgspec.structs.replace(KERNEL_BOOT, epoch=4)) != digest(KERNEL_BOOT)


def test_a_stranger_with_a_similar_name_is_none_of_ours() -> None:
    ours, other = "i-0123456789abcdef0", "i-0123456789abcdef1"
    assert instance_of(domain_name(ours), str(domain_uuid(ours))) == ours
    assert instance_of(domain_name(ours), str(domain_uuid(other))) is None
    assert instance_of(ours, str(domain_uuid(ours))) is None


@pytest.mark.parametrize("text", ["", "<", "<instance/>", "<other id='i' epoch='1' made=''/>"])
def test_damaged_records_are_errors(text: str) -> None:
    with pytest.raises(ValueError):
        read_record(text)
