"""A DHCP client for tests: busybox's, on the card of a machine."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from appliance.errors import CommandFailed
from appliance.run import run
from appliance.testing.namespaces import Machine


def ask_dhcp(machine: Machine, directory: Path, tries: int = 8) -> dict[str, str]:
    """Run a DHCP client on the machine's card; return what it was given, nothing if refused."""
    script = directory / "udhcpc.sh"
    given = directory / "lease"
    given.unlink(missing_ok=True)
    script.write_text(f'#!/bin/sh\n[ "$1" = bound ] && env > {given}\nexit 0\n')
    script.chmod(0o700)
    # -B: answers come as broadcasts, so that a card that the bridge does not know could hear them.
    client = ["busybox", "udhcpc", "-B", "-i", "eth0", "-f", "-q", "-n", "-O", "mtu"]
    options = ["-t", str(tries), "-T", "1", "-A", "1", "-s", str(script)]
    with suppress(CommandFailed):
        machine.call(run, [*client, *options], deadline_s=60)
    if not given.exists():
        return {}
    pairs = (line.partition("=") for line in given.read_text().splitlines())
    return {name: value for name, _, value in pairs}
