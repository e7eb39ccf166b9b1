"""A record of each attempt that failed, and the field that an error names, by which dead rows are counted.

What failed before is not in it: of such a row there is its last error alone, and no field.

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op

from outbox.store.ddl import some_rows

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_INSTANT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "outbox_failures",
        sa.Column("event_id", _INSTANT, nullable=False, comment="the row: outbox_events.id"),
        sa.Column(
            "attempt",
            sa.Integer(),
            nullable=False,
            comment="1: its first that failed; a dead row that is retried counts on",
        ),
        sa.Column("failed_at", _INSTANT, nullable=False),
        sa.Column("relay", sa.Integer(), comment="outbox_relays.id of the relay that had it; NULL: none"),
        sa.Column("host", sa.Text(), comment="where that relay ran"),
        sa.Column("pid", sa.Integer(), comment="the process that it was there"),
        sa.Column(
            "state", sa.Text(), nullable=False, comment="of the row after it: pending, to be tried again, or dead"
        ),
        sa.Column("error_type", sa.Text()),
        sa.Column("error_field", sa.Text(), comment="the field that the error names, if it names one"),
        sa.Column("error", sa.Text(), comment="as in outbox_events"),
        sa.PrimaryKeyConstraint("event_id", "attempt"),
        sqlite_with_rowid=False,
        comment="one row for each attempt that failed, kept as long as its row; what succeeds at once leaves none",
    )
    op.add_column(
        "outbox_events",
        sa.Column("error_field", sa.Text(), comment="the field that this error names, if it names one"),
    )
    op.create_index(
        "ix_outbox_events_causes",
        "outbox_events",
        ["error_type", "error_field", "index_name", "finished_at", "tenant_id"],
        unique=False,
        **some_rows("state = 'dead'"),
    )


def downgrade() -> None:
    op.drop_index("ix_outbox_events_causes", "outbox_events")
    op.drop_column("outbox_events", "error_field")
    op.drop_table("outbox_failures")
