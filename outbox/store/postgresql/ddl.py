"""What the tables need beyond columns, as PostgreSQL says it. Ids are of sequences, which never go back."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import text

NOW: Final = "CAST(floor(extract(epoch FROM clock_timestamp()) * 1000) AS BIGINT)"

PRESENCE: Final = "outbox_presence"

# A row is written three times within a second, and the claim reads by indexes that hold few of them: the defaults,
# which wait for a fifth of the table, let both grow to several times their size.
_VACUUM: Final = (
    "ALTER TABLE outbox_events SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,"
    " autovacuum_vacuum_cost_delay = 0, autovacuum_vacuum_insert_scale_factor = 0,"
    " autovacuum_vacuum_insert_threshold = 100000)"
)
# Which processes have shown that they are there: see `presence`. It need not outlive a crash of the server.
_PRESENCE: Final = (
    f"CREATE UNLOGGED TABLE IF NOT EXISTS {PRESENCE} (kind TEXT NOT NULL, name TEXT NOT NULL,"
    " server_started TIMESTAMPTZ NOT NULL, PRIMARY KEY (kind, name))"
)

TOKENS: Final = "outbox_tokens"
"""The sequence of which claims draw the lower part of their versions."""

MORE: Final = (_VACUUM, _PRESENCE, f"CREATE SEQUENCE IF NOT EXISTS {TOKENS}")
"""Statements that follow the tables."""

LESS: Final = (f"DROP TABLE IF EXISTS {PRESENCE}", f"DROP SEQUENCE IF EXISTS {TOKENS}")
"""Statements that come before the tables are dropped."""


def some_rows(condition: str) -> dict[str, Any]:
    return {"postgresql_where": text(condition)}


def is_own(row: str) -> str:
    """Whether a row that can be seen was written by this transaction, be it in a savepoint, which has a number of its
    own: of what can be seen, only that is of a transaction in progress. `row`: its table.

    `xmin` is the lower half of that number; those of savepoints are above that of the transaction itself.
    """
    number = "pg_current_xact_id_if_assigned()::text::bigint"
    since = f"({row}.xmin::text::bigint - {number} & 4294967295)"
    return (
        f"CASE WHEN {since} < 2147483648"
        f" THEN pg_xact_status(({number} + {since})::text::xid8) = 'in progress' ELSE false END"
    )
