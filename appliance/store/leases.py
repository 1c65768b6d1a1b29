"""Leases: who alone may do a thing for now, of all who could.

Times are those of whoever asks: nodes' clocks should agree to a fraction of a lease's length, and
what is done under a lease must be harmless when two do it.
"""

from __future__ import annotations

from sqlalchemy import bindparam, delete, or_
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.sql.base import Executable

from appliance.store import Transaction
from appliance.store.schema import leases


def _taking(is_sqlite: bool) -> Executable:
    made = (sqlite_insert if is_sqlite else pg_insert)(leases).values(
        name=bindparam("name"), owner=bindparam("owner"), until=bindparam("until")
    )
    return made.on_conflict_do_update(
        index_elements=[leases.c.name],
        set_={"owner": made.excluded.owner, "until": made.excluded.until},
        where=or_(leases.c.owner == made.excluded.owner, leases.c.until <= bindparam("now")),
    ).returning(leases.c.owner)


_TAKE = {is_sqlite: _taking(is_sqlite) for is_sqlite in (True, False)}


def take(tx: Transaction, name: str, owner: str, for_s: float) -> bool:
    """Take a lease for so many seconds, or longer when it is the owner's already.

    :returns: ``False`` when another has it; nothing was changed then.
    """
    values = {"name": name, "owner": owner, "until": tx.now + for_s, "now": tx.now}
    return tx.execute(_TAKE[tx.is_sqlite], values).first() is not None


def release(tx: Transaction, name: str, owner: str) -> None:
    """Give a lease up, so that another may take it at once; nothing when it is not the owner's."""
    tx.execute(delete(leases).where(leases.c.name == name, leases.c.owner == owner))
