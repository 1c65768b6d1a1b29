"""The compute driver: hooks in terms of instances, libvirt in terms of domains."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import libvirt

from anynode_compute_libvirt.access import check_reachable, hand_over, qemu_owner
from anynode_compute_libvirt.connection import Connection
from anynode_compute_libvirt.console import read_console
from anynode_compute_libvirt.domain import (
    NAMESPACE,
    Machine,
    OwnRecord,
    digest,
    domain_name,
    domain_uuid,
    domain_xml,
    instance_of,
    read_record,
)
from anynode_compute_libvirt.power import PowerWatch, power_of_event, power_of_state
from appliance.errors import CommandFailed, Conflict, NotFound, Unavailable
from appliance.hookspecs import hookimpl
from appliance.model import (
    ConsoleOutput,
    InstanceDefinition,
    InstanceFact,
    NodeCapacity,
    PowerEvent,
    PowerState,
)

log = logging.getLogger(__name__)

_UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)
_SETTLING_S = 15
_ACTIVE = frozenset(
    {
        libvirt.VIR_DOMAIN_RUNNING,
        libvirt.VIR_DOMAIN_BLOCKED,
        libvirt.VIR_DOMAIN_PAUSED,
        libvirt.VIR_DOMAIN_SHUTDOWN,
        libvirt.VIR_DOMAIN_PMSUSPENDED,
    }
)


def has_virtualization_flags(cpuinfo: str) -> bool:
    """Say whether the processor offers what KVM needs, from the text of ``/proc/cpuinfo``.

    ``/dev/kvm`` alone proves nothing: it exists where ordinary systems do not boot with it.
    """
    return re.search(r"^flags\s*:.*\b(vmx|svm)\b", cpuinfo, re.MULTILINE) is not None


class LibvirtCompute:
    """Instances as domains of one libvirtd; safe to use from several threads."""

    def __init__(
        self,
        *,
        uri: str,
        virtualization: str,
        disk_path: Path,
        revive: Callable[[], object] | None = None,
    ) -> None:
        self._virtualization = virtualization
        self._disk_path = disk_path
        self._machine = Machine(is_kvm=False)
        self._hypervisor = ""
        self._watch = PowerWatch()
        self._connection = Connection(
            uri, on_open=self._opened, on_event=self._event, revive=revive
        )
        self._outage = threading.Event()
        self._opened_at = 0.0

    @hookimpl
    def compute_define(self, definition: InstanceDefinition) -> None:
        instance_id = definition.instance_id

        def define(live: Any) -> None:
            domain = _find(live, instance_id)
            if domain is not None and domain.isActive():
                if _record(domain).digest == digest(definition):
                    return
                raise Conflict(
                    f"Instance {instance_id} runs with another definition.",
                    hint="Power it off first.",
                )
            machine = self._machine
            if machine.owner:
                hand_over(definition, machine.owner)
                check_reachable(definition, machine.owner)
            try:
                live.defineXML(domain_xml(definition, machine))
            except libvirt.libvirtError as error:
                self._explain_kvm(error, f"define instance {instance_id}")
                raise
            self._watch.note(instance_id, PowerState.SHUT_OFF)

        self._connection.call(f"define instance {instance_id}", define, deadline_s=30)

    @hookimpl
    def compute_start(self, instance_id: str) -> None:
        def start(live: Any) -> None:
            domain = _known(live, instance_id)
            state = domain.state()[0]
            if state == libvirt.VIR_DOMAIN_PAUSED:
                domain.resume()
            elif state not in _ACTIVE:
                try:
                    domain.create()
                except libvirt.libvirtError as error:
                    # Another thread, or an earlier try, may have been first.
                    if domain.isActive():
                        return
                    self._explain_kvm(error, f"start instance {instance_id}")
                    raise

        self._connection.call(f"start instance {instance_id}", start, deadline_s=60)

    @hookimpl
    def compute_shut_down(self, instance_id: str) -> None:
        def shut_down(live: Any) -> None:
            domain = _known(live, instance_id)
            if domain.isActive():
                domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)

        self._connection.call(f"shut down instance {instance_id}", shut_down, deadline_s=10)

    @hookimpl
    def compute_power_off(self, instance_id: str) -> None:
        def power_off(live: Any) -> None:
            domain = _find(live, instance_id)
            if domain is not None:
                _destroy(domain)

        self._connection.call(f"power off instance {instance_id}", power_off, deadline_s=60)

    @hookimpl
    def compute_reboot(self, instance_id: str, is_forced: bool) -> None:
        def reboot(live: Any) -> None:
            domain = _known(live, instance_id)
            if not domain.isActive():
                raise Conflict(f"Could not reboot instance {instance_id}: it is not running.")
            if is_forced:
                domain.reset()
            else:
                domain.reboot(libvirt.VIR_DOMAIN_REBOOT_ACPI_POWER_BTN)

        self._connection.call(f"reboot instance {instance_id}", reboot, deadline_s=10)

    @hookimpl
    def compute_remove(self, instance_id: str) -> None:
        def remove(live: Any) -> None:
            domain = _find(live, instance_id)
            if domain is None:
                return
            _destroy(domain)
            try:
                domain.undefineFlags(_UNDEFINE)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise

        self._connection.call(f"remove instance {instance_id}", remove, deadline_s=60)

    @hookimpl
    def compute_list(self) -> Sequence[InstanceFact]:
        return self._connection.call("list the instances", self._compared_facts, deadline_s=20)

    @hookimpl
    def compute_events(self, wait_s: float) -> Sequence[PowerEvent]:
        return self._watch.drain(wait_s, meanwhile=self._stay_connected)

    @hookimpl
    def compute_capacity(self) -> NodeCapacity:
        # A libvirtd that runs for the first time looks at every QEMU binary before it answers.
        deadline_s = 1 if self._connection.is_alive else 20
        vcpus = self._connection.call(
            "ask for the capacity", lambda live: int(live.getInfo()[2]), deadline_s=deadline_s
        )
        memory = Path("/proc/meminfo").read_text()
        disk = os.statvfs(self._disk_path)
        return NodeCapacity(
            vcpus=vcpus,
            # libvirt's own figure leaves out memory that was plugged in later.
            memory_mib=_mib(memory, "MemTotal"),
            disk_gib=disk.f_blocks * disk.f_frsize >> 30,
            memory_free_mib=_mib(memory, "MemAvailable"),
            disk_free_gib=disk.f_bavail * disk.f_frsize >> 30,
            load_1m=os.getloadavg()[0],
            hypervisor=self._hypervisor,
            accelerator="kvm" if self._machine.is_kvm else "tcg",
        )

    @hookimpl
    def compute_console(self, instance_id: str, directory: str, tail_bytes: int) -> ConsoleOutput:
        return read_console(directory, tail_bytes)

    def wait_for_libvirtd(self, deadline_s: float) -> None:
        """Open the connection now; :raises Unavailable: not within ``deadline_s`` seconds."""
        self._connection.call("connect", lambda _live: None, deadline_s=deadline_s)

    def _opened(self, live: Any) -> None:
        """Learn what this libvirtd can do, and what changed while nobody listened."""
        capabilities = live.getCapabilities()
        is_kvm = self._virtualization == "kvm" or (
            self._virtualization == "auto"
            and "<domain type='kvm'/>" in capabilities
            and has_virtualization_flags(Path("/proc/cpuinfo").read_text())
        )
        self._machine = Machine(is_kvm=is_kvm, owner=qemu_owner(capabilities))
        version = live.getVersion()
        self._hypervisor = f"{live.getType()} {version // 10**6}.{version // 1000 % 1000}"
        self._opened_at = time.monotonic()
        self._compared_facts(live)

    def _compared_facts(self, live: Any) -> tuple[InstanceFact, ...]:
        """Return all instances, and tell of changes that no event told of."""
        moment = self._watch.moment()
        facts = _facts(live)
        self._watch.compare(facts, moment)
        return facts

    def _event(self, domain: Any, event: int, detail: int) -> None:
        instance_id = instance_of(domain.name(), domain.UUIDString())
        change = power_of_event(event, detail)
        if instance_id and change:
            self._watch.tell(PowerEvent(instance_id=instance_id, power=change[0], detail=change[1]))

    def _stay_connected(self) -> None:
        """Open the connection when there is none; an outage is logged once, not at each try."""
        is_settled = time.monotonic() - self._opened_at > _SETTLING_S
        if self._connection.is_alive and is_settled:
            return
        try:
            # An instance that dies while a new libvirtd takes it up again causes no event.
            self._connection.call("listen for events", self._compared_facts, deadline_s=10)
        except Unavailable as error:
            if not self._outage.is_set():
                log.warning("no events of instances for now: %s", error)
            self._outage.set()
        else:
            self._outage.clear()

    def _explain_kvm(self, error: libvirt.libvirtError, attempt: str) -> None:
        """Raise an error that names the setting where the cause is KVM; else do nothing."""
        text = error.get_error_message()
        if self._machine.is_kvm and "kvm" in text.lower():
            raise CommandFailed(
                f"Could not {attempt} with KVM: {text}.",
                hint=f"The setting virtualization is {self._virtualization!r}; "
                "with 'qemu' instances are emulated, slowly, on any machine.",
            ) from error


def _find(live: Any, instance_id: str) -> Any:
    """Return the domain that an instance is, or ``None``."""
    try:
        domain = live.lookupByUUIDString(str(domain_uuid(instance_id)))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise
    return domain if domain.name() == domain_name(instance_id) else None


def _known(live: Any, instance_id: str) -> Any:
    domain = _find(live, instance_id)
    if domain is None:
        raise NotFound(f"The hypervisor knows no instance {instance_id}.")
    return domain


def _record(domain: Any) -> OwnRecord:
    """Return what a domain of ours says about itself; epoch 0 when that was lost."""
    try:
        return read_record(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE))
    except ValueError:
        log.warning("domain %s has damaged metadata", domain.name())
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            raise
        log.warning("domain %s has lost its metadata", domain.name())
    return OwnRecord(domain.name().partition("-")[2], 0, "")


def _destroy(domain: Any) -> None:
    try:
        if domain.isActive():
            domain.destroy()
    except libvirt.libvirtError as error:
        is_off = (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN)
        if error.get_error_code() not in is_off:
            raise


def _facts(live: Any) -> tuple[InstanceFact, ...]:
    facts = []
    for domain in live.listAllDomains():
        instance_id = instance_of(domain.name(), domain.UUIDString())
        if instance_id is None:
            continue
        try:
            power, detail = power_of_state(*domain.state())
            epoch = _record(domain).epoch
        except libvirt.libvirtError as error:
            # It was removed since the list was made.
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                continue
            raise
        facts.append(InstanceFact(instance_id=instance_id, epoch=epoch, power=power, detail=detail))
    return tuple(facts)


def _mib(meminfo: str, name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB", meminfo, re.MULTILINE)
    return int(found.group(1)) >> 10 if found else 0
