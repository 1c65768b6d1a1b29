"""Real instances: the contract on libvirt and QEMU, a real boot, and faults of the daemons."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from anynode_compute_libvirt.domain import domain_name
from anynode_compute_libvirt.driver import LibvirtCompute

from appliance.errors import AnynodeError, CommandFailed, ConfigError, Unavailable
from appliance.hooks import Compute
from appliance.model import (
    DiskAttachment,
    InstanceDefinition,
    PowerEvent,
    PowerState,
    TapAttachment,
)
from appliance.testing.compute import (
    ONE,
    TWO,
    ComputeContract,
    MakeDefinition,
    facts,
    wait_for_event,
    wait_for_power,
)
from tests.rig import ROOT, Rig, wait_for

DEMO_IMAGE = Path("/var/cache/anynode/demo-image")
BOOT_DEADLINE_S = 180
STOP = """
import pathlib, sys
from anynode_compute_libvirt.daemon import stop_daemons
print(*stop_daemons(pathlib.Path(sys.argv[1])))
"""
FOREIGN = """<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid>
<memory unit='MiB'>32</memory><os><type arch='x86_64' machine='pc'>hvm</type></os></domain>"""

pytestmark = pytest.mark.node


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


def qemu_pid(rig: Rig, instance_id: str) -> int:
    """Return the process of an instance as it is numbered in the rig."""
    path = rig.outside(f"/run/libvirt/qemu/{domain_name(instance_id)}.pid")
    return int(path.read_text())


def is_running(rig: Rig, pid: int) -> bool:
    return str(pid) in rig.run(["ps", "-e", "-o", "pid="]).split()


def daemon_pid(rig: Rig) -> int:
    return int((rig.directory / "daemons/libvirtd.pid").read_text())


def wait_for_text(driver: Compute, definition: InstanceDefinition, text: bytes, times: int) -> None:
    def has_text() -> bool:
        console = driver.console(definition.instance_id, definition.directory, 1 << 20)
        return console.text.count(text) >= times

    wait_for(has_text, BOOT_DEADLINE_S, f"{text!r} on the console")


class LibvirtNode(ComputeContract):
    """The fixtures of a node with libvirt."""

    @pytest.fixture
    def driver(self, compute: Compute) -> Compute:
        return compute

    @pytest.fixture
    def make_definition(self, bootable: MakeDefinition) -> MakeDefinition:
        return bootable

    @pytest.fixture
    def crash(self, libvirt_rig: Rig) -> Callable[[str], None]:
        return lambda instance_id: self.kill(libvirt_rig, qemu_pid(libvirt_rig, instance_id))

    @pytest.fixture
    def patience_s(self) -> float:
        return 60.0

    @staticmethod
    def kill(rig: Rig, pid: int, number: int = signal.SIGKILL) -> None:
        rig.run(["kill", f"-{int(number)}", str(pid)])


class TestContract(LibvirtNode):
    """The contract, on libvirt."""


del ComputeContract


@pytest.fixture
def booted(compute: Compute, bootable: MakeDefinition) -> Iterator[InstanceDefinition]:
    """Return an instance that has come up to its login."""
    definition = bootable(ONE, 1)
    compute.define(definition)
    compute.start(ONE)
    wait_for_text(compute, definition, b"login:", 1)
    yield definition
    compute.remove(ONE)


def test_boot_reboot_and_shut_down(compute: Compute, booted: InstanceDefinition) -> None:
    text = compute.console(ONE, booted.directory, 1 << 20).text
    assert b"Linux version" in text
    compute.events(0)
    compute.reboot(ONE, is_forced=False)
    wait_for_text(compute, booted, b"login:", 2)
    assert facts(compute)[ONE].power is PowerState.RUNNING
    compute.reboot(ONE, is_forced=True)
    wait_for_text(compute, booted, b"login:", 3)
    compute.events(0)
    compute.shut_down(ONE)
    event = wait_for_event(compute, ONE, PowerState.SHUT_OFF, BOOT_DEADLINE_S)
    assert event.detail == "it shut down"
    assert wait_for_power(compute, ONE, PowerState.SHUT_OFF, 10).detail == "it shut down"
    assert compute.console(ONE, booted.directory, 1 << 20).text.startswith(text[:1000])


class TestTap:
    """Cards: taps that somebody else made."""

    @pytest.fixture
    def carded(
        self, libvirt_rig: Rig, compute: Compute, bootable: MakeDefinition
    ) -> Iterator[InstanceDefinition]:
        libvirt_rig.run(["ip", "tuntap", "add", "dev", "antest0", "mode", "tap"])
        tap = TapAttachment(tap="antest0", mac="06:a0:00:00:00:01", mtu=1450)
        yield msgspec.structs.replace(bootable(ONE, 1), taps=(tap,))
        compute.remove(ONE)
        libvirt_rig.run(["ip", "link", "delete", "antest0"], is_checked=False)

    def test_start_and_stop_leave_the_tap_as_it_is(
        self, libvirt_rig: Rig, compute: Compute, carded: InstanceDefinition
    ) -> None:
        def link() -> str:
            return libvirt_rig.run(["cat", "/sys/class/net/antest0/flags"])

        before = link()
        compute.define(carded)
        compute.start(ONE)
        assert link() == before
        compute.remove(ONE)
        assert link() == before

    def test_a_missing_tap_fails_the_start(
        self, libvirt_rig: Rig, compute: Compute, carded: InstanceDefinition
    ) -> None:
        libvirt_rig.run(["ip", "link", "delete", "antest0"])
        compute.define(carded)
        with pytest.raises(AnynodeError, match="doesn't exist"):
            compute.start(ONE)
        assert facts(compute)[ONE].power is PowerState.SHUT_OFF
        assert "antest0" not in libvirt_rig.run(["ls", "/sys/class/net"])


class TestStranger:
    """Domains that are not ours."""

    @pytest.fixture(params=["stranger", domain_name(ONE)])
    def stranger(self, libvirt_rig: Rig, request: pytest.FixtureRequest) -> Iterator[str]:
        name = str(request.param)
        path = libvirt_rig.directory / "stranger.xml"
        path.write_text(FOREIGN.format(name=name, uuid="2389c428-8dad-450b-95ec-11ad83b95540"))
        libvirt_rig.run(["virsh", "define", str(path)])
        libvirt_rig.run(["virsh", "start", name])
        yield name
        libvirt_rig.run(["virsh", "destroy", name], is_checked=False)
        libvirt_rig.run(["virsh", "undefine", name])

    def test_a_foreign_domain_is_neither_listed_nor_touched(
        self, libvirt_rig: Rig, compute: Compute, stranger: str
    ) -> None:
        compute.events(0)
        compute.power_off(ONE)
        compute.remove(ONE)
        libvirt_rig.run(["virsh", "reset", stranger])
        assert compute.list() == ()
        assert libvirt_rig.run(["virsh", "domstate", stranger]).strip() == "running"
        libvirt_rig.run(["virsh", "destroy", stranger])
        assert compute.events(0.2) == ()

    def test_a_name_that_is_taken_is_an_error(
        self, compute: Compute, bootable: MakeDefinition, stranger: str
    ) -> None:
        if stranger == domain_name(ONE):
            with pytest.raises(AnynodeError, match="already exists"):
                compute.define(bootable(ONE, 1))
        else:
            compute.define(bootable(ONE, 1))
            compute.remove(ONE)


class TestDaemonFaults:
    """libvirtd dies, hangs, comes back; instances do not notice."""

    @pytest.fixture
    def started(
        self, libvirt_rig: Rig, compute: Compute, bootable: MakeDefinition
    ) -> Iterator[InstanceDefinition]:
        definition = bootable(TWO, 5)
        compute.define(definition)
        compute.start(TWO)
        yield definition
        libvirt_rig.start_libvirt()
        compute.remove(TWO)

    def test_instances_outlive_a_killed_libvirtd(
        self, libvirt_rig: Rig, compute: Compute, started: InstanceDefinition
    ) -> None:
        pid = qemu_pid(libvirt_rig, TWO)
        LibvirtNode.kill(libvirt_rig, daemon_pid(libvirt_rig))
        with pytest.raises(Unavailable):
            compute.list()
        assert compute.events(0.1) is not None
        assert is_running(libvirt_rig, pid)
        libvirt_rig.start_libvirt()
        fact = facts(compute)[TWO]
        assert (fact.epoch, fact.power) == (5, PowerState.RUNNING)
        assert qemu_pid(libvirt_rig, TWO) == pid
        compute.define(started)
        compute.events(0)
        LibvirtNode.kill(libvirt_rig, pid)
        wait_for_event(compute, TWO, PowerState.CRASHED, 60)

    def test_the_console_goes_on_when_the_daemons_were_stopped(
        self, libvirt_rig: Rig, compute: Compute, started: InstanceDefinition
    ) -> None:
        run_dir = libvirt_rig.directory / "daemons"
        stopped = libvirt_rig.python("-c", STOP, run_dir).split()
        assert len(stopped) == 1
        libvirt_rig.start_libvirt()
        wait_for_text(compute, started, b"login:", 1)

    def test_a_crash_while_libvirtd_was_away_is_told(
        self, libvirt_rig: Rig, compute: Compute, started: InstanceDefinition
    ) -> None:
        pid = qemu_pid(libvirt_rig, TWO)
        wait_for_event(compute, TWO, PowerState.RUNNING, 60)
        LibvirtNode.kill(libvirt_rig, daemon_pid(libvirt_rig))
        LibvirtNode.kill(libvirt_rig, pid)
        libvirt_rig.start_libvirt()
        end = time.monotonic() + 60
        seen: list[PowerEvent] = []
        while not seen and time.monotonic() < end:
            seen = [event for event in compute.events(0.2) if event.instance_id == TWO]
        assert seen
        assert seen[-1].power is PowerState.CRASHED
        assert facts(compute)[TWO].power is seen[-1].power

    def test_a_hanging_libvirtd_is_not_waited_for(
        self, libvirt_rig: Rig, compute: Compute, started: InstanceDefinition
    ) -> None:
        pid = daemon_pid(libvirt_rig)
        compute.capacity()
        LibvirtNode.kill(libvirt_rig, pid, signal.SIGSTOP)
        try:
            before = time.monotonic()
            with pytest.raises(Unavailable, match="did not answer within 1 s"):
                compute.capacity()
            assert time.monotonic() - before < 5
        finally:
            LibvirtNode.kill(libvirt_rig, pid, signal.SIGCONT)
        assert compute.capacity().vcpus > 0
        assert facts(compute)[TWO].power is PowerState.RUNNING


def test_disks_of_all_kinds_start(
    libvirt_rig: Rig, compute: Compute, bootable: MakeDefinition
) -> None:
    definition = bootable(ONE, 1)
    directory = Path(definition.directory)
    for name in ("seed.img", "seed.iso"):
        (directory / name).write_bytes(bytes(1 << 20))
    seeds = (
        DiskAttachment(
            path=str(directory / "seed.img"), format="raw", target="vdb", is_read_only=True
        ),
        DiskAttachment(
            path=str(directory / "seed.iso"), format="raw", target="hda", device="cdrom"
        ),
    )
    compute.define(
        msgspec.structs.replace(
            definition, disks=(*definition.disks, *seeds), kernel_path="", ramdisk_path=""
        )
    )
    try:
        compute.start(ONE)
        assert facts(compute)[ONE].power is PowerState.RUNNING
        blocks = libvirt_rig.run(["virsh", "domblklist", domain_name(ONE)])
        assert all(target in blocks for target in ("vda", "vdb", "hda"))
    finally:
        compute.remove(ONE)


class TestAccess:
    """What QEMU's user may reach."""

    def test_shared_files_stay_with_root(
        self, libvirt_rig: Rig, compute: Compute, bootable: MakeDefinition, image: Path
    ) -> None:
        definition = bootable(ONE, 1)
        compute.define(definition)
        compute.start(ONE)
        try:
            assert {path.stat().st_uid for path in image.iterdir()} == {0}
            assert Path(definition.disks[0].path).stat().st_uid != 0
        finally:
            compute.remove(ONE)

    def test_a_closed_directory_is_named_by_define(
        self, compute: Compute, bootable: MakeDefinition
    ) -> None:
        definition = bootable(ONE, 1)
        Path(definition.directory).chmod(0o700)
        with pytest.raises(ConfigError, match=f"cannot enter {definition.directory}"):
            compute.define(definition)
        assert compute.list() == ()


def test_a_failure_of_kvm_names_the_setting(
    libvirt_rig: Rig, compute: Compute, bootable: MakeDefinition
) -> None:
    if compute.capacity().accelerator == "kvm":
        pytest.skip("KVM works on this machine")
    forced = Compute(
        "libvirt",
        LibvirtCompute(
            uri=libvirt_rig.libvirt_uri, virtualization="kvm", disk_path=libvirt_rig.directory
        ),
    )
    assert forced.capacity().accelerator == "kvm"

    def define_and_start() -> None:
        forced.define(bootable(ONE, 1))
        forced.start(ONE)

    try:
        with pytest.raises(CommandFailed, match="virtualization is 'kvm'"):
            define_and_start()
    finally:
        compute.remove(ONE)
