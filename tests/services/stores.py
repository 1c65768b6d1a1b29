"""A store of each kind, for tests that must hold on all of them.

Loaded by the root ``conftest.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from appliance.config import Config
from tests.services.postgresql import PostgreSQL

KINDS = ("sqlite", "postgresql")


def store_url_of(request: pytest.FixtureRequest, kind: str, *, is_empty: bool) -> Iterator[str]:
    """Yield the URL of a new store; a SQLite one has nothing yet."""
    if kind == "sqlite":
        folder: Path = request.getfixturevalue("tmp_path")
        yield f"sqlite:///{folder / 'store.sqlite'}"
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    with server.database(is_empty=is_empty) as url:
        yield url


@contextmanager
def on_store(request: pytest.FixtureRequest, base: Config) -> Iterator[Config]:
    """Yield settings with a store of the kind that is the parameter of a fixture."""
    if request.param == "sqlite":
        yield base
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    with server.database() as url:
        yield replace(base, store=replace(base.store, url=url))


@pytest.fixture(params=KINDS)
def store_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a new store of each kind; whether it has tables already is not said."""
    yield from store_url_of(request, request.param, is_empty=False)


@pytest.fixture(params=KINDS)
def empty_store_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a new store of each kind that has no tables."""
    yield from store_url_of(request, request.param, is_empty=True)


@pytest.fixture
def postgresql_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a database on PostgreSQL that has this release's tables."""
    yield from store_url_of(request, "postgresql", is_empty=False)
