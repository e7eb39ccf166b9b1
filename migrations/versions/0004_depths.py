"""How full the outbox was, by minute.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_INSTANT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "outbox_depths",
        sa.Column("minute", _INSTANT, autoincrement=False, nullable=False, comment="its beginning"),
        sa.Column(
            "unfinished",
            _INSTANT,
            nullable=False,
            comment="the most rows that were seen pending or claimed in it",
        ),
        sa.Column("oldest_ms", _INSTANT, nullable=False, comment="the greatest age of such a row"),
        sa.PrimaryKeyConstraint("minute"),
        comment="how full the outbox was, by minute, as relays and the admin server saw it",
    )


def downgrade() -> None:
    op.drop_table("outbox_depths")
