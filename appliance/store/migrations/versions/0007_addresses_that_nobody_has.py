"""The addresses of a network that nobody has, in their order: for whoever takes the first.

PostgreSQL takes no order from an index whose first columns are compared with NULL.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_BY_PORT = "ix_addresses_network_id_port_id_position"
_UNUSED = "ix_addresses_unused"


def upgrade() -> None:
    unused = sa.text("port_id IS NULL")
    op.create_index(
        _UNUSED,
        "addresses",
        ["network_id", "position"],
        postgresql_where=unused,
        sqlite_where=unused,
    )
    op.drop_index(_BY_PORT, "addresses")


def downgrade() -> None:
    op.create_index(_BY_PORT, "addresses", ["network_id", "port_id", "position"])
    op.drop_index(_UNUSED, "addresses")
