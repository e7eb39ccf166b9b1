"""How long each relay has waited for the write lock and held it.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_INSTANT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_COLUMNS = {
    "lock_waited_ms": "for the write lock, since it started",
    "lock_held_ms": "the write lock, since it started",
    "lock_longest_ms": "the longest of these",
}


def upgrade() -> None:
    for name, comment in _COLUMNS.items():
        column = sa.Column(name, _INSTANT, server_default="0", nullable=False, comment=comment)
        op.add_column("outbox_relays", column)


def downgrade() -> None:
    for name in _COLUMNS:
        op.drop_column("outbox_relays", name)
