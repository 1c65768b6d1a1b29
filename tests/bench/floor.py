"""What a launch cannot do without: ``qemu-img create`` and libvirt's ``createXML``.

Runs inside a rig: ``python -m tests.bench.floor XML BASE DISK TAP``. Prints the seconds of both as
JSON, and leaves nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import libvirt


def main() -> None:
    """Make the disk, in place of one that is there, and the domain; remove both."""
    xml_path, base, disk, tap = sys.argv[1:]
    xml = Path(xml_path).read_text()
    connection = libvirt.open("qemu:///system")
    owner = Path(disk).stat()
    Path(disk).unlink()
    subprocess.run(["ip", "tuntap", "add", tap, "mode", "tap"], check=True)
    try:
        began = time.monotonic()
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, disk]
        subprocess.run(create, check=True)
        made = time.monotonic()
        os.chown(disk, owner.st_uid, owner.st_gid)
        asked = time.monotonic()
        domain = connection.createXML(xml)
        running = time.monotonic()
        domain.destroy()
        print(json.dumps({"disk": made - began, "domain": running - asked}))
    finally:
        subprocess.run(["ip", "link", "delete", tap], check=True)
        Path(disk).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
