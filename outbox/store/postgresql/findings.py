"""Whether the server and the database are as the outbox needs them."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from outbox.errors import in_one_line
from outbox.store.dialect import Finding, finding

OLDEST: Final = 130_000  # 64-bit numbers of transactions, as functions take them

_SETTINGS: Final = (
    "server_version", "server_version_num", "server_encoding", "synchronous_commit", "fsync", "full_page_writes",
    "autovacuum", "transaction_read_only",
)  # fmt: skip


def findings(engine: Engine, address: str) -> list[Finding]:
    """The server's version, the database, and the settings that the outbox relies on."""
    try:
        found = _read(engine)
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
    ]


def _read(engine: Engine) -> dict[str, Any]:
    with engine.connect() as connection:
        asked = ", ".join(f"current_setting('{name}')" for name in _SETTINGS)
        return dict(zip(_SETTINGS, connection.exec_driver_sql(f"SELECT {asked}").one(), strict=True))
