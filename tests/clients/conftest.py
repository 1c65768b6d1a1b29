"""One sandbox for all clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.testing.sandbox import Sandbox
from tests.clients.endpoint import Endpoint


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """A sandbox in a process of its own, and a home for its user."""
    home = tmp_path_factory.mktemp("clients")
    with Sandbox() as sandbox:
        yield Endpoint(variables=sandbox.environment, home=home)
