"""What operators did, by whom and when.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_INSTANT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "outbox_audit",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("began_at", _INSTANT, nullable=False),
        sa.Column("ended_at", _INSTANT, comment="NULL: it goes on, or was killed"),
        sa.Column("acted_by", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False, comment="as the command is called"),
        sa.Column("about", sa.Text(), nullable=False, comment="what it was told: the selection, or the reason"),
        sa.Column("affected", _INSTANT, comment="how many rows or documents; NULL: it is not about any"),
        sa.Column("error", sa.Text(), comment="why it failed"),
        sqlite_autoincrement=True,
        comment="what operators did, by whom and when",
    )


def downgrade() -> None:
    op.drop_table("outbox_audit")
