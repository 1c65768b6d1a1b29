"""The parts that need no libvirtd: console, power states, access, recognition of KVM."""

import os
import struct
import threading
from pathlib import Path

import libvirt
import msgspec
import pytest
from anynode_compute_libvirt.access import backing_path, check_reachable, hand_over, qemu_owner
from anynode_compute_libvirt.connection import Connection
from anynode_compute_libvirt.console import MOST_BYTES, read_console
from anynode_compute_libvirt.driver import has_virtualization_flags
from anynode_compute_libvirt.power import PowerWatch, power_of_event, power_of_state

from appliance.errors import CommandFailed, ConfigError, Unavailable
from appliance.model import (
    DiskAttachment,
    InstanceDefinition,
    InstanceFact,
    PowerEvent,
    PowerState,
)

NOBODY = (65534, 65534)


def event(number: int) -> PowerEvent:
    return PowerEvent(instance_id=f"i-{number}", power=PowerState.RUNNING)


def fact(number: int, power: PowerState) -> InstanceFact:
    return InstanceFact(instance_id=f"i-{number}", epoch=1, power=power)


class TestConsole:
    def test_nothing_printed_is_empty(self, tmp_path: Path) -> None:
        assert read_console(str(tmp_path), 100).text == b""
        assert read_console(str(tmp_path / "missing"), 100).text == b""

    def test_the_end_goes_on_into_the_file_before_the_rotation(self, tmp_path: Path) -> None:
        (tmp_path / "console.log.0").write_bytes(b"older")
        (tmp_path / "console.log").write_bytes(b"newer")
        assert read_console(str(tmp_path), 5).text == b"newer"
        assert read_console(str(tmp_path), 7).text == b"ernewer"
        assert read_console(str(tmp_path), 1000).text == b"oldernewer"
        assert read_console(str(tmp_path), -1).text == b""

    def test_an_answer_is_bounded(self, tmp_path: Path) -> None:
        with open(tmp_path / "console.log", "wb") as file:
            file.truncate(3 * MOST_BYTES)
        assert len(read_console(str(tmp_path), 1 << 40).text) == MOST_BYTES

    def test_links_and_pipes_are_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "console.log").symlink_to("/etc/passwd")
        with pytest.raises(CommandFailed):
            read_console(str(tmp_path), 100)
        (tmp_path / "console.log").unlink()
        os.mkfifo(tmp_path / "console.log")
        with pytest.raises(CommandFailed):
            read_console(str(tmp_path), 100)
        (tmp_path / "link").symlink_to(tmp_path)
        with pytest.raises(CommandFailed):
            read_console(str(tmp_path / "link"), 100)


class TestPower:
    def test_a_crash_is_not_a_shutdown(self) -> None:
        stopped = libvirt.VIR_DOMAIN_EVENT_STOPPED
        states = {
            detail: power_of_event(stopped, detail)
            for detail in (
                libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN,
                libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED,
                libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED,
            )
        }
        assert [state and state[0] for state in states.values()] == [
            PowerState.SHUT_OFF,
            PowerState.CRASHED,
            PowerState.CRASHED,
        ]
        assert power_of_event(libvirt.VIR_DOMAIN_EVENT_DEFINED, 0) is None
        crashed = power_of_state(libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED)
        assert crashed[0] is PowerState.CRASHED

    def test_a_process_that_died_unseen_has_crashed(self) -> None:
        power, detail = power_of_state(
            libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_DAEMON
        )
        assert power is PowerState.CRASHED
        assert "libvirtd was away" in detail

    def test_a_change_while_nobody_listened_is_found(self) -> None:
        watch = PowerWatch()
        watch.compare([fact(1, PowerState.RUNNING), fact(2, PowerState.RUNNING)], watch.moment())
        assert watch.drain(0, lambda: None) == ()
        for _ in range(2):
            facts = [fact(1, PowerState.CRASHED), fact(2, PowerState.RUNNING)]
            watch.compare(facts, watch.moment())
        assert [item.instance_id for item in watch.drain(0, lambda: None)] == ["i-1"]

    def test_what_was_told_or_asked_for_is_not_told_again(self) -> None:
        watch = PowerWatch()
        watch.tell(event(1))
        watch.note("i-2", PowerState.SHUT_OFF)
        assert watch.drain(0, lambda: None) == (event(1),)
        facts = [fact(1, PowerState.RUNNING), fact(2, PowerState.SHUT_OFF)]
        watch.compare(facts, watch.moment())
        assert watch.drain(0, lambda: None) == ()

    def test_a_fact_that_is_older_than_an_event_is_no_news(self) -> None:
        watch = PowerWatch()
        watch.note("i-1", PowerState.SHUT_OFF)
        before = watch.moment()
        watch.tell(event(1))
        watch.compare([fact(1, PowerState.SHUT_OFF)], before)
        watch.compare([], before)
        watch.compare([fact(1, PowerState.RUNNING)], watch.moment())
        assert watch.drain(0, lambda: None) == (event(1),)

    def test_an_instance_that_is_gone_is_forgotten(self) -> None:
        watch = PowerWatch()
        watch.note("i-1", PowerState.RUNNING)
        watch.compare([], watch.moment())
        watch.compare([fact(1, PowerState.SHUT_OFF)], watch.moment())
        assert watch.drain(0, lambda: None) == ()

    def test_an_event_wakes_the_waiting(self) -> None:
        watch = PowerWatch()
        timer = threading.Timer(0.05, watch.tell, [event(1)])
        timer.start()
        assert watch.drain(60, lambda: None) == (event(1),)
        timer.join()


class TestAccess:
    CAPABILITIES = """<capabilities><host>
      <secmodel><model>none</model></secmodel>
      <secmodel><model>dac</model><baselabel type='kvm'>+1:+2</baselabel>
        <baselabel type='qemu'>+64055:+108</baselabel></secmodel></host></capabilities>"""

    def make(self, tmp_path: Path, **fields: str) -> InstanceDefinition:
        directory = tmp_path / "i-1"
        directory.mkdir(mode=0o711)
        for folder in (tmp_path, *tmp_path.parents[:-2]):
            folder.chmod(folder.stat().st_mode | 0o011)
        (directory / "disk.raw").write_bytes(b"x")
        disk = DiskAttachment(path=str(directory / "disk.raw"), format="raw", target="vda")
        definition = InstanceDefinition(
            instance_id="i-1",
            epoch=1,
            name="",
            directory=str(directory),
            vcpus=1,
            memory_mib=64,
            disks=(disk,),
            taps=(),
        )
        return msgspec.structs.replace(definition, **fields)

    def test_owner_is_read_from_the_capabilities(self) -> None:
        assert qemu_owner(self.CAPABILITIES) == (64055, 108)
        assert qemu_owner("<capabilities><host/></capabilities>") is None

    def test_backing_file_is_read_from_the_header(self, tmp_path: Path) -> None:
        name = b"../base.qcow2"
        overlay = tmp_path / "overlay.qcow2"
        overlay.write_bytes(struct.pack(">4sIQI", b"QFI\xfb", 3, 64, len(name)).ljust(64) + name)
        assert backing_path(str(overlay)) == f"{tmp_path}/../base.qcow2"
        overlay.write_bytes(struct.pack(">4sIQI", b"QFI\xfb", 3, 0, 0))
        assert backing_path(str(overlay)) == ""
        overlay.write_bytes(b"raw bytes, not an image at all")
        assert backing_path(str(overlay)) == ""
        with pytest.raises(ConfigError, match="missing"):
            backing_path(str(tmp_path / "missing"))

    @pytest.mark.node
    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
    def test_own_disks_are_given_away_and_closed(self, tmp_path: Path) -> None:
        definition = self.make(tmp_path)
        hand_over(definition, NOBODY)
        status = os.stat(definition.disks[0].path)
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (*NOBODY, 0o600)
        check_reachable(definition, NOBODY)

    @pytest.mark.node
    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
    def test_a_disk_that_is_a_link_is_refused(self, tmp_path: Path) -> None:
        definition = self.make(tmp_path)
        victim = tmp_path / "victim"
        victim.write_text("root's")
        Path(definition.disks[0].path).unlink()
        Path(definition.disks[0].path).symlink_to(victim)
        with pytest.raises(ConfigError):
            hand_over(definition, NOBODY)
        assert victim.stat().st_uid == 0

    @pytest.mark.node
    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
    def test_a_closed_directory_is_named(self, tmp_path: Path) -> None:
        definition = self.make(tmp_path)
        hand_over(definition, NOBODY)
        tmp_path.chmod(0o700)
        with pytest.raises(ConfigError, match=f"cannot enter {tmp_path},"):
            check_reachable(definition, NOBODY)

    @pytest.mark.node
    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
    def test_an_unreadable_kernel_is_named(self, tmp_path: Path) -> None:
        kernel = tmp_path / "vmlinuz"
        definition = self.make(tmp_path, kernel_path=str(kernel))
        hand_over(definition, NOBODY)
        kernel.write_bytes(b"x")
        kernel.chmod(0o600)
        with pytest.raises(ConfigError, match=f"cannot read {kernel}"):
            check_reachable(definition, NOBODY)


class TestConnection:
    def test_a_call_that_hangs_ends_at_its_deadline(self) -> None:
        connection = Connection(
            "test:///default", on_open=lambda _live: None, on_event=lambda *_event: None
        )
        release = threading.Event()
        with pytest.raises(Unavailable, match=r"within 0\.1 s"):
            connection.call("hang", lambda _live: release.wait(30), deadline_s=0.1)
        assert connection.call("ask", lambda live: live.getType(), deadline_s=10) == "TEST"
        release.set()

    def test_calls_that_hang_do_not_pile_up(self) -> None:
        connection = Connection(
            "test:///default", on_open=lambda _live: None, on_event=lambda *_event: None
        )
        release = threading.Event()
        texts = []
        try:
            for _ in range(100):
                with pytest.raises(Unavailable) as caught:
                    connection.call("hang", lambda _live: release.wait(30), deadline_s=0.001)
                texts.append(caught.value.message)
            assert "calls wait for libvirtd" in texts[-1]
            hanging = [thread for thread in threading.enumerate() if thread.name == "libvirt-call"]
            assert len(hanging) <= 70
        finally:
            release.set()

    def test_no_libvirtd_is_said_at_once(self, tmp_path: Path) -> None:
        connection = Connection(
            f"qemu+unix:///system?socket={tmp_path}/none",
            on_open=lambda _live: None,
            on_event=lambda *_event: None,
        )
        with pytest.raises(Unavailable, match="does not answer"):
            connection.call("list", lambda _live: None, deadline_s=10)
        assert not connection.is_alive

    def test_a_libvirtd_that_is_away_is_revived_before_it_is_given_up(self, tmp_path: Path) -> None:
        tries = []

        def revive() -> None:
            tries.append("once")
            if len(tries) == 2:
                raise ConfigError("It is not installed.", hint="Install it.")

        connection = Connection(
            f"qemu+unix:///system?socket={tmp_path}/none",
            on_open=lambda _live: None,
            on_event=lambda *_event: None,
            revive=revive,
        )
        with pytest.raises(Unavailable, match="does not answer: "):
            connection.call("list", lambda _live: None, deadline_s=10)
        with pytest.raises(Unavailable, match="cannot be started") as caught:
            connection.call("list", lambda _live: None, deadline_s=10)
        assert len(tries) == 2
        assert caught.value.hint == "Install it."


@pytest.mark.parametrize(
    ("flags", "has"),
    [("fpu svm sse", True), ("vmx", True), ("fpu sse vmmcall", False), ("", False)],
)
def test_kvm_needs_the_processor(flags: str, has: bool) -> None:
    assert has_virtualization_flags(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t: svm\n") is has
