"""libvirt's daemons where no service manager starts them.

A machine with systemd starts its own. Elsewhere (a container, a rescue system, a test's name
spaces) the plugin starts ``virtlogd`` and ``libvirtd`` and writes down which processes they are,
so that exactly these are ended later and never a namesake.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import stat
import time
from pathlib import Path

from appliance.errors import CommandFailed, ConfigError, Unavailable
from appliance.run import run

log = logging.getLogger(__name__)

APT_LINE = (
    "apt-get install --no-install-recommends libvirt-daemon-system libvirt-daemon-driver-qemu "
    "qemu-system-x86 qemu-utils"
)
SOCKET = Path("/run/libvirt/libvirt-sock")
KVM = Path("/dev/kvm")
QEMU_RUN_DIR = Path("/run/libvirt/qemu")
_DAEMONS = ("virtlogd", "libvirtd")
_RECORD = "daemons.json"


def ensure_daemons(
    run_dir: Path, *, socket_path: Path = SOCKET, deadline_s: float = 30.0
) -> tuple[int, ...]:
    """Make libvirtd answer and return the process ids of what had to be started for that.

    Safe to repeat: an empty answer says that it answered already, or that systemd started it.

    :param run_dir: where the started processes are written down, for :func:`stop_daemons`.
    :raises ConfigError: libvirt is not installed; nothing was started.
    :raises Unavailable: it did not answer within ``deadline_s``; what was started is written down.
    """
    has_systemd = Path("/run/systemd/system").is_dir()
    if not has_systemd:
        open_kvm(KVM)
    if _answers(socket_path):
        return ()
    if has_systemd:
        run(["systemctl", "start", "libvirtd"], deadline_s=deadline_s)
        started: dict[str, int] = {}
    else:
        started = _start(run_dir)
    _wait_for_answer(socket_path, deadline_s)
    return tuple(started.values())


def stop_daemons(run_dir: Path, *, deadline_s: float = 10.0) -> tuple[int, ...]:
    """End the processes that :func:`ensure_daemons` wrote down, and no others.

    Instances go on running: they belong to QEMU processes of their own. As long as there are any,
    virtlogd stays, and stays written down: their serial output goes through it, and no later
    virtlogd could take that up again. Safe to repeat.

    :returns: the process ids that were ended.
    :raises CommandFailed: one did not end within ``deadline_s``; it stays written down.
    """
    known = _read_record(run_dir)
    ended = []
    for name in reversed(_DAEMONS):
        if name not in known or (name == "virtlogd" and _has_instances()):
            continue
        pid, started_at = known[name]
        log.info("stop %s, process %d", name, pid)
        os.kill(pid, signal.SIGTERM)
        _wait_for_end(name, pid, started_at, deadline_s)
        del known[name]
        _write_record(run_dir, known)
        ended.append(pid)
    return tuple(ended)


def _start(run_dir: Path) -> dict[str, int]:
    """Start what does not run yet, and write down all that was started and lives."""
    missing = [name for name in _DAEMONS if shutil.which(name) is None]
    if missing:
        raise ConfigError(f"This machine lacks {' and '.join(missing)}.", hint=f"Run: {APT_LINE}")
    known = _read_record(run_dir)
    started: dict[str, int] = {}
    for name in _DAEMONS:
        if name in known or (name == "virtlogd" and _answers(SOCKET.with_name("virtlogd-sock"))):
            continue
        pid_path = run_dir.resolve() / f"{name}.pid"
        run([name, "--daemon", "--pid-file", pid_path], deadline_s=30)
        started[name] = int(pid_path.read_text())
        known[name] = [started[name], _start_time(started[name])]
        log.info("started %s, process %d", name, started[name])
        _write_record(run_dir, known)
    return started


def _read_record(run_dir: Path) -> dict[str, list[int]]:
    """Return process id and start time of each daemon that was written down and still runs."""
    record = run_dir / _RECORD
    known: dict[str, list[int]] = json.loads(record.read_text()) if record.exists() else {}
    return {name: pair for name, pair in known.items() if _start_time(pair[0]) == pair[1]}


def _write_record(run_dir: Path, known: dict[str, list[int]]) -> None:
    if not known:
        (run_dir / _RECORD).unlink(missing_ok=True)
        return
    partial = run_dir / f"{_RECORD}.new"
    partial.write_text(json.dumps(known))
    partial.replace(run_dir / _RECORD)


def _has_instances() -> bool:
    """Say whether any QEMU process that libvirt started still runs."""
    for path in QEMU_RUN_DIR.glob("*.pid"):
        text = path.read_text().strip()
        if text.isdigit() and _start_time(int(text)):
            return True
    return False


def open_kvm(device: Path) -> None:
    """Give ``/dev/kvm`` to its group where nobody but root may use it, as udev does.

    Where QEMU's user may not use the device, libvirt finds its knowledge of QEMU outdated at each
    look, starts QEMU several times to renew it, and a definition takes ten seconds.
    """
    if device.exists() and not device.stat().st_mode & stat.S_IRWXG:
        try:
            shutil.chown(device, group="kvm")
        except LookupError:
            log.warning("there is no group kvm; %s stays closed to QEMU's user", device)
            return
        device.chmod(0o660)
        log.info("gave %s to the group kvm, as udev would", device)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _wait_for_answer(path: Path, deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    while not _answers(path):
        if time.monotonic() > end:
            raise Unavailable(
                f"libvirtd was started but {path} did not answer within {deadline_s:g} s.",
                hint="Its messages are in /var/log/libvirt and in the system's journal.",
            )
        time.sleep(0.05)


def _wait_for_end(name: str, pid: int, started_at: int, deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    while _start_time(pid) == started_at:
        if time.monotonic() > end:
            raise CommandFailed(f"{name} (process {pid}) did not end within {deadline_s:g} s.")
        time.sleep(0.05)


def _start_time(pid: int) -> int:
    """Return when a process was started, in clock ticks since boot; 0 when it has ended."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" else int(fields[19])
