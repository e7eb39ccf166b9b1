"""An index of dead rows by tenant: to look at those of one no longer reads those of all.

Revision ID: 0011
Revises: 0010
"""

from alembic import op

from outbox.store.ddl import some_rows

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_outbox_events_dead_of_tenant",
        "outbox_events",
        ["tenant_id", "error_type", "error_field", "index_name"],
        unique=False,
        **some_rows("state = 'dead'"),
    )


def downgrade() -> None:
    op.drop_index("ix_outbox_events_dead_of_tenant", "outbox_events")
