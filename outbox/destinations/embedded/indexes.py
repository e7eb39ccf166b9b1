"""Physical indexes of the file and the aliases that lead to them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from outbox.destinations import misled
from outbox.destinations.base import Outcome, index_missing
from outbox.destinations.differences import merged


def find(connection: sqlite3.Connection, name: str) -> str | None:
    """The physical index of an alias, or of its own name."""
    found = connection.execute(
        "SELECT index_name FROM aliases WHERE name = :name UNION ALL SELECT name FROM indexes WHERE name = :name",
        {"name": name},
    ).fetchone()
    return found[0] if found else None


def make(
    connection: sqlite3.Connection, target: str, mappings: Mapping[str, Any] | None, settings: Mapping[str, Any] | None
) -> None:
    """A physical index without an alias."""
    connection.execute(
        "INSERT INTO indexes (name, mappings, settings) VALUES (?, ?, ?)",
        (target, *(None if each is None else json.dumps(each) for each in (mappings, settings))),
    )


def drop(connection: sqlite3.Connection, target: str, most: int | None) -> bool:
    """Remove at most `most` documents of an index, and the index with the last of them. Whether some are left."""
    numbers = connection.execute(
        "SELECT number FROM documents WHERE index_name = ? LIMIT ?", (target, -1 if most is None else most)
    ).fetchall()
    for table, key in (("words", "rowid"), ("words_due", "document"), ("documents", "number")):
        connection.executemany(f"DELETE FROM {table} WHERE {key} = ?", numbers)
    if numbers and most is not None:
        return True
    connection.execute("DELETE FROM aliases WHERE index_name = ?", (target,))
    connection.execute("DELETE FROM indexes WHERE name = ?", (target,))
    return False


def require(connection: sqlite3.Connection, name: str) -> str:
    """As `find`; raises `IndexMissing`."""
    found = find(connection, name)
    if found is None:
        raise index_missing(name)
    return found


def exists(connection: sqlite3.Connection, target: str) -> bool:
    """Whether there is a physical index of that name."""
    return _mappings_of(connection, target) is not None


def _mappings_of(connection: sqlite3.Connection, target: str) -> dict[str, Any] | None:
    """The mappings of a physical index, empty if it has none; None if there is no such index."""
    found = connection.execute("SELECT coalesce(mappings, '{}') FROM indexes WHERE name = ?", (target,)).fetchone()
    return json.loads(found[0]) if found else None


def mappings_of(connection: sqlite3.Connection, target: str) -> dict[str, Any]:
    """The mappings of a physical index, empty if it has none. Raises `IndexMissing`."""
    found = _mappings_of(connection, target)
    if found is None:
        raise index_missing(target)
    return found


def amend(connection: sqlite3.Connection, target: str, mappings: Mapping[str, Any]) -> None:
    """Add fields to the mappings of a physical index, or parameters to its fields. Raises `IndexMissing`."""
    amended = merged(mappings_of(connection, target), mappings)
    connection.execute("UPDATE indexes SET mappings = ? WHERE name = ?", (json.dumps(amended), target))


def usable(connection: sqlite3.Connection, name: str, target: str) -> Mapping[str, Any] | Outcome:
    """The mappings of the index that rows of `name` go to; or why they must wait."""
    mappings = _mappings_of(connection, target)
    reader = find(connection, name)
    if mappings is None or reader != target:
        return misled.outcome(name, target, exists=mappings is not None, readers=(reader,) if reader else ())
    return mappings


def lead(connection: sqlite3.Connection, name: str, target: str) -> None:
    """Make the alias `name` lead to the index, wherever it led before."""
    connection.execute("INSERT OR REPLACE INTO aliases (name, index_name) VALUES (?, ?)", (name, target))
