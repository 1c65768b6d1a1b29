"""A control node and a machine beside it, for the tests of trust."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.trust import ControlNode, Machine


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlNode]:
    """A control node that lets others in."""
    made = ControlNode(tmp_path)
    yield made
    made.close()


@pytest.fixture
def machine(control: ControlNode) -> Machine:
    """A machine that is in no cluster."""
    return Machine(control, "second")
