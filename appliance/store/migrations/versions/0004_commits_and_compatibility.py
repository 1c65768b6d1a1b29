"""Which transactions were committed, and which releases can work with the tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "commits",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("is_done", sa.Boolean(), nullable=False),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_commits"),
    )
    op.create_index("ix_commits_at", "commits", ["at"])
    op.create_table(
        "compatibility",
        sa.Column("revision", sa.String(32), nullable=False),
        sa.Column("works_since", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("revision", name="pk_compatibility"),
    )


def downgrade() -> None:
    op.drop_table("compatibility")
    op.drop_table("commits")
