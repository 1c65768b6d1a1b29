"""Hop 6: the steps of a launch, each with its undo; and those of a stop and a removal.

Every step is safe to repeat, so that a launch that a crash cut off is taken up from the top.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from appliance.compute.attic import set_aside
from appliance.compute.subject import Subject
from appliance.errors import Conflict, Unavailable
from appliance.images.disk import create_overlay
from appliance.messages import (
    AttachPort,
    Bind,
    Bound,
    DetachPort,
    Done,
    GuardPort,
    PortAttached,
    RaisePort,
    UnguardPort,
)
from appliance.model import (
    DiskAttachment,
    ImageRef,
    InjectionRequest,
    InstanceDefinition,
    InstanceSpec,
    TapAttachment,
)
from appliance.steps import Step

GIB = 1 << 30
_POLL_S = 0.5

ALL_PORTS = ""
"""Stands for the ports that the datapath knows: after a lost journal it alone does."""


def bind(subject: Subject) -> str:
    """Ask the network role whether the launch is still wanted, and with which addresses."""
    question = Bind(
        instance_id=subject.instance_id,
        epoch=subject.held.epoch,
        node_id=subject.parts.node_id,
        request_id=subject.held.request_id,
    )
    deadline_s = subject.parts.config.bus.call_deadline_s
    bound = subject.parts.bus.call("network", question, Bound, deadline_s)
    subject.save(msgspec.structs.replace(subject.held, binding=bound.binding))
    subject.grants = {grant.sha256: grant for grant in bound.images}
    return ", ".join(address for port in bound.binding.ports for address in port.addresses)


def images_of(spec: InstanceSpec) -> list[ImageRef]:
    """Return the images that an instance boots from."""
    return list(_images_by_use(spec).values())


def _images_by_use(spec: InstanceSpec) -> dict[str, ImageRef]:
    """Return the images of an instance by its device, or by what they are to the boot."""
    wanted = {device.device_name: device.image for device in spec.block_devices}
    boot = {"kernel": spec.kernel, "ramdisk": spec.ramdisk}
    return wanted | {name: image for name, image in boot.items() if image is not None}


def fetch_images(subject: Subject) -> str:
    """Have all images of the instance on this node, verified."""
    wanted = _images_by_use(subject.spec)
    for name, image in wanted.items():
        subject.check_wanted()
        path = subject.drivers.images.fetch(
            image,
            subject.image_sources(image.sha256),
            used=subject.drivers.images_in_use,
            progress=subject.progress,
        )
        subject.boot_files[name] = str(path)
    return f"{sum(image.size_bytes for image in wanted.values()) / (1 << 20):.1f} MiB"


def attach_ports(subject: Subject) -> str:
    """Make the taps, links down."""
    networks = {network.network_id: network for network in subject.binding.networks}
    for port in subject.binding.ports:
        question = AttachPort(
            instance_id=subject.instance_id,
            network=networks[port.network_id],
            port=port,
            metadata=subject.binding.metadata,
            block_devices=subject.spec.block_devices,
        )
        attached = subject.ask_datapath(question, PortAttached)
        subject.taps[port.port_id] = attached.port.tap
    return ", ".join(subject.taps.values())


def detach_ports(subject: Subject) -> None:
    """Remove the taps."""
    for port_id in (*subject.port_ids(), ALL_PORTS):
        question = DetachPort(instance_id=subject.instance_id, port_id=port_id)
        subject.ask_datapath(question, Done)


def apply_firewall(subject: Subject) -> str:
    """Put the rules of all ports in force."""
    details = []
    for port_id in subject.port_ids():
        question = GuardPort(instance_id=subject.instance_id, port_id=port_id)
        details.append(subject.ask_datapath(question, Done).detail)
    return ", ".join(details)


def clear_firewall(subject: Subject) -> None:
    """Remove the rules of all ports."""
    for port_id in (*subject.port_ids(), ALL_PORTS):
        question = UnguardPort(instance_id=subject.instance_id, port_id=port_id)
        subject.ask_datapath(question, Done)


def create_disks(subject: Subject) -> str:
    """Make the disks that are not there yet: overlays on the images."""
    try:
        subject.directory.mkdir(mode=0o711, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"Could not make {subject.directory}: {error.strerror}.") from error
    made = []
    subject.disks = []
    for index, device in enumerate(subject.spec.block_devices):
        path = subject.directory / f"disk-{index}.qcow2"
        if subject.held.is_kept and not path.exists():
            raise Conflict(
                f"The disk {path} of the instance is not there, and a fresh one would hide that.",
                hint="Put it back, or terminate the instance.",
            )
        size = device.disk_gib * GIB if device.disk_gib else None
        base = Path(subject.boot_files[device.device_name])
        made.append(create_overlay(path, base, device.image.format, size))
        target = device.device_name.removeprefix("/dev/")
        subject.disks.append(DiskAttachment(path=str(path), format="qcow2", target=target))
    return ", ".join(f"{size / GIB:.2f} GiB" for size in made)


def delete_files(subject: Subject) -> None:
    """Delete the instance's folder, unless its disk holds an owner's data."""
    if not subject.held.is_kept:
        remove_files(subject)


def inject(subject: Subject) -> str:
    """Give the instance its key, network configuration and user data."""
    request = InjectionRequest(
        instance_id=subject.instance_id,
        directory=str(subject.directory),
        root_disk=subject.disks[0],
        metadata=subject.binding.metadata,
        networks=subject.binding.networks,
        ports=subject.binding.ports,
        image_properties=subject.spec.image_properties,
    )
    result = subject.drivers.injection(subject.spec.injection).inject(request)
    subject.injected = list(result.disks)
    return result.summary


def remove_injection(subject: Subject) -> None:
    """Remove what the injection put beside the disk."""
    name = subject.held.spec.injection if subject.held.spec else ""
    subject.drivers.injection(name).remove(str(subject.directory))


def define(subject: Subject) -> str:
    """Make the instance known to the hypervisor."""
    networks = {network.network_id: network for network in subject.binding.networks}
    spec = subject.spec
    subject.drivers.compute.define(
        InstanceDefinition(
            instance_id=subject.instance_id,
            epoch=subject.held.epoch,
            name=subject.instance_id,
            directory=str(subject.directory),
            vcpus=spec.vcpus,
            memory_mib=spec.memory_mib,
            disks=(*subject.disks, *subject.injected),
            taps=tuple(
                TapAttachment(
                    tap=subject.taps[port.port_id],
                    mac=port.mac,
                    mtu=networks[port.network_id].mtu,
                )
                for port in subject.binding.ports
            ),
            kernel_path=subject.boot_files.get("kernel", ""),
            ramdisk_path=subject.boot_files.get("ramdisk", ""),
            kernel_command_line=spec.kernel_command_line,
        )
    )
    return f"{spec.vcpus} vcpus, {spec.memory_mib} MiB"


def forget(subject: Subject) -> None:
    """Power off and make the hypervisor forget the instance."""
    subject.drivers.compute.remove(subject.instance_id)


def start(subject: Subject) -> str:
    """Let frames pass, and start the instance."""
    for port_id in subject.port_ids():
        question = RaisePort(instance_id=subject.instance_id, port_id=port_id)
        subject.ask_datapath(question, Done)
    subject.drivers.compute.start(subject.instance_id)
    return ""


def power_off(subject: Subject) -> None:
    """Take the power away."""
    subject.drivers.compute.power_off(subject.instance_id)


def shut_down(subject: Subject) -> str:
    """Ask the instance to shut down, and take the power away when it does not."""
    clock = subject.parts.world.clock
    if not subject.held.is_forced and _is_running(subject):
        until = clock.monotonic() + subject.parts.config.compute.shutdown_s
        subject.drivers.compute.shut_down(subject.instance_id)
        while clock.monotonic() < until:
            subject.check_wanted()
            if subject.parts.work.is_stopping:
                raise Unavailable("The node stops; it waits for the instance when it is up again.")
            if not _is_running(subject):
                return "it shut down"
            clock.sleep(_POLL_S)
    power_off(subject)
    return "the power was taken away"


def _is_running(subject: Subject) -> bool:
    return subject.drivers.runs(subject.instance_id)


def remove_files(subject: Subject) -> None:
    """Delete the instance's folder; a disk whose end nobody has asked for is set aside."""
    if subject.held.sets_aside and subject.held.is_kept:
        set_aside(subject.parts.state_dir, subject.directory)
        return
    try:
        shutil.rmtree(subject.directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Unavailable(f"Could not delete {subject.directory}: {error.strerror}.") from error


LAUNCH: tuple[Step[Subject], ...] = (
    Step(
        name="bind",
        do=bind,
        no_undo="The controller frees placement and addresses when it hears that it failed.",
    ),
    Step(
        name="fetch-images",
        do=fetch_images,
        no_undo="Other launches use the copies; the cache bounds itself.",
    ),
    Step(name="attach-ports", do=attach_ports, undo=detach_ports),
    Step(name="apply-firewall", do=apply_firewall, undo=clear_firewall),
    Step(name="create-disks", do=create_disks, undo=delete_files),
    Step(name="inject", do=inject, undo=remove_injection),
    Step(name="define", do=define, undo=forget),
    Step(name="start", do=start, undo=power_off),
)
"""From an order to a running instance."""

_FORWARD = "It only goes forward: it is repeated until it succeeds."

REJOIN: tuple[Step[Subject], ...] = (
    Step(name="bind", do=bind, no_undo=_FORWARD),
    Step(name="attach-ports", do=attach_ports, no_undo=_FORWARD),
    Step(name="apply-firewall", do=apply_firewall, no_undo=_FORWARD),
    Step(name="start", do=start, no_undo=_FORWARD),
)
"""From an instance that runs, of which the node has forgotten something, to one that it knows."""

STOP: tuple[Step[Subject], ...] = (
    Step(name="shut-down", do=shut_down, no_undo=_FORWARD),
    Step(name="detach-ports", do=detach_ports, no_undo=_FORWARD),
    Step(name="clear-firewall", do=clear_firewall, no_undo=_FORWARD),
)
"""From a running instance to one that has only its disk."""

REMOVAL: tuple[Step[Subject], ...] = (
    Step(name="forget", do=forget, no_undo=_FORWARD),
    Step(name="detach-ports", do=detach_ports, no_undo=_FORWARD),
    Step(name="clear-firewall", do=clear_firewall, no_undo=_FORWARD),
    Step(name="remove-files", do=remove_files, no_undo=_FORWARD),
)
"""From whatever there is to nothing; rules go last, when no frame can pass any more."""
