"""Domain XML from an instance definition, and back: pure, no libvirt calls.

The XML is built as a tree, so that no value can become markup, and every disk names its format,
so that nothing ever guesses it from bytes that the instance wrote.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from typing import NamedTuple
from xml.etree import ElementTree

import msgspec

from appliance.errors import InputError
from appliance.model import DiskAttachment, InstanceDefinition, TapAttachment

NAMESPACE = "urn:anynode:compute:1"
"""Of our element in a domain's metadata; the same in every release, or instances get lost."""

_PREFIX = "anynode-"
_UUIDS = uuid.UUID("5f1c3c9e-0f0b-5d0e-9a3b-6d2f6a1c7e11")
_DISK_FORMATS = frozenset({"qcow2", "raw"})
_BUSES = {"vd": "virtio", "hd": "ide", "sd": "sata"}
_TCG_CACHE_MIB = 128
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")

ElementTree.register_namespace("anynode", NAMESPACE)


class OwnRecord(NamedTuple):
    """What a domain's metadata say about the instance that it is."""

    instance_id: str
    epoch: int
    digest: str


class Machine(NamedTuple):
    """What the hypervisor of a node decides about every domain.

    ``is_kvm`` is false for emulation. ``owner`` is the user and group, as numbers, that QEMU runs
    as and that own an instance's files; ``None`` leaves ownership to libvirt.
    """

    is_kvm: bool
    owner: tuple[int, int] | None = None


def domain_name(instance_id: str) -> str:
    """Return the domain's name; it is also the name of QEMU's log and pid file."""
    return _PREFIX + instance_id


def domain_uuid(instance_id: str) -> uuid.UUID:
    """Return the domain's UUID, always the same for an instance."""
    return uuid.uuid5(_UUIDS, instance_id)


def instance_of(name: str, uuid_text: str) -> str | None:
    """Return the instance that a domain of this name and UUID is; ``None`` for a stranger's."""
    instance_id = name.removeprefix(_PREFIX)
    is_ours = name.startswith(_PREFIX) and uuid_text == str(domain_uuid(instance_id))
    return instance_id if is_ours else None


def digest(definition: InstanceDefinition) -> str:
    """Return a fingerprint by which a definition is known to be the one a domain was made of.

    Fields that have their default do not count, so that it outlives new fields in the model.

    :raises InputError: the definition holds text that is no Unicode.
    """
    try:
        encoded = msgspec.json.encode(definition, order="sorted")
    except UnicodeEncodeError as error:
        raise InputError(
            f"The definition of {definition.instance_id} holds text that is no Unicode."
        ) from error
    return hashlib.sha256(encoded).hexdigest()


def read_record(metadata_xml: str) -> OwnRecord:
    """Return what our metadata element says.

    :raises ValueError: it is not our element, or is damaged.
    """
    try:
        # libvirt parsed it before, and nothing in it is a user's.
        element = ElementTree.fromstring(metadata_xml)  # noqa: S314
        if element.tag.rpartition("}")[2] != "instance":
            raise ValueError(f"unexpected element {element.tag!r}")
        return OwnRecord(element.attrib["id"], int(element.attrib["epoch"]), element.attrib["made"])
    except (ElementTree.ParseError, KeyError) as error:
        raise ValueError(f"damaged metadata: {error}") from error


def domain_xml(definition: InstanceDefinition, machine: Machine) -> str:
    """Return the XML of the domain that an instance is.

    :raises InputError: a disk has a format or target that no disk can have, or a text holds
        control characters, which XML cannot carry.
    """
    domain = ElementTree.Element("domain", type="kvm" if machine.is_kvm else "qemu")
    _text(domain, "name", domain_name(definition.instance_id))
    _text(domain, "uuid", str(domain_uuid(definition.instance_id)))
    _text(domain, "title", "".join(filter(str.isprintable, definition.name)))
    _add_record(domain, definition)
    _text(domain, "memory", str(definition.memory_mib), unit="MiB")
    _text(domain, "vcpu", str(definition.vcpus))
    _add_boot(domain, definition)
    _add_processor(domain, machine)
    _text(domain, "on_poweroff", "destroy")
    _text(domain, "on_reboot", "restart")
    _text(domain, "on_crash", "destroy")
    _add_devices(domain, definition)
    if machine.owner:
        label = ElementTree.SubElement(domain, "seclabel", type="static", model="dac", relabel="no")
        _text(label, "label", "+{}:+{}".format(*machine.owner))
    _check_characters(domain)
    ElementTree.indent(domain)
    return ElementTree.tostring(domain, encoding="unicode") + "\n"


def _check_characters(domain: ElementTree.Element) -> None:
    for element in domain.iter():
        for text in (element.text or "", *element.attrib.values()):
            if _UNWRITABLE.search(text):
                raise InputError(f"Control characters are not allowed in {element.tag}: {text!r}.")


def _text(parent: ElementTree.Element, tag: str, text: str, **attributes: str) -> None:
    if text:
        ElementTree.SubElement(parent, tag, attributes).text = text


def _add_record(domain: ElementTree.Element, definition: InstanceDefinition) -> None:
    metadata = ElementTree.SubElement(domain, "metadata")
    ElementTree.SubElement(
        metadata,
        f"{{{NAMESPACE}}}instance",
        id=definition.instance_id,
        epoch=str(definition.epoch),
        made=digest(definition),
    )


def _add_boot(domain: ElementTree.Element, definition: InstanceDefinition) -> None:
    system = ElementTree.SubElement(domain, "os")
    _text(system, "type", "hvm", arch="x86_64", machine="pc")
    if definition.kernel_path:
        _text(system, "kernel", definition.kernel_path)
        _text(system, "initrd", definition.ramdisk_path)
        _text(system, "cmdline", definition.kernel_command_line)
    else:
        ElementTree.SubElement(system, "boot", dev="hd")


def _add_processor(domain: ElementTree.Element, machine: Machine) -> None:
    features = ElementTree.SubElement(domain, "features")
    ElementTree.SubElement(features, "acpi")
    ElementTree.SubElement(features, "apic")
    if machine.is_kvm:
        ElementTree.SubElement(domain, "cpu", mode="host-passthrough")
    else:
        # The oldest processor that today's systems ask for (x86-64-v2). Booting takes 4 % longer
        # than with QEMU's default, and with all that can be emulated 17 %.
        processor = ElementTree.SubElement(domain, "cpu", mode="custom", check="none")
        _text(processor, "model", "Nehalem", fallback="allow")
        # QEMU would take up to 1 GiB of the node's memory for translated code per instance.
        cache = ElementTree.SubElement(features, "tcg")
        _text(cache, "tb-cache", str(_TCG_CACHE_MIB), unit="MiB")
    clock = ElementTree.SubElement(domain, "clock", offset="utc")
    ElementTree.SubElement(clock, "timer", name="rtc", tickpolicy="catchup")
    ElementTree.SubElement(clock, "timer", name="pit", tickpolicy="delay")
    ElementTree.SubElement(clock, "timer", name="hpet", present="no")


def _add_devices(domain: ElementTree.Element, definition: InstanceDefinition) -> None:
    devices = ElementTree.SubElement(domain, "devices")
    for disk in definition.disks:
        _add_disk(devices, disk)
    ElementTree.SubElement(devices, "controller", type="usb", model="none")
    for tap in definition.taps:
        _add_card(devices, tap)
    _add_serial(devices, f"{definition.directory}/console.log")
    ElementTree.SubElement(devices, "memballoon", model="virtio")
    random = ElementTree.SubElement(devices, "rng", model="virtio")
    _text(random, "backend", "/dev/urandom", model="random")
    ElementTree.SubElement(devices, "panic", model="isa")


def _add_disk(devices: ElementTree.Element, disk: DiskAttachment) -> None:
    bus = _BUSES.get(disk.target[:2])
    if disk.format not in _DISK_FORMATS or bus is None:
        raise InputError(
            f"Disk {disk.path} has format {disk.format!r} and target {disk.target!r}; "
            f"formats are {', '.join(sorted(_DISK_FORMATS))}, targets begin with "
            f"{', '.join(_BUSES)}."
        )
    if disk.device == "cdrom" and bus == "virtio":
        raise InputError(f"A CD-ROM cannot be {disk.target!r}: virtio has none.")
    element = ElementTree.SubElement(devices, "disk", type="file", device=disk.device)
    ElementTree.SubElement(element, "driver", name="qemu", type=disk.format)
    ElementTree.SubElement(element, "source", file=disk.path)
    ElementTree.SubElement(element, "target", dev=disk.target, bus=bus)
    if disk.is_read_only or disk.device == "cdrom":
        ElementTree.SubElement(element, "readonly")
    _text(element, "serial", disk.serial)


def _add_card(devices: ElementTree.Element, tap: TapAttachment) -> None:
    card = ElementTree.SubElement(devices, "interface", type="ethernet")
    ElementTree.SubElement(card, "mac", address=tap.mac)
    ElementTree.SubElement(card, "target", dev=tap.tap, managed="no")
    ElementTree.SubElement(card, "model", type="virtio")
    ElementTree.SubElement(card, "mtu", size=str(tap.mtu))
    # The network boot ROM would be loaded and run by the firmware at every start.
    ElementTree.SubElement(card, "rom", enabled="no")


def _add_serial(devices: ElementTree.Element, log_path: str) -> None:
    serial = ElementTree.SubElement(devices, "serial", type="pty")
    ElementTree.SubElement(serial, "log", file=log_path, append="on")
    ElementTree.SubElement(serial, "target", port="0")
    console = ElementTree.SubElement(devices, "console", type="pty")
    ElementTree.SubElement(console, "target", type="serial", port="0")
