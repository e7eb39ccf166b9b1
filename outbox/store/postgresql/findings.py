"""Whether the server and the database are as the outbox needs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from outbox.errors import in_one_line
from outbox.store.dialect import Finding, finding
from outbox.store.postgresql import pooler

OLDEST: Final = 130_000  # 64-bit numbers of transactions, as functions take them

_SETTINGS: Final = (
    "server_version", "server_version_num", "server_encoding", "synchronous_commit", "fsync", "full_page_writes",
    "autovacuum", "transaction_read_only",
)  # fmt: skip

LONG_S: Final = 600
# Those of other roles have no time here, unless ours may see it (pg_read_all_stats). A prepared one has no process.
_OLDEST: Final = """
    SELECT what, role, CAST(extract(epoch FROM clock_timestamp() - since) AS BIGINT) FROM (
        SELECT 'process ' || pid AS what, usename::text AS role, xact_start AS since FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
        UNION ALL
        SELECT 'prepared as ' || quote_literal(gid), owner::text, prepared FROM pg_prepared_xacts
        WHERE database = current_database()
    ) AS open WHERE since IS NOT NULL ORDER BY since LIMIT 1
"""


def findings(engine: Engine, address: str) -> list[Finding]:
    """The server's version, the database, and the settings that the outbox relies on."""
    try:
        found, oldest, pooled = _read(engine)
    except DBAPIError as error:
        remedy = "check OUTBOX_DATABASE_URL, and that the server runs and lets this user in"
        return [Finding("database", "fail", f"{address} cannot be read: {in_one_line(error.orig)}", remedy)]
    lost = [name for name in ("fsync", "full_page_writes", "synchronous_commit") if found[name] == "off"]
    return [
        finding(
            "postgresql",
            int(found["server_version_num"]) >= OLDEST,
            f"PostgreSQL {found['server_version']}",
            "use PostgreSQL 13 or newer",
        ),
        finding(
            "database",
            found["transaction_read_only"] == "off",
            f"{address} can be read{'' if found['transaction_read_only'] == 'off' else ', and not written to'}",
            "have OUTBOX_DATABASE_URL name the primary server, and a user whose transactions may write",
        ),
        *([Finding("connection", "fail", f"{address} {pooler.SHARED}", pooler.REMEDY)] if pooled else []),
        finding(
            "encoding",
            found["server_encoding"] == "UTF8",
            f"texts are stored as {found['server_encoding']}",
            "make the database with ENCODING 'UTF8': others cannot hold every document",
        ),
        finding(
            "durability",
            not lost,
            "commits are on disk when they are confirmed" if not lost else f"{' and '.join(lost)} off",
            "turn it on: after a crash of the server the index has changes that the database has lost",
        ),
        finding(
            "autovacuum",
            found["autovacuum"] == "on",
            f"autovacuum is {found['autovacuum']}",
            "turn it on: the outbox tables grow without end, and claims become slow",
            "warn",
        ),
        _transactions(oldest),
    ]


def _transactions(oldest: Sequence[Any] | None) -> Finding:
    """Of the one that is open for longest."""
    what, role, seconds = oldest or ("", "", 0)
    return finding(
        "transactions",
        seconds < LONG_S,
        f"one of {role} is open for {seconds:,} s ({what})" if seconds >= LONG_S else "none is open for long",
        "end it: until then no dead version of a row is removed, so claims become slow, and a verification may wait",
        "warn",
    )


def _read(engine: Engine) -> tuple[dict[str, Any], Sequence[Any] | None, bool]:
    """The settings, the oldest transaction of others, and whether a session is shared with them."""
    with engine.connect() as connection:
        asked = ", ".join(f"current_setting('{name}')" for name in _SETTINGS)
        found = connection.exec_driver_sql(f"SELECT {asked}").one()
        oldest = connection.exec_driver_sql(_OLDEST).first()
        connection.rollback()
        driver = connection.connection.driver_connection
        pooled = pooler.shares_sessions(driver, engine.raw_connection)
        return dict(zip(_SETTINGS, found, strict=True)), oldest, pooled
