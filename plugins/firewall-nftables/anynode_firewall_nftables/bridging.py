"""br_netfilter's switches: bridged packets must pass the inet family's rules.

They belong to the network namespace of the calling thread. The values found first are kept in
the plugin's state directory and put back when the firewall is withdrawn.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from appliance.errors import CommandFailed, ConfigError
from appliance.files import write_whole
from appliance.run import run

log = logging.getLogger(__name__)

_SWITCHES = Path("/proc/sys/net/bridge")
_IPV6 = Path("/proc/sys/net/ipv6")
_RECORD = "bridge-sysctl.json"
_MODPROBE_DEADLINE_S = 30.0


def _needed() -> tuple[str, ...]:
    names = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables")
    return names if _IPV6.exists() else names[:1]


def switch_on(state_dir: Path) -> None:
    """Send bridged packets through the inet family's rules; safe to repeat.

    :raises ConfigError: the kernel lacks br_netfilter and cannot load it; nothing was changed.
    """
    if not _SWITCHES.exists():
        try:
            run(["modprobe", "br_netfilter"], deadline_s=_MODPROBE_DEADLINE_S)
        except CommandFailed as error:
            raise ConfigError(
                "The firewall needs the kernel's br_netfilter, which is not loaded.",
                hint="Load it with: modprobe br_netfilter",
            ) from error
    missing = [name for name in _needed() if not (_SWITCHES / name).exists()]
    if missing:
        raise ConfigError(f"The kernel's br_netfilter has no switch {', '.join(missing)}.")
    record = state_dir / _RECORD
    before = {name: (_SWITCHES / name).read_text().strip() for name in _needed()}
    if not record.exists():
        write_whole(record, msgspec.json.encode(before))
    for name, value in before.items():
        if value != "1":
            log.info("sysctl net.bridge.%s: %s -> 1", name, value)
            (_SWITCHES / name).write_text("1")


def faults() -> list[str]:
    """Return what is wrong with the switches, as sentences."""
    found = []
    for name in _needed():
        path = _SWITCHES / name
        if not path.exists():
            found.append(f"The kernel has no net.bridge.{name}: bridged traffic is dropped.")
        elif path.read_text().strip() != "1":
            found.append(f"net.bridge.{name} is off: bridged traffic is dropped.")
    return found


def restore(state_dir: Path) -> None:
    """Put the switches back to what they were before the first :func:`switch_on`."""
    record = state_dir / _RECORD
    if not record.exists():
        return
    before = msgspec.json.decode(record.read_bytes(), type=dict[str, str])
    for name, value in before.items():
        path = _SWITCHES / name
        if path.exists() and path.read_text().strip() != value:
            path.write_text(value)
    record.unlink()
