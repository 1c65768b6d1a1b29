"""Nodes of a cluster: their certificates, tokens to join, the cluster's own secrets, leases."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in (
        sa.Column("address", sa.String(255), nullable=False, server_default=""),
        sa.Column("certificate", sa.Text(), nullable=False, server_default=""),
        sa.Column("is_control", sa.Boolean(), nullable=False, server_default=sa.true()),
        sa.Column("approved_vcpus", sa.Integer()),
        sa.Column("approved_memory_mib", sa.BigInteger()),
        sa.Column("approved_disk_gib", sa.BigInteger()),
    ):
        op.add_column("nodes", column)
    op.create_table(
        "join_tokens",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("node_name", sa.String(255), nullable=False),
        sa.Column("created_by", sa.String(255), nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("expires_at", sa.Float(53), nullable=False),
        sa.Column("used_at", sa.Float(53)),
        sa.Column("used_by", sa.String(64)),
        sa.Column("revoked_at", sa.Float(53)),
        sa.PrimaryKeyConstraint("id", name="pk_join_tokens"),
    )
    op.create_table(
        "revoked_certificates",
        sa.Column("serial", sa.String(64), nullable=False),
        sa.Column("node_id", sa.String(64), nullable=False),
        sa.Column("revoked_at", sa.Float(53), nullable=False),
        sa.Column("expires_at", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("serial", name="pk_revoked_certificates"),
    )
    op.create_table(
        "cluster_secrets",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("changed_at", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_cluster_secrets"),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("until", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )


def downgrade() -> None:
    for table in ("leases", "cluster_secrets", "revoked_certificates", "join_tokens"):
        op.drop_table(table)
    with op.batch_alter_table("nodes") as nodes:
        for column in ("address", "certificate", "is_control", "approved_vcpus"):
            nodes.drop_column(column)
        nodes.drop_column("approved_memory_mib")
        nodes.drop_column("approved_disk_gib")
