"""The node forwards packets while a network plugin needs it, and is as before at the end.

Several plugins may need it: the last one that gives it up restores what was found first.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from appliance.datapath import links
from appliance.errors import Unavailable
from appliance.files import write_whole

SWITCH = "ipv4/ip_forward"

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class _Held(msgspec.Struct, frozen=True, kw_only=True):
    """The value before us, during one boot of the machine, and the plugins that need another."""

    boot_id: str
    before: str
    holders: tuple[str, ...]


def allow(folder: Path, holder: str) -> None:
    """Let the node forward; safe to repeat.

    :param folder: the folder of all plugins' folders, where what was before is kept.
    :raises ConfigError: the kernel or a sandbox refuses.
    """
    with _locked(folder):
        held = _read(folder)
        if held is None:
            held = _Held(boot_id=_boot_id(), before=links.read_sysctl(SWITCH), holders=())
        holders = tuple(sorted({*held.holders, holder}))
        if holders != held.holders:
            _write(folder, msgspec.structs.replace(held, holders=holders))
        links.write_sysctl(SWITCH, "1")


def give_back(folder: Path, holder: str) -> None:
    """Need it no more; the last one restores what was before. Safe to repeat."""
    with _locked(folder):
        held = _read(folder)
        if held is None or holder not in held.holders:
            return
        left = tuple(one for one in held.holders if one != holder)
        if left:
            _write(folder, msgspec.structs.replace(held, holders=left))
        else:
            links.write_sysctl(SWITCH, held.before)
            _path(folder).unlink()


def is_allowed() -> bool:
    """Say whether the node forwards."""
    return links.read_sysctl(SWITCH) == "1"


def _path(folder: Path) -> Path:
    return folder / "forwarding.json"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        with (folder / "forwarding.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise Unavailable(f"Could not use {folder}: {error.strerror}.") from error


def _read(folder: Path) -> _Held | None:
    """Return what is kept; nothing of an earlier boot counts."""
    try:
        held = msgspec.json.decode(_path(folder).read_bytes(), type=_Held)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return held if held.boot_id == _boot_id() else None


def _write(folder: Path, held: _Held) -> None:
    write_whole(_path(folder), msgspec.json.encode(held), is_durable=False)


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()
