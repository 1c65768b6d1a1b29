"""When somebody last took a message of the outbox to publish it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "outbox", sa.Column("relayed_at", sa.Float(53), nullable=False, server_default="0")
    )


def downgrade() -> None:
    op.drop_column("outbox", "relayed_at")
