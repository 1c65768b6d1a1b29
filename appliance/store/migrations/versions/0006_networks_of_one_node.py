"""Which node has a network whose type ends at nodes, and the number of one that spans them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "networks", sa.Column("node_id", sa.String(64), nullable=False, server_default="")
    )
    op.add_column("networks", sa.Column("segment", sa.Integer()))
    op.create_index("ix_networks_segment", "networks", ["segment"], unique=True)


def downgrade() -> None:
    op.drop_index("ix_networks_segment", "networks")
    op.drop_column("networks", "segment")
    op.drop_column("networks", "node_id")
