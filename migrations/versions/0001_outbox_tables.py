"""The outbox tables.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

from outbox.store.ddl import Now, some_rows
from outbox.store.postgresql.ddl import MORE

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "outbox_control",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column(
            "epoch",
            sa.Integer(),
            server_default="1",
            nullable=False,
            comment="the upper part of every version",
        ),
        sa.Column(
            "highest_pruned_version",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            server_default="0",
            nullable=False,
        ),
        sa.Column(
            "paused_at",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=True,
            comment="NULL: not paused",
        ),
        sa.Column("paused_by", sa.Text(), nullable=True),
        sa.Column("pause_reason", sa.Text(), nullable=True),
        sa.CheckConstraint("id = 1", name="ck_outbox_control_one_row"),
        sa.PrimaryKeyConstraint("id"),
        comment="one row: what holds for all relays",
    )
    op.create_table(
        "outbox_documents",
        sa.Column(
            "event_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
        ),
        sa.Column("document", sa.Text(), nullable=False, comment="JSON object on one line"),
        sa.PrimaryKeyConstraint("event_id"),
        comment="content of outbox_events, apart because each change of state rewrites the row it stands in",
    )
    op.create_table(
        "outbox_events",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
            comment="order of the row and the lower part of its version",
        ),
        sa.Column(
            "action",
            sa.Text(),
            nullable=False,
            comment="index: the document; update: fields to merge; delete; refresh: load it",
        ),
        sa.Column("index_name", sa.Text(), nullable=False, comment="the alias that readers use"),
        sa.Column("document_id", sa.Text(), nullable=False, comment="the _id in the index"),
        sa.Column("tenant_id", sa.Text(), nullable=True),
        sa.Column(
            "entity",
            sa.Text(),
            nullable=True,
            comment="name of the registered entity the document was made of, if any",
        ),
        sa.Column(
            "document_bytes",
            sa.Integer(),
            nullable=True,
            comment="size of the document; NULL: unknown, measured at the claim",
        ),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column(
            "attempts",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="failures of the document itself",
        ),
        sa.Column("deliveries", sa.Integer(), server_default="0", nullable=False, comment="times it was claimed"),
        sa.Column(
            "available_at",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=True,
            comment="not before; NULL: now, and never claimed so far",
        ),
        sa.Column(
            "claim_token",
            sa.Text(),
            nullable=True,
            comment="fence: whoever lost it may not write the outcome",
        ),
        sa.Column("claimed_by", sa.Integer(), nullable=True, comment="outbox_relays.id"),
        sa.Column(
            "lease_expires_at",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=True,
            comment="until then the claim holds",
        ),
        sa.Column(
            "created_at",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            server_default=Now(),
            nullable=False,
        ),
        sa.Column("finished_at", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column(
            "outcome",
            sa.Text(),
            nullable=True,
            comment="how a done row ended: applied, deleted, superseded, coalesced, retried",
        ),
        sa.Column("error_type", sa.Text(), nullable=True),
        sa.Column(
            "error",
            sa.Text(),
            nullable=True,
            comment="the last failure, control characters escaped, at most 2,000 characters",
        ),
        sa.CheckConstraint(
            "action = 'index' OR action = 'update' OR action = 'delete' OR action = 'refresh'",
            name="ck_outbox_events_action",
        ),
        sa.CheckConstraint(
            "state = 'pending' OR state = 'claimed' OR state = 'done' OR state = 'dead'", name="ck_outbox_events_state"
        ),
        sa.PrimaryKeyConstraint("id"),
        comment="one row for each change that the search index has to follow",
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_outbox_events_dead",
        "outbox_events",
        ["index_name", "document_id", "id"],
        unique=False,
        **some_rows("state = 'dead'"),
    )
    op.create_index(
        "ix_outbox_events_done",
        "outbox_events",
        ["finished_at"],
        unique=False,
        **some_rows("state = 'done'"),
    )
    op.create_index(
        "ix_outbox_events_fresh",
        "outbox_events",
        ["index_name", sa.text("coalesce(tenant_id, '')"), "id"],
        unique=False,
        **some_rows("state = 'pending' AND available_at IS NULL"),
    )
    op.create_index(
        "ix_outbox_events_held",
        "outbox_events",
        ["index_name", "document_id", "id"],
        unique=False,
        **some_rows("state = 'claimed' OR (state = 'pending' AND available_at IS NOT NULL)"),
    )
    op.create_index(
        "ix_outbox_events_leases",
        "outbox_events",
        ["lease_expires_at"],
        unique=False,
        **some_rows("state = 'claimed'"),
    )
    op.create_index(
        "ix_outbox_events_waiting",
        "outbox_events",
        ["available_at", "id"],
        unique=False,
        **some_rows("state = 'pending' AND available_at IS NOT NULL"),
    )
    op.create_table(
        "outbox_indexes",
        sa.Column("index_name", sa.Text(), nullable=False, comment="the name that rows and readers use"),
        sa.Column("physical_index", sa.Text(), nullable=False, comment="where its rows are sent"),
        sa.Column(
            "created_at",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            server_default=Now(),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("index_name", "physical_index"),
        comment="where the rows of an index go",
    )
    op.create_table(
        "outbox_relays",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("started_at", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("heartbeat_at", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "breakers",
            sa.Text(),
            server_default="[]",
            nullable=False,
            comment="JSON: what is paused, why, since",
        ),
        sa.PrimaryKeyConstraint("id"),
        comment="running relays; one that ends takes its row away, one that was killed stops its heartbeat",
        sqlite_autoincrement=True,
    )
    op.create_table(
        "outbox_stats",
        sa.Column(
            "minute",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
            comment="its beginning",
        ),
        sa.Column("index_name", sa.Text(), nullable=False),
        sa.Column("entity", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("done", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), server_default="0", nullable=False),
        sa.Column("dead", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), server_default="0", nullable=False),
        sa.Column(
            "retried",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            server_default="0",
            nullable=False,
        ),
        sa.Column(
            "superseded",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            server_default="0",
            nullable=False,
        ),
        sa.Column(
            "lost_claims",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            server_default="0",
            nullable=False,
        ),
        sa.Column(
            "latency_sum_ms",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            server_default="0",
            nullable=False,
        ),
        sa.Column(
            "latency_le_10ms",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            server_default="0",
            nullable=False,
        ),
        sa.Column(
            "latency_le_25ms",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            server_default="0",
            nullable=False,
        ),
        sa.Column(
            "latency_le_50ms",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            server_default="0",
            nullable=False,
        ),
        sa.Column(
            "latency_le_100ms",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            server_default="0",
            nullable=False,
        ),
        sa.Column(
            "latency_le_250ms",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            server_default="0",
            nullable=False,
        ),
        sa.Column(
            "latency_le_500ms",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            server_default="0",
            nullable=False,
        ),
        sa.Column(
            "latency_le_1000ms",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            server_default="0",
            nullable=False,
        ),
        sa.Column(
            "latency_le_2500ms",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            server_default="0",
            nullable=False,
        ),
        sa.Column(
            "latency_le_5000ms",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            server_default="0",
            nullable=False,
        ),
        sa.Column(
            "latency_le_10000ms",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            server_default="0",
            nullable=False,
        ),
        sa.Column(
            "latency_le_30000ms",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            server_default="0",
            nullable=False,
        ),
        sa.Column(
            "latency_le_60000ms",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            server_default="0",
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("minute", "index_name", "entity", "tenant_id", "action"),
        comment="what became of the rows, by minute; kept when the rows are gone",
        sqlite_with_rowid=False,
    )
    op.execute("INSERT INTO outbox_control (id) VALUES (1)")
    if op.get_context().dialect.name == "postgresql":
        for statement in MORE:
            op.execute(statement)


def downgrade() -> None:
    for table in (
        "outbox_stats",
        "outbox_control",
        "outbox_relays",
        "outbox_indexes",
        "outbox_documents",
        "outbox_events",
    ):
        op.drop_table(table)
