"""What verifications have found.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_INSTANT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "outbox_verifications",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("started_at", _INSTANT, nullable=False),
        sa.Column("finished_at", _INSTANT, nullable=True, comment="NULL: it runs, or was killed"),
        sa.Column("started_by", sa.Text(), nullable=False),
        sa.Column("scheduled", sa.Integer(), server_default="0", nullable=False),
        sa.Column("entities", sa.Text(), nullable=False, comment="JSON list of names"),
        sa.Column("tenant_id", sa.Text(), nullable=True, comment="NULL: all tenants"),
        sa.Column("sample", sa.Float(), nullable=False, comment="part of the documents, 1: all"),
        *(
            sa.Column(name, _INSTANT, server_default="0", nullable=False)
            for name in (
                "documents",
                "listed",
                "missing",
                "different",
                "extra",
                "version",
                "failed",
                "in_flight",
                "repaired",
            )
        ),
        sa.Column("error", sa.Text(), nullable=True, comment="why it did not come to its end"),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
        comment="what comparisons of index and database have found, the newest hundred",
    )


def downgrade() -> None:
    op.drop_table("outbox_verifications")
