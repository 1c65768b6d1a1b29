"""The migrations lead to the tables that the code uses, and leave a finished store alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from appliance.errors import ConfigError
from appliance.store import Store, migrations, schema
from appliance.world import World


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"sqlite:///{tmp_path / 'store.sqlite'}", World())


def test_migrations_make_the_tables_of_the_schema(store: Store) -> None:
    migrations.upgrade(store)
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, schema.metadata) == []


def test_a_finished_store_is_left_alone(store: Store) -> None:
    migrations.upgrade(store)
    store.transaction(
        lambda tx: tx.execute(text("INSERT INTO cluster (key, value) VALUES ('a', 'b')"))
    )
    migrations.upgrade(store)
    assert store.read(lambda tx: tx.execute(text("SELECT value FROM cluster")).scalar()) == "b"


def test_a_store_of_a_later_release_is_refused(store: Store) -> None:
    migrations.upgrade(store)
    store.transaction(
        lambda tx: tx.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    )
    with pytest.raises(ConfigError, match="later release"):
        migrations.upgrade(store)
