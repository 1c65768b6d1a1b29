"""The migrations lead to the tables that the code uses, and leave a finished store alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from appliance.errors import ConfigError
from appliance.store import Store, migrations, schema
from appliance.world import World
from tests.faults.rounds import answers, at_once
from tests.services.postgresql import PostgreSQL


@pytest.fixture
def store(empty_store_url: str) -> Iterator[Store]:
    made = Store(empty_store_url, World())
    yield made
    made.close()


def alembic(store: Store, call: str, revision: str) -> None:
    config = AlembicConfig()
    config.set_main_option("script_location", "appliance.store:migrations")
    with store.engine.connect() as connection:
        config.attributes["connection"] = connection
        getattr(command, call)(config, revision)


def run(store: Store, statement: str) -> None:
    store.transaction(lambda tx: tx.execute(text(statement)))


def ask(store: Store, query: str) -> object:
    return store.read(lambda tx: tx.execute(text(query)).scalar())


def test_migrations_make_the_tables_of_the_schema(store: Store) -> None:
    migrations.upgrade(store)
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, schema.metadata) == []


@pytest.mark.parametrize("revision", ["0001", "0002", "0003"])
def test_an_older_store_is_brought_to_this_release(store: Store, revision: str) -> None:
    alembic(store, "upgrade", revision)
    migrations.upgrade(store)
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, schema.metadata) == []
    run(store, "INSERT INTO cluster (key, value) VALUES ('a', 'b')")


def test_the_way_back_is_there(store: Store) -> None:
    migrations.upgrade(store)
    alembic(store, "downgrade", "base")
    migrations.upgrade(store)
    run(store, "INSERT INTO cluster (key, value) VALUES ('a', 'b')")


def test_revisions_are_those_of_the_files() -> None:
    config = AlembicConfig()
    config.set_main_option("script_location", "appliance.store:migrations")
    scripts = ScriptDirectory.from_config(config)
    assert migrations.revisions() == [one.revision for one in scripts.walk_revisions()][::-1]
    assert migrations.revisions()[-1] == scripts.get_current_head()


def test_a_finished_store_needs_no_alembic(tmp_path: Path) -> None:
    program = (
        "import sys; from appliance.store import Store, migrations; "
        "from appliance.world import World; "
        f"migrations.upgrade(Store('sqlite:///{tmp_path}/store.sqlite', World())); "
        "print('alembic' in sys.modules)"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    ]
    assert said == ["True", "False"]


def test_a_finished_store_is_left_alone(store: Store) -> None:
    migrations.upgrade(store)
    run(store, "INSERT INTO cluster (key, value) VALUES ('a', 'b')")
    migrations.upgrade(store)
    assert ask(store, "SELECT value FROM cluster") == "b"


@pytest.mark.parametrize("says", ["nothing", "since 9998"])
def test_a_store_of_a_later_release_is_refused(store: Store, says: str) -> None:
    migrations.upgrade(store)
    run(store, "UPDATE alembic_version SET version_num = '9999'")
    if says != "nothing":
        run(store, "UPDATE compatibility SET revision = '9999', works_since = '9998'")
    with pytest.raises(ConfigError, match="later release"):
        migrations.upgrade(store)


def test_a_later_release_that_only_added_is_worked_with(store: Store) -> None:
    migrations.upgrade(store)
    run(store, "UPDATE alembic_version SET version_num = '9999'")
    run(store, "UPDATE compatibility SET revision = '9999', works_since = '0003'")
    run(store, "ALTER TABLE cluster ADD COLUMN later VARCHAR(8) NOT NULL DEFAULT 'x'")
    migrations.upgrade(store)
    run(store, "INSERT INTO cluster (key, value) VALUES ('a', 'b')")
    assert ask(store, "SELECT version_num FROM alembic_version") == "9999"


def test_nodes_that_start_at_once_do_it_once(postgresql: PostgreSQL) -> None:
    with postgresql.database(is_empty=True) as url:
        stores = [Store(url, World()) for _ in range(4)]
        answers(at_once([partial(migrations.upgrade, store) for store in stores]))
        for store in stores:
            run(store, "UPDATE compatibility SET works_since = works_since")
            assert ask(store, "SELECT COUNT(*) FROM compatibility") == 1
            store.close()
        held = "SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory'"
        assert postgresql.execute(held) == [(0,)]
