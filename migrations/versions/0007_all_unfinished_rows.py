"""The index that says what a row has to wait for holds all unfinished rows, those that nobody has looked at too.

It keeps its name, and the condition of before stands in the new one as it was: by both, the statements of a relay of
the version before, which finishes what it has in flight, find it.

Revision ID: 0007
Revises: 0006
"""

from alembic import op

from outbox.store.ddl import some_rows

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_NAME = "ix_outbox_events_held"
_BEFORE = "state = 'claimed' OR (state = 'pending' AND available_at IS NOT NULL)"
_NOW = f"({_BEFORE}) OR (state = 'pending' AND available_at IS NULL)"


def upgrade() -> None:
    _make(_NOW)


def downgrade() -> None:
    _make(_BEFORE)


def _make(condition: str) -> None:
    op.drop_index(_NAME, "outbox_events")
    op.create_index(_NAME, "outbox_events", ["index_name", "document_id", "id"], unique=False, **some_rows(condition))
