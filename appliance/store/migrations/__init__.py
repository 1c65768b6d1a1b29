"""Migrations of the store: expand, then migrate, then contract, so that a neighbour can follow.

A program works with tables that it does not know, as long as later releases have only added to
them: the store says since which revision that is so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

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
    known = revisions()
    try:
        with store.engine.connect() as connection:
            if _is_done(connection, known):
                return
            with _alone(store, connection):
                if not _is_done(connection, known):
                    _bring_up(connection)
                    _note(connection, known[-1])
    except DBAPIError as error:
        raise Unavailable(f"Could not prepare the store: {error.orig}.") from error


def revisions() -> list[str]:
    """Return the revisions that this release knows, oldest first: what its files begin with."""
    folder = Path(__file__).parent / "versions"
    return sorted(path.name.partition("_")[0] for path in folder.glob("[0-9]*.py"))


def _bring_up(connection: Connection) -> None:
    # It takes 11 MiB, and most starts find the tables as they should be.
    from alembic import command
    from alembic.config import Config as AlembicConfig

    config = AlembicConfig()
    config.set_main_option("script_location", "appliance.store:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _is_done(connection: Connection, known: Sequence[str]) -> bool:
    with connection.begin():
        current = _current(connection)
        if current is None or current == known[-1]:
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
