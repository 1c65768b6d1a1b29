"""What has taken effect, of messages that are kept outside of the store."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.sql.base import Executable

from appliance.store import Transaction
from appliance.store.schema import handled


def _taking(is_sqlite: bool) -> Executable:
    values: dict[str, Any] = {
        name: bindparam(name) for name in ("consumer", "message_id", "handled_at")
    }
    made = (sqlite_insert if is_sqlite else pg_insert)(handled).values(values)
    # Not the count of rows: of an INSERT the drivers do not all tell it.
    return made.on_conflict_do_nothing().returning(handled.c.message_id)


_TAKE = {is_sqlite: _taking(is_sqlite) for is_sqlite in (True, False)}


def take(tx: Transaction, consumer: str, message_id: str) -> bool:
    """Note that a message takes effect in this transaction; ``False`` when it did before."""
    values = {"consumer": consumer, "message_id": message_id, "handled_at": tx.now}
    return tx.execute(_TAKE[tx.is_sqlite], values).first() is not None
