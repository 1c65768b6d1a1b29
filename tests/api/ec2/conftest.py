"""A stage for all tests of a module that leave each other's things alone."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from appliance.config import Config, QuotaSettings
from tests.api.ec2.examples.stage import Stage
from tests.api.front import Front
from tests.services.stores import KINDS, on_store


@pytest.fixture(scope="module", params=KINDS)
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """Return the API as an admin of the project ``demo`` calls it, with ample quota."""
    quota = QuotaSettings(
        instances=1000,
        vcpus=10_000,
        memory_mib=10**8,
        security_groups=1000,
        key_pairs=1000,
    )
    with on_store(request, msgspec.structs.replace(Config(), quota=quota)) as config:
        front = Front(tmp_path_factory.mktemp("stage"), config)
        yield Stage(front)
        front.close()


@pytest.fixture(scope="module")
def neighbour(stage: Stage) -> Stage:
    """Return the same API as an admin of another project calls it."""
    return Stage(stage.front, stage.front.make_project("neighbour").project_id)
