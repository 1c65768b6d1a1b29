"""An API for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.front import Front


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    """Return an API of its own for one test."""
    made = Front(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def ec2(front: Front) -> Any:
    """Return a boto3 client of a member of the project ``demo``."""
    return front.client()
