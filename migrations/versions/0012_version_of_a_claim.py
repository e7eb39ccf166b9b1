"""A version for each claim, instead of the id of the row.

Its token is the lower part. Tokens begin above every id: what was sent before is older than all that is to come, also
what a relay of the version before still has in flight.

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_INSTANT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_STEP = 10**12


def upgrade() -> None:
    op.add_column(
        "outbox_events",
        sa.Column(
            "version",
            _INSTANT,
            comment="unfinished: from which version on the index may have it, NULL: none; done, dead: the one it was "
            "sent with",
        ),
    )
    op.add_column(
        "outbox_control",
        sa.Column(
            "last_token",
            _INSTANT,
            server_default="0",
            nullable=False,
            comment="the lower part of the last version",
        ),
    )
    op.add_column(
        "outbox_reindex_jobs",
        sa.Column("last_id", _INSTANT, comment="up to it all rows were finished when the watermark was drawn"),
    )
    # What was delivered and is not finished was sent as `epoch * 10^12 + id`; what is finished sorts by its id alone.
    for unfinished in ("state = 'claimed'", "state = 'pending' AND available_at IS NOT NULL AND deliveries > 0"):
        op.execute(
            f"UPDATE outbox_events SET version = id + (SELECT epoch FROM outbox_control) * {_STEP} WHERE {unfinished}"
        )
    if op.get_context().dialect.name == "sqlite":  # elsewhere tokens are of a sequence, and no row is older than it
        op.execute(
            "UPDATE outbox_control SET last_token ="
            " coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'outbox_events'), 0)"
        )
    op.execute(f"UPDATE outbox_reindex_jobs SET last_id = watermark % {_STEP}")
    op.execute("UPDATE outbox_reindex_jobs SET phase = 'sweep' WHERE phase = 'wait'")


def downgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        op.execute(
            "UPDATE sqlite_sequence SET seq = max(seq, (SELECT last_token FROM outbox_control))"
            " WHERE name = 'outbox_events'"
        )
    op.drop_column("outbox_reindex_jobs", "last_id")
    op.drop_column("outbox_control", "last_token")
    op.drop_column("outbox_events", "version")
