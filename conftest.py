"""What all tests of the tree share."""

from __future__ import annotations

import pytest

pytest_plugins = [
    "tests.parallel",
    "tests.rig.fixtures",
    "tests.faults.table",
    "tests.services.postgresql",
    "tests.services.rabbitmq",
    "tests.services.own",
    "tests.services.stores",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of this project's tests."""
    parser.addoption(
        "--regenerate",
        action="store_true",
        help="write golden files anew from what the code makes now, then look at the difference",
    )


@pytest.fixture
def is_regenerating(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written instead of compared."""
    return bool(request.config.getoption("--regenerate"))
