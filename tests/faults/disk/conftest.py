"""What is preloaded into processes whose writes fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.disk import shim
from tests.rig.fixtures import require


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is preloaded, compiled once."""
    require("gcc", "unshare", "mount")
    return shim.build(tmp_path_factory.mktemp("shim"))
