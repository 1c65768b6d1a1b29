"""The first process of a rig: makes its places, then waits for the test to let go.

It runs in fresh namespaces as process 1, with the rig's directory and name as arguments. It
prints ``ready``, then reads its standard input until that ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

PLACES = (
    "/run",
    "/etc/libvirt",
    "/var/lib/libvirt",
    "/var/cache/libvirt",
    "/var/log/libvirt",
)
"""What a rig has for itself; empty at the start, except for the configuration of libvirt.

A place that the machine has not is left out: to make it would leave it behind.
"""

KNOWN = ("qemu", "storage", "secrets")
"""Folders of ``/etc/libvirt`` that say what a libvirtd has, not how it works."""


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def make_places(directory: Path) -> None:
    """Put a directory of the rig over each of its places."""
    for place in filter(os.path.isdir, PLACES):
        own = directory / "places" / place[1:].replace("/", "-")
        if place == "/etc/libvirt":
            # Not the instances, networks and storage pools of the machine's own libvirt.
            shutil.copytree(place, own, symlinks=True, ignore=shutil.ignore_patterns(*KNOWN))
        own.mkdir(parents=True, exist_ok=True)
        own.chmod(0o755)
        mount("--bind", own, place)
    # Both come with a mount of their own on a usual machine.
    for name in ("lock", "shm"):
        Path("/run", name).mkdir(mode=0o1777)


def make_kvm(directory: Path) -> None:
    """Put a device of the rig's own over ``/dev/kvm``, with the access that udev would give.

    libvirt looks at every QEMU binary again for each definition when that access is missing.
    """
    if Path("/dev/kvm").exists():
        node = directory / "kvm"
        os.mknod(node, stat.S_IFCHR, os.stat("/dev/kvm").st_rdev)
        shutil.chown(node, "root", "kvm")
        node.chmod(0o660)
        mount("--bind", node, "/dev/kvm")


def main() -> None:
    directory, name = Path(sys.argv[1]), sys.argv[2]
    (directory / "places").mkdir()
    mount("--make-rprivate", "/")
    # The new one shows the interfaces of this network namespace. Control groups are not brought
    # back: they would be the machine's, and libvirt does without.
    subprocess.run(["umount", "--recursive", "--lazy", "/sys"], check=True)
    mount("-t", "sysfs", "sysfs", "/sys")
    make_places(directory)
    make_kvm(directory)
    socket.sethostname(name)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    # The kernel reaps orphans when their parent ignores this signal.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
