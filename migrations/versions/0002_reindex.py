"""Reindex jobs, and more than one physical index for the rows of an index.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

from outbox.store.ddl import Now, some_rows

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INSTANT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column(
        "outbox_indexes",
        sa.Column("role", sa.Text(), server_default="live", nullable=False, comment="live, new or old; one is live"),
    )
    op.add_column(
        "outbox_indexes",
        sa.Column(
            "refused",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="documents that an old one did not take",
        ),
    )
    op.create_table(
        "outbox_reindex_jobs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("index_name", sa.Text(), nullable=False),
        sa.Column(
            "old_index",
            sa.Text(),
            nullable=False,
            comment="the physical index that was live when it began",
        ),
        sa.Column("new_index", sa.Text(), nullable=True, comment="the one it fills; NULL: it works in place"),
        sa.Column("state", sa.Text(), server_default="running", nullable=False),
        sa.Column("phase", sa.Text(), nullable=False, comment="the step it is at"),
        sa.Column("tenant_id", sa.Text(), nullable=True, comment="only documents of this tenant"),
        sa.Column("since", sa.Text(), nullable=True, comment="only rows that changed from then on"),
        sa.Column("keep_old", sa.Integer(), server_default="0", nullable=False),
        sa.Column(
            "adopt", sa.Integer(), server_default="0", nullable=False, comment="the old index has the name itself"
        ),
        sa.Column(
            "watermark",
            INSTANT,
            nullable=True,
            comment="version of its documents; older rows must be finished before the swap",
        ),
        sa.Column(
            "position", sa.Text(), nullable=True, comment="JSON: entity and primary key that the scan has come to"
        ),
        sa.Column("documents", sa.Integer(), server_default="0", nullable=False, comment="written by the scan so far"),
        sa.Column(
            "refused",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="that could not be made or written",
        ),
        sa.Column("removed", sa.Integer(), server_default="0", nullable=False, comment="by the sweep"),
        sa.Column(
            "total", sa.Integer(), server_default="0", nullable=False, comment="rows of its entities when it began"
        ),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("lease_token", sa.Text(), nullable=True, comment="fence: who lost it may not go on"),
        sa.Column("lease_holder", sa.Text(), nullable=True),
        sa.Column("lease_expires_at", INSTANT, nullable=True),
        sa.Column("created_at", INSTANT, server_default=Now(), nullable=False),
        sa.Column("updated_at", INSTANT, server_default=Now(), nullable=False),
        sa.Column("finished_at", INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("id"),
        comment="rebuilds of indexes; a watermark explains versions, so finished jobs stay",
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_outbox_reindex_jobs_open",
        "outbox_reindex_jobs",
        ["index_name"],
        unique=True,
        **some_rows("state = 'running' OR state = 'failing' OR state = 'cancelling'"),
    )


def downgrade() -> None:
    op.drop_table("outbox_reindex_jobs")
    op.execute("DELETE FROM outbox_indexes WHERE role <> 'live'")
    op.drop_column("outbox_indexes", "refused")
    op.drop_column("outbox_indexes", "role")
