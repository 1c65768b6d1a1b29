"""Fixtures for all tests that need a rig; loaded by the root ``conftest.py``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.rig import Rig


def require(*programs: str) -> None:
    """Skip the test when it is not root or a program is missing, with the name of what lacks."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"this machine lacks {', '.join(missing)}")


@pytest.fixture(scope="session")
def libvirt_rig() -> Iterator[Rig]:
    """A rig with libvirt's daemons running; all tests of real instances share it."""
    require("unshare", "nsenter", "libvirtd", "virtlogd", "qemu-system-x86_64")
    with Rig("libvirt") as rig:
        rig.start_libvirt()
        yield rig
