"""The triggers of a registry in SQLite's SQL: their text, and what a database has of them.

For each source of an entity's documents there is a trigger for each way to change its table. It inserts a row for every
document that was made of the changed row, or is now.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Select, literal_column, or_, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler

from outbox.entities.entity import Entity
from outbox.entities.registry import EntityRegistry
from outbox.errors import ConfigurationError
from outbox.triggers.sources import NEW, REPLACED, Refusal, Source, named, quoted, unique_keys
from outbox.triggers.trigger import (
    PREFIX,
    VIEW,
    Listed,
    Literals,
    Refused,
    Statement,
    Stored,
    Trigger,
    changed_columns,
    inserted,
    sources_by_table,
    statements_of,
    text_literal,
    unused,
    view_of,
)

MARK: Final = "/* outbox-relay "
"""Begins the comment by which a trigger is known as ours; its fingerprint follows."""

UNSEEN_KEY: Final = "is not in the models: no trigger sees the rows that INSERT OR REPLACE removes by it"
UNSEEN_KEY_REMEDY: Final = (
    "declare it in the model and install again, or write with ON CONFLICT DO UPDATE, or set PRAGMA "
    "recursive_triggers = ON in each connection that writes"
)

_OPERATIONS: Final = {
    # SQLite fires no DELETE trigger for a row that REPLACE removes, so those rows are looked for before.
    "replace": "BEFORE INSERT",
    "insert": "AFTER INSERT",
    "update_replace": "BEFORE UPDATE",
    "before_update": "BEFORE UPDATE",
    "before_delete": "BEFORE DELETE",
    "update": "AFTER UPDATE",
    "delete": "AFTER DELETE",
}


class _Literals(Literals, SQLiteCompiler):
    """Writes bytes as bytes, too: SQLAlchemy writes them as text, which SQLite finds equal to no bytes."""

    def special(self, stored: Any) -> str | None:
        return f"X'{stored.hex()}'" if isinstance(stored, bytes) else None


_DIALECT: Final = sqlite.dialect()
_DIALECT.statement_compiler = _Literals


def compiled(statement: Any) -> str:
    """The text of a statement, its values in it."""
    return str(statement.compile(dialect=_DIALECT, compile_kwargs={"literal_binds": True}))


# -- what a registry asks for -----------------------------------------------------------------------------------

_made: WeakKeyDictionary[EntityRegistry, tuple[int, list[Trigger]]] = WeakKeyDictionary()


def triggers_of(registry: EntityRegistry, _connection: Connection | None = None, /) -> list[Trigger]:
    """See `Language.triggers_of`."""
    known = _made.get(registry)
    if known is None or known[0] != registry.generation:
        known = _made[registry] = (registry.generation, list(_triggers(registry)))
    return known[1]


def _triggers(registry: EntityRegistry) -> Iterator[Trigger]:
    names: list[str] = []
    for entity in registry:
        for table, sources in sources_by_table(entity, compiled):
            if table.schema:
                raise ConfigurationError(
                    f"entity {entity.name!r}: {table.fullname} is in an attached database, whose triggers cannot write "
                    "to outbox_events"
                )
            for operation, when in _OPERATIONS.items():
                if statements := [each for source in sources for each in _statements(source, operation)]:
                    names.append(unused(f"{PREFIX}{table.name}_{entity.name}_{operation}", names))
                    yield _trigger(names[-1], table.name, entity, when, statements)


def _trigger(name: str, table: str, entity: Entity, when: str, statements: Sequence[Statement | Refused]) -> Trigger:
    columns: tuple[str, ...] | None = None
    if when.endswith("UPDATE"):
        columns = changed_columns(statements)
    condition = "" if columns is None else f"WHEN {_changed(columns)}\n"
    head = f"CREATE TRIGGER {quoted(name)} {when} ON {quoted(table)}\n{condition}BEGIN\n"
    rest = "".join(f"{_sql(each, columns)};\n" for each in statements) + "END"
    fingerprint = hashlib.sha256((head + rest).encode()).hexdigest()[:12]
    sql = f"{head}{MARK}{fingerprint} */\n{rest}"
    return Trigger(name, table, entity.name, (sql,), (f"DROP TRIGGER IF EXISTS {quoted(name)}",), sql, name)


def _sql(statement: Statement | Refused, changed: tuple[str, ...] | None) -> str:
    """`changed`: the columns of which one has changed, as the trigger's own condition says."""
    rows = _refused(statement.refusal) if isinstance(statement, Refused) else statement.rows
    if statement.columns is not None and statement.columns != changed:
        rows = rows.where(literal_column(f"({_changed(statement.columns)})"))
    return compiled(rows if isinstance(statement, Refused) else inserted(rows, statement.entity))


def _changed(columns: Iterable[str]) -> str:
    # Where a column compares without regard to case, 'ada' is not distinct from 'Ada'; in a document it is.
    return " OR ".join(f"OLD.{quoted(name)} COLLATE BINARY IS NOT NEW.{quoted(name)}" for name in columns)


def _statements(source: Source, operation: str) -> Iterator[Statement | Refused]:
    """What a trigger for changes of a table has to do."""
    if operation not in ("replace", "update_replace"):
        yield from statements_of(source, operation)
        return
    for key in unique_keys(source.table, compiled):
        if not key.determines(source.places):
            moved = [
                named(REPLACED, name).collate("BINARY").is_distinct_from(named(NEW, name)) for name in source.places
            ]
            rows = source.documents(REPLACED).where(key.condition, or_(*moved))
            yield Statement(REPLACED, rows, key.columns if operation == "update_replace" else None, source.entity)


def _refused(refusal: Refusal) -> Select[Any]:
    message: Any = literal_column(f"RAISE(ABORT, {text_literal(refusal.text)})")
    return select(message).where(*refusal.conditions)


# -- what a database has ---------------------------------------------------------------------------------------


def stored(connection: Connection, _registry: EntityRegistry | None = None, /) -> Mapping[str, Stored]:
    """See `Language.stored`."""
    return {
        name: Stored(name, table, sql, MARK in sql, (f"DROP TRIGGER {quoted(name)}",))
        for name, table, sql in _named_like_ours(connection, "trigger")
    }


def listed(connection: Connection, /) -> list[Listed] | None:
    """See `Language.listed`."""
    if VIEW not in [name for name, _, _ in _named_like_ours(connection, "view")]:
        return None
    return [tuple(line) for line in connection.exec_driver_sql(f"SELECT name, table_name, entity FROM {VIEW}")]


def view(made: Sequence[Trigger], /) -> list[str]:
    """See `Language.view`."""
    return [view_of(made)]


def leftovers(_connection: Connection, /) -> list[str]:
    """See `Language.leftovers`."""
    return []


def _named_like_ours(connection: Connection, kind: str) -> Iterator[tuple[str, str, str]]:
    found = connection.exec_driver_sql(
        "SELECT name, tbl_name, sql FROM sqlite_master WHERE type = ? AND substr(name, 1, 7) = ? ORDER BY name",
        (kind, PREFIX),
    )
    return (tuple(row) for row in found)


def unseen_keys(connection: Connection, registry: EntityRegistry, /) -> list[str]:
    """See `Language.unseen_keys`: those that the models lack, by which REPLACE removes rows."""
    unseen = []
    by_table: dict[str, list[Source]] = {}
    for entity in registry:
        for table, sources in sources_by_table(entity, compiled):
            by_table.setdefault(table.name, []).extend(sources)
    for name, sources in by_table.items():
        keys = unique_keys(sources[0].table, compiled)
        for index, columns in _unique_indexes(connection, name):
            seen = index in {key.index_name for key in keys} or columns in {frozenset(key.columns) for key in keys}
            if not seen and not all(columns.issuperset(source.places) for source in sources):
                unseen.append(f"{index} on {name}")
    return unseen


def _unique_indexes(connection: Connection, table: str) -> Iterator[tuple[str, frozenset[str | None]]]:
    """The unique indexes of a table with their columns; None: an expression."""
    sql = 'SELECT i.name, c.name FROM pragma_index_list(?) i, pragma_index_info(i.name) c WHERE i."unique"'
    columns: dict[str, set[str | None]] = {}
    for index, column in connection.exec_driver_sql(sql, (table,)):
        columns.setdefault(index, set()).add(column)
    for index in sorted(columns):
        yield index, frozenset(columns[index])
