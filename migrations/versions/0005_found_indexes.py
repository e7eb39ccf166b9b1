"""Which indexes were there before any row was sent to them.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "outbox_indexes",
        sa.Column(
            "found",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="1: others may have filled it, and no epoch has been begun since",
        ),
    )


def downgrade() -> None:
    op.drop_column("outbox_indexes", "found")
