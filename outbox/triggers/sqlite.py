"""The triggers of a registry in SQLite's SQL: their text, and what a database has of them.

For each source of an entity's documents there is a trigger for each way to change its table. It inserts a row for every
document that was made of the changed row, or is now.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Select, Text, insert, literal, literal_column, or_, select

from outbox.entities.entity import Entity
from outbox.entities.registry import EntityRegistry
from outbox.errors import ConfigurationError
from outbox.store import models
from outbox.store.models import Action
from outbox.triggers.sources import (
    NEW,
    OLD,
    REPLACED,
    Refusal,
    Source,
    compiled,
    named,
    quoted,
    sources_of,
    unique_keys,
)

VIEW: Final = "outbox_triggers"
PREFIX: Final = "outbox_"
MARK: Final = "/* outbox-relay "

UNSEEN_KEY: Final = "is not in the models: no trigger sees the rows that INSERT OR REPLACE removes by it"
UNSEEN_KEY_REMEDY: Final = (
    "declare it in the model and install again, or write with ON CONFLICT DO UPDATE, or set PRAGMA "
    "recursive_triggers = ON in each connection that writes"
)
"""Begins the comment by which a trigger is known as ours; its fingerprint follows."""

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


class Trigger(NamedTuple):
    """A trigger: its name, the table and the entity it is for, and the whole of its SQL."""

    name: str
    table: str
    entity: str
    sql: str


_made: WeakKeyDictionary[EntityRegistry, tuple[int, list[Trigger]]] = WeakKeyDictionary()


def triggers_of(registry: EntityRegistry) -> list[Trigger]:
    """All triggers of a registry. Raises `ConfigurationError` for what triggers cannot follow."""
    known = _made.get(registry)
    if known is None or known[0] != registry.generation:
        known = _made[registry] = (registry.generation, list(_triggers(registry)))
    return known[1]


def _triggers(registry: EntityRegistry) -> Iterator[Trigger]:
    names: list[str] = []
    for entity in registry:
        by_table: dict[str, list[Source]] = {}
        for source in sources_of(entity):
            if source.table.schema:
                raise ConfigurationError(
                    f"entity {entity.name!r}: {source.table.fullname} is in an attached database, whose triggers "
                    "cannot write to outbox_events"
                )
            by_table.setdefault(source.table.name, []).append(source)
        for table, sources in by_table.items():
            for operation, when in _OPERATIONS.items():
                if statements := [each for source in sources for each in _statements(source, operation)]:
                    names.append(_unused(f"{PREFIX}{table}_{entity.name}_{operation}", names))
                    yield _trigger(names[-1], table, entity, when, statements)


def _unused(name: str, taken: Iterable[str]) -> str:
    """Tables and entities may have such names that two triggers would have the same."""
    used = {each.lower() for each in taken}
    names = (name if number == 1 else f"{name}_{number}" for number in count(1))
    return next(each for each in names if each.lower() not in used)


def _trigger(name: str, table: str, entity: Entity, when: str, statements: Sequence[_Statement]) -> Trigger:
    columns: tuple[str, ...] | None = None
    if when.endswith("UPDATE"):
        columns = tuple(dict.fromkeys(each for statement in statements for each in statement.columns or ()))
    condition = "" if columns is None else f"WHEN {_changed(columns)}\n"
    head = f"CREATE TRIGGER {quoted(name)} {when} ON {quoted(table)}\n{condition}BEGIN\n"
    rest = "".join(f"{statement.sql(columns)};\n" for statement in statements) + "END"
    fingerprint = hashlib.sha256((head + rest).encode()).hexdigest()[:12]
    return Trigger(name, table, entity.name, f"{head}{MARK}{fingerprint} */\n{rest}")


class _Statement(NamedTuple):
    """A statement of a trigger: rows to insert, or a refusal. `columns`: whose change calls for it; None: always."""

    rows: Select[Any]
    columns: tuple[str, ...] | None
    entity: Entity | None  # None: a refusal, which inserts nothing

    def sql(self, changed: tuple[str, ...] | None) -> str:
        """`changed`: the columns of which one has changed, as the trigger's own condition says."""
        rows = self.rows
        if self.columns is not None and self.columns != changed:
            rows = rows.where(literal_column(f"({_changed(self.columns)})"))
        if self.entity is None:
            return compiled(rows)
        rows = rows.add_columns(
            literal(Action.REFRESH.value, Text).label("action"),
            literal(self.entity.name, Text).label("entity"),
            literal(0).label("document_bytes"),
        )
        return compiled(insert(models.events).from_select([each["name"] for each in rows.column_descriptions], rows))


def _changed(columns: Iterable[str]) -> str:
    # Where a column compares without regard to case, 'ada' is not distinct from 'Ada'; in a document it is.
    return " OR ".join(f"OLD.{quoted(name)} COLLATE BINARY IS NOT NEW.{quoted(name)}" for name in columns)


def _statements(source: Source, operation: str) -> Iterator[_Statement]:
    """What a trigger for changes of a table has to do."""
    counts = source.counts if operation == "update" else None
    if operation in ("insert", "update"):
        if source.refusal is not None:
            yield _Statement(_refused(source.refusal), counts, None)
        if operation == "update" and not source.told_before:
            yield _Statement(source.documents(OLD), source.places, source.entity)
        yield _Statement(source.documents(NEW), counts, source.entity)
    elif operation in ("before_update", "before_delete"):
        if source.told_before:
            places = source.places if operation == "before_update" else None
            yield _Statement(source.documents(OLD), places, source.entity)
    elif operation == "delete":
        if not source.told_before:
            yield _Statement(source.documents(OLD), None, source.entity)
    else:
        for key in unique_keys(source.table):
            if not key.determines(source.places):
                moved = [
                    named(REPLACED, name).collate("BINARY").is_distinct_from(named(NEW, name)) for name in source.places
                ]
                rows = source.documents(REPLACED).where(key.condition, or_(*moved))
                yield _Statement(rows, key.columns if operation == "update_replace" else None, source.entity)


def _refused(refusal: Refusal) -> Select[Any]:
    message: Any = literal_column(f"RAISE(ABORT, {text_literal(refusal.text)})")
    return select(message).where(*refusal.conditions)


def text_literal(value: str) -> str:
    """A string as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"


def view(made: Sequence[Trigger]) -> str:
    """The statement that makes the view which lists what was installed."""
    lines = [f"({', '.join(map(text_literal, (each.name, each.table, each.entity)))})" for each in made]
    values = f"VALUES {', '.join(lines)}" if lines else "SELECT NULL, NULL, NULL WHERE 0"
    return f"CREATE VIEW {VIEW} (name, table_name, entity) AS {values}"


# -- what a database has ---------------------------------------------------------------------------------------


def stored(connection: Connection, kind: str) -> dict[str, tuple[str, str]]:
    """Table and SQL of what the database has by our names: of the kind "trigger" or "view"."""
    found = connection.exec_driver_sql(
        "SELECT name, tbl_name, sql FROM sqlite_master WHERE type = ? AND substr(name, 1, 7) = ? ORDER BY name",
        (kind, PREFIX),
    )
    return {name: (table, sql) for name, table, sql in found}


def unique_indexes(connection: Connection, table: str) -> Iterator[tuple[str, frozenset[str | None]]]:
    """The unique indexes of a table with their columns; None: an expression."""
    sql = 'SELECT i.name, c.name FROM pragma_index_list(?) i, pragma_index_info(i.name) c WHERE i."unique"'
    columns: dict[str, set[str | None]] = {}
    for index, column in connection.exec_driver_sql(sql, (table,)):
        columns.setdefault(index, set()).add(column)
    for index in sorted(columns):
        yield index, frozenset(columns[index])
