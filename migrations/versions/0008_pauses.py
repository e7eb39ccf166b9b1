"""Which indexes and tenants operators have paused.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_INSTANT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "outbox_pauses",
        sa.Column("index_name", sa.Text(), nullable=False, comment="empty: every index"),
        sa.Column("tenant_id", sa.Text(), nullable=False, comment="in any spelling; empty: rows of every tenant"),
        sa.Column("paused_at", _INSTANT, nullable=False),
        sa.Column("paused_by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("index_name", "tenant_id"),
        comment="indexes and tenants whose rows no relay claims; outbox_control says whether all are paused",
    )


def downgrade() -> None:
    op.drop_table("outbox_pauses")
