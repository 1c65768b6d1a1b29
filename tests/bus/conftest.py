"""Buses of nodes on the session's broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bus.places import Places, places_in
from tests.services.rabbitmq import VirtualHost


@pytest.fixture
def places(vhost: VirtualHost, tmp_path: Path) -> Iterator[Places]:
    """Nodes' buses on a virtual host of their own."""
    with places_in(vhost, tmp_path) as made:
        yield made
