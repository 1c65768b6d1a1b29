"""Whose messages were given up, of those whom nobody vouches for, and how many are not kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("outbox", sa.Column("sender", sa.String(64), nullable=False, server_default=""))
    op.create_index(
        "ix_outbox_sender_dead_at",
        "outbox",
        ["sender", "dead_at"],
        sqlite_where=sa.text("sender <> ''"),
        postgresql_where=sa.text("sender <> ''"),
    )
    op.create_table(
        "forgotten_letters",
        sa.Column("sender", sa.String(64), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("sender", name=op.f("pk_forgotten_letters")),
    )


def downgrade() -> None:
    op.drop_table("forgotten_letters")
    op.drop_index("ix_outbox_sender_dead_at", "outbox")
    op.drop_column("outbox", "sender")
