"""What QEMU's own user may reach: checked before a start, so that a failure names the path.

Under a stock libvirt QEMU runs as a user of its own. The disks that belong to an instance are
given to that user; images, kernels and ramdisks, which many instances share, stay with root, so
that an instance that broke out of QEMU cannot change what others boot from. libvirt's own change
of ownership is therefore switched off in the domain.
"""

from __future__ import annotations

import os
import pwd
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from appliance.errors import CommandFailed, ConfigError
from appliance.model import DiskAttachment, InstanceDefinition
from appliance.run import run

_QCOW2_MAGIC = b"QFI\xfb"
_LONGEST_NAME = 1023


def qemu_owner(capabilities_xml: str) -> tuple[int, int] | None:
    """Return user and group of QEMU processes from libvirt's capabilities.

    ``None`` when libvirt does not separate them from itself.
    """
    # libvirt's own words, nothing of a user's.
    host = ElementTree.fromstring(capabilities_xml)  # noqa: S314
    for model in host.iterfind("./host/secmodel"):
        label = model.findtext("./baselabel[@type='qemu']")
        if model.findtext("model") == "dac" and label:
            user, _, group = label.partition(":")
            return int(user.lstrip("+")), int(group.lstrip("+"))
    return None


def hand_over(definition: InstanceDefinition, owner: tuple[int, int]) -> None:
    """Give the disks in the instance's directory to QEMU's user and hide them from all others.

    :raises ConfigError: a disk is missing, is no regular file, or may not be given away.
    """
    for disk in definition.disks:
        if _is_own(definition, disk):
            _give(disk, owner)


def check_reachable(definition: InstanceDefinition, owner: tuple[int, int]) -> None:
    """Make sure that QEMU's user can read all that the instance boots from.

    :raises ConfigError: it cannot; the text names the first path that stops it.
    """
    if os.geteuid() != 0 or owner[0] == 0:
        return
    paths = [disk.path for disk in definition.disks]
    for disk in definition.disks:
        if disk.format == "qcow2" and (backing := backing_path(disk.path)):
            paths.append(backing)
    paths += [path for path in (definition.kernel_path, definition.ramdisk_path) if path]
    if _may(owner, "-r", paths):
        return
    for path in paths:
        if _may(owner, "-r", [path]):
            continue
        for folder in reversed(Path(path).parents):
            if not _may(owner, "-x", [str(folder)]):
                raise ConfigError(
                    f"QEMU's user {_user_name(owner)} cannot enter {folder}, needed for {path}.",
                    hint=f"Run: chmod o+x {folder}",
                )
        raise ConfigError(
            f"QEMU's user {_user_name(owner)} cannot read {path}.",
            hint="Set images.group to a group that this user is in.",
        )


def backing_path(path: str) -> str:
    """Return the file that a qcow2 overlay names as its base; empty when there is none.

    :raises ConfigError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            header = file.read(20)
            if len(header) < 20 or header[:4] != _QCOW2_MAGIC:
                return ""
            offset, length = struct.unpack(">QI", header[8:20])
            if offset == 0:
                return ""
            file.seek(offset)
            name = file.read(min(length, _LONGEST_NAME)).decode(errors="replace")
    except OSError as error:
        raise ConfigError(f"Could not read disk {path}: {error.strerror}.") from error
    return str(Path(path).parent / name)


def _is_own(definition: InstanceDefinition, disk: DiskAttachment) -> bool:
    return Path(disk.path).is_relative_to(definition.directory)


def _give(disk: DiskAttachment, owner: tuple[int, int]) -> None:
    try:
        handle = os.open(disk.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ConfigError(f"Disk {disk.path} is no regular file.")
            if os.geteuid() == 0:
                os.fchown(handle, *owner)
            os.fchmod(handle, 0o400 if disk.is_read_only else 0o600)
        finally:
            os.close(handle)
    except OSError as error:
        raise ConfigError(
            f"Could not give disk {disk.path} to QEMU's user {_user_name(owner)}: {error.strerror}."
        ) from error


def _may(owner: tuple[int, int], access: str, paths: Sequence[str]) -> bool:
    """Say whether QEMU's user has an access (as of ``test``) to all paths, asked of the kernel."""
    wanted = [word for path in paths for word in (access, path, "-a")][:-1]
    try:
        run(
            [
                "setpriv",
                f"--reuid={owner[0]}",
                f"--regid={owner[1]}",
                f"--groups={','.join(map(str, sorted(_groups(owner))))}",
                "test",
                *wanted,
            ],
            deadline_s=10,
        )
    except CommandFailed:
        return False
    return True


def _groups(owner: tuple[int, int]) -> set[int]:
    """Return the groups that libvirt gives to QEMU: those of the user, its own one included."""
    try:
        user = pwd.getpwuid(owner[0])
    except KeyError:
        return {owner[1]}
    return {owner[1], *os.getgrouplist(user.pw_name, user.pw_gid)}


def _user_name(owner: tuple[int, int]) -> str:
    try:
        return pwd.getpwuid(owner[0]).pw_name
    except KeyError:
        return str(owner[0])
