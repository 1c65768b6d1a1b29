"""Migrations of the store: expand, then migrate, then contract, so that a neighbour can follow."""

from __future__ import annotations

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError

from appliance.errors import ConfigError, Unavailable
from appliance.store import Store


def upgrade(store: Store) -> None:
    """Bring the store's tables to this release's; nothing happens when they are.

    :raises ConfigError: the store was written by a later release, which this one does not know.
    :raises Unavailable: the store does not answer.
    """
    config = AlembicConfig()
    config.set_main_option("script_location", "appliance.store:migrations")
    known = ScriptDirectory.from_config(config)
    try:
        with store.engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
            connection.rollback()
            if current == known.get_current_head():
                return
            if current is not None and current not in {s.revision for s in known.walk_revisions()}:
                raise ConfigError(
                    f"The store was written by a later release (revision {current}).",
                    hint="Install that release, or restore the store's backup.",
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except DBAPIError as error:
        raise Unavailable(f"Could not prepare the store: {error.orig}.") from error
