"""Triggers that note changes of entities in the database itself, whoever makes them: generated from the registry.

They write the same `refresh` rows as `outbox.capture`: on the table of an entity, and on the tables of whatever else
its documents are made of. Where they stand as the registry says, capture steps aside.

    triggers.install(connection, registry)    what is missing or out of date; what 'outbox-relay triggers install' does
    triggers.create(op, registry)             in a migration of the application's own, offline too
    triggers.drop(op, registry)               before a migration rebuilds a table that any of them reads

A view, `outbox_triggers`, lists what was installed: a rebuilt table loses its triggers without a word, and the view is
how `outbox-relay check` knows that there were any.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from sqlalchemy import DDL, Connection, Engine
from sqlalchemy.exc import DBAPIError

from outbox.entities.entity import Entity
from outbox.entities.registry import EntityRegistry
from outbox.errors import ConfigurationError, DatabaseUnavailable
from outbox.triggers.sources import MARK, PREFIX, Trigger, quoted, sources_of, text_literal, triggers_of, unique_keys
from outbox.write import journal as rows

VIEW: Final = "outbox_triggers"


class Standing(NamedTuple):
    """A trigger that stands, or that should. `state`: `ok`, `missing`, `stale` or `foreign`."""

    name: str
    table: str
    state: str
    detail: str


class Executes(Protocol):
    """A connection, or Alembic's `op`."""

    def execute(self, statement: Any, /) -> Any: ...


# -- what an application calls ----------------------------------------------------------------------------------


def create_sql(registry: EntityRegistry) -> list[str]:
    """The statements that make all triggers of a registry anew, whether or not they stand."""
    made = triggers_of(registry)
    return [*drop_sql(registry), *(each.sql for each in made), _view(made)]


def drop_sql(registry: EntityRegistry) -> list[str]:
    """The statements that remove them."""
    return [
        *(f"DROP TRIGGER IF EXISTS {quoted(each.name)}" for each in triggers_of(registry)),
        f"DROP VIEW IF EXISTS {VIEW}",
    ]


def _view(made: Sequence[Trigger]) -> str:
    lines = [f"({', '.join(map(text_literal, (each.name, each.table, each.entity)))})" for each in made]
    values = f"VALUES {', '.join(lines)}" if lines else "SELECT NULL, NULL, NULL WHERE 0"
    return f"CREATE VIEW {VIEW} (name, table_name, entity) AS {values}"


def create(target: Executes, registry: EntityRegistry) -> None:
    """Make all triggers of a registry anew, through a connection or Alembic's `op` (offline: into its script)."""
    _execute(target, create_sql(registry))


def drop(target: Executes, registry: EntityRegistry) -> None:
    """Remove them in the same way. Changes made until `create` are noted by captured sessions only."""
    _execute(target, drop_sql(registry))


def _execute(target: Executes, statements: Iterable[str]) -> None:
    for statement in statements:
        # A string would be searched for parameters.
        target.execute(DDL(statement.replace("%", "%%")))  # type: ignore[no-untyped-call]


# -- what stands in a database ----------------------------------------------------------------------------------


def install(connection: Connection, registry: EntityRegistry) -> list[Standing]:
    """Bring the triggers of a database in step with the registry. Returns those that were missing or stale.

    Raises `ConfigurationError` where a foreign trigger has one of their names, or a table of an entity is missing.
    """
    wrong = [each for each in status(connection, registry) if each.state != "ok"]
    for each in wrong:
        if each.state == "foreign":
            raise ConfigurationError(
                f"trigger {each.name} on {each.table} has the name of one of ours, and outbox-relay did not make it; "
                "rename it"
            )
    made = triggers_of(registry)
    names = {each.name for each in wrong}
    try:
        _execute(connection, (f"DROP TRIGGER {quoted(each.name)}" for each in wrong if each.state == "stale"))
        _execute(connection, (each.sql for each in made if each.name in names))
        if _stored(connection, "view").get(VIEW, ("", ""))[1] != _view(made):
            _execute(connection, [f"DROP VIEW IF EXISTS {VIEW}", _view(made)])
    except DBAPIError as error:
        raise ConfigurationError(
            f"the triggers cannot be created: {error.orig}; create the tables of the application first"
        ) from error
    return wrong


def remove(connection: Connection) -> list[str]:
    """Remove all triggers that outbox-relay made, of whatever registry. Returns their names."""
    names = [name for name, (_, sql) in _stored(connection, "trigger").items() if MARK in sql]
    _execute(connection, [*(f"DROP TRIGGER {quoted(name)}" for name in names), f"DROP VIEW IF EXISTS {VIEW}"])
    return names


def status(connection: Connection, registry: EntityRegistry) -> list[Standing]:
    """Each trigger that the registry asks for, and each further one of ours."""
    stored = _stored(connection, "trigger")
    found = [_standing(made, stored.pop(made.name, None)) for made in triggers_of(registry)]
    return found + [
        Standing(name, table, "stale", "the registry asks for no such trigger")
        for name, (table, sql) in stored.items()
        if MARK in sql
    ]


def _standing(made: Trigger, stored: tuple[str, str] | None) -> Standing:
    if stored is None:
        return Standing(made.name, made.table, "missing", f"changes of {made.table} are not noted for {made.entity}")
    table, sql = stored
    if sql == made.sql:
        return Standing(made.name, table, "ok", "")
    if MARK in sql:
        return Standing(made.name, table, "stale", f"it is not what the registry says of {made.entity} now")
    return Standing(made.name, table, "foreign", "outbox-relay did not make it, and needs the name")


def installed(connection: Connection) -> bool:
    """Whether triggers were ever installed here, and not removed since."""
    ours = any(MARK in sql for _, sql in _stored(connection, "trigger").values())
    return ours or VIEW in _stored(connection, "view")


def _stored(connection: Connection, type_: str) -> dict[str, tuple[str, str]]:
    """Table and SQL of what the database has by our names."""
    found = connection.exec_driver_sql(
        "SELECT name, tbl_name, sql FROM sqlite_master WHERE type = ? AND substr(name, 1, 7) = ? ORDER BY name",
        (type_, PREFIX),
    )
    return {name: (table, sql) for name, table, sql in found}


def unseen_keys(connection: Connection, registry: EntityRegistry) -> list[str]:
    """Unique keys of the database that the models lack: by those REPLACE removes rows that no trigger sees."""
    unseen = []
    sources = [source for entity in registry for source in sources_of(entity)]
    for table in {source.table.name: source.table for source in sources}.values():
        keys = unique_keys(table)
        places = [source.places for source in sources if source.table.name == table.name]
        for index, columns in _unique_indexes(connection, table.name):
            seen = index in {key.index_name for key in keys} or columns in {frozenset(key.columns) for key in keys}
            if not seen and not all(columns.issuperset(each) for each in places):
                unseen.append(f"{index} on {table.name}")
    return unseen


def _unique_indexes(connection: Connection, table: str) -> Iterator[tuple[str, frozenset[str | None]]]:
    """The unique indexes of a table with their columns; None stands for expressions."""
    sql = 'SELECT i.name, c.name FROM pragma_index_list(?) i, pragma_index_info(i.name) c WHERE i."unique"'
    columns: dict[str, set[str | None]] = {}
    for index, column in connection.exec_driver_sql(sql, (table,)):
        columns.setdefault(index, set()).add(column)
    for index in sorted(columns):
        yield index, frozenset(columns[index])


class Seen(NamedTuple):
    """What was seen in a database at the beginning of a transaction."""

    schema_version: int
    covered: frozenset[Entity]
    generation: int
    at: float


class Watcher:
    """Which entities of a registry have all of their triggers in a database, by the version of its schema.

    Only what was seen at the beginning of a transaction is remembered: a version that a transaction makes, and is
    rolled back, is given to another schema afterwards.
    """

    def __init__(self, registry: EntityRegistry) -> None:
        self._registry = registry
        self._seen: WeakKeyDictionary[Engine, Seen] = WeakKeyDictionary()

    def seen(self, engine: Engine) -> Seen | None:
        """What was seen last."""
        seen = self._seen.get(engine)
        return seen if seen and seen.generation == self._registry.generation else None

    def remember(self, connection: Connection, version: int) -> Seen:
        """Look at the beginning of a transaction."""
        seen, engine = self.seen(connection.engine), connection.engine
        covered = seen.covered if seen and seen.schema_version == version else self.look(connection)
        self._seen[engine] = seen = Seen(version, covered, self._registry.generation, time.monotonic())
        return seen

    def forget(self, engine: Engine) -> None:
        """Look again at the next beginning."""
        self._seen.pop(engine, None)

    def look(self, connection: Connection) -> frozenset[Entity]:
        """The entities whose changes the database notes by itself."""
        stored = _stored(connection, "trigger")
        if not any(MARK in sql for _, sql in stored.values()):
            return frozenset()
        lacking = {
            each.entity for each in triggers_of(self._registry) if stored.get(each.name, ("", ""))[1] != each.sql
        }
        return frozenset(entity for entity in self._registry if entity.name not in lacking)


def schema_version(journal: rows.Journal) -> int:
    """Another number after each change of the schema, as this transaction sees it."""
    return _number(journal, "PRAGMA schema_version")


def last_event_id(journal: rows.Journal) -> int:
    """The highest id that was ever given to a row of the outbox, as this transaction sees it."""
    return _number(journal, "SELECT seq FROM sqlite_sequence WHERE name = 'outbox_events'")


def _number(journal: rows.Journal, sql: str) -> int:
    """Through the driver, since it is asked in each of the application's transactions."""
    cursor = journal.driver.cursor()
    try:
        cursor.execute(sql)
        found = cursor.fetchone()
    except journal.connection.dialect.loaded_dbapi.Error as error:
        raise DatabaseUnavailable(f"the triggers of the database cannot be looked for: {error}") from error
    finally:
        cursor.close()
    return 0 if found is None else int(found[0])
