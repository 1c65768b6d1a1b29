"""Migrations of the store: expand, then migrate, then contract, so that a neighbour can follow.

A program works with tables that it does not know, as long as later releases have only added to
them: the store says since which revision that is so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, delete, insert, inspect, select, text
from sqlalchemy.exc import DBAPIError

from appliance.errors import ConfigError, Unavailable
from appliance.store import Store
from appliance.store.schema import compatibility

WORKS_SINCE = "0001"
"""The oldest release whose programs work with this release's tables.

A migration that takes something away raises it to the first release that does without."""

PATIENCE_S = 120.0
"""Seconds for which one waits while another node brings the tables to this release's."""

_LOCK = 7240531


def upgrade(store: Store) -> None:
    """Bring the store's tables to this release's; nothing happens when they are, or are later.

    Of several nodes that start at once, one does it, and the others wait.

    :raises ConfigError: the store was written by a later release, which has taken away something
        that this one needs.
    :raises Unavailable: the store does not answer.
    """
    config = AlembicConfig()
    config.set_main_option("script_location", "appliance.store:migrations")
    scripts = ScriptDirectory.from_config(config)
    head = scripts.get_current_head()
    known = {script.revision for script in scripts.walk_revisions()}
    try:
        with store.engine.connect() as connection:
            if _is_done(connection, head, known):
                return
            with _alone(store, connection):
                if not _is_done(connection, head, known):
                    config.attributes["connection"] = connection
                    command.upgrade(config, "head")
                    _note(connection, str(head))
    except DBAPIError as error:
        raise Unavailable(f"Could not prepare the store: {error.orig}.") from error


def _is_done(connection: Connection, head: str | None, known: set[str]) -> bool:
    with connection.begin():
        current = MigrationContext.configure(connection).get_current_revision()
        if current is None or current == head:
            return current is not None
        if current in known:
            return False
        query = select(compatibility.c.works_since).where(compatibility.c.revision == current)
        has_table = inspect(connection).has_table(compatibility.name)
        if has_table and connection.execute(query).scalar() in known:
            return True
    raise ConfigError(
        f"The store was written by a later release (revision {current}).",
        hint="Install that release, or restore the store's backup.",
    )


def _note(connection: Connection, revision: str) -> None:
    with connection.begin():
        connection.execute(delete(compatibility))
        connection.execute(insert(compatibility).values(revision=revision, works_since=WORKS_SINCE))


@contextmanager
def _alone(store: Store, connection: Connection) -> Iterator[None]:
    """Let one node at a time change tables, which may take as long as it does."""
    if connection.dialect.name == "sqlite":
        yield  # a lone node's: its lock has been taken
        return
    from appliance.store import on_postgresql

    driver = on_postgresql.driver_of(connection)
    deadline = time.monotonic() + PATIENCE_S
    while not _locked(connection):
        if time.monotonic() > deadline:
            raise Unavailable("Another node has been changing the store's tables for too long.")
        time.sleep(0.1)
    try:
        with connection.begin():
            connection.execute(text("SET statement_timeout = 0; SET lock_timeout = '30s'"))
        driver.answer_s = None
        yield
    finally:
        # What was set goes with the connection, and so does the lock.
        connection.invalidate()
        connection.close()


def _locked(connection: Connection) -> bool:
    with connection.begin():
        return bool(connection.execute(select(text(f"pg_try_advisory_lock({_LOCK})"))).scalar())
