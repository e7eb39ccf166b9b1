"""What the tables need beyond columns, as SQLite says it."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import text

NOW: Final = "(CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER))"
"""Works on every SQLite since 3.8, where unixepoch('subsec') needs 3.42."""

NEVER_REUSED: Final = {"sqlite_autoincrement": True}  # without it SQLite gives the id of a deleted row to the next one

KEPT_BY_KEY: Final = {"sqlite_with_rowid": False}


def some_rows(condition: str) -> dict[str, Any]:
    return {"sqlite_where": text(condition)}
