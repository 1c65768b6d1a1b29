"""Instances on KVM, or on QEMU's emulation where there is no KVM, through libvirt."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from msgspec import Meta, Struct

from anynode_compute_libvirt.daemon import APT_LINE, SOCKET, ensure_daemons, stop_daemons
from appliance.errors import ConfigError
from appliance.hookspecs import PluginContext

api_versions = frozenset({1})
SYSTEM_URI = "qemu:///system"


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of this plugin."""

    uri: Annotated[str, Meta(description="libvirt's URI of this node's hypervisor")] = SYSTEM_URI
    virtualization: Annotated[
        Literal["auto", "kvm", "qemu"],
        Meta(
            description="kvm: hardware virtualization; qemu: emulation, slow but works anywhere; "
            "auto: kvm where the processor and libvirt both have it"
        ),
    ] = "auto"
    start_daemon: Annotated[
        bool,
        Meta(
            description="start libvirt's daemons when qemu:///system does not answer, "
            "at the node's start and later"
        ),
    ] = True


def create(settings: Settings, context: PluginContext) -> object:
    """Return the driver; starts libvirt's daemons when they are missing and it may.

    :raises ConfigError: libvirt, or its Python binding, is not installed.
    :raises Unavailable: the daemons were started and do not answer.
    """
    try:
        from anynode_compute_libvirt.driver import LibvirtCompute
    except ImportError as error:
        raise ConfigError(
            f"The libvirt binding of this Python cannot be imported: {error}.",
            hint=f"Install libvirt-python; it needs libvirt itself: {APT_LINE}",
        ) from error
    revive = None
    started: tuple[int, ...] = ()
    if settings.start_daemon and settings.uri == SYSTEM_URI:
        revive = partial(ensure_daemons, context.run_dir, socket_path=SOCKET)
        started = revive()
    driver = LibvirtCompute(
        uri=settings.uri,
        virtualization=settings.virtualization,
        disk_path=context.state_dir,
        revive=revive,
    )
    if started:
        # Its socket answers at once, but a first start looks at every QEMU binary: 10 s.
        driver.wait_for_libvirtd(deadline_s=60)
    return driver


def withdraw(settings: Settings, context: PluginContext) -> None:
    """End the daemons of libvirt that this plugin started.

    :raises CommandFailed: one did not end.
    """
    stop_daemons(context.run_dir)
