"""Triggers, generated from the registry: the database notes changes of entities itself, whichever program makes them.

They write the same `refresh` rows as capture does: on the table of an entity, and on the tables of whatever else
its documents are made of. Where they are as the registry asks for them, capture steps aside.

    triggers.install(connection, registry)    what is missing or out of date; what 'outbox-relay triggers install' does
    triggers.create(op, registry)             in a migration of the application's own, offline too
    triggers.drop(op, registry)               before a migration rebuilds a table that any of them reads

A view, `outbox_triggers`, lists what was installed: a rebuilt table loses its triggers without a word, and the view is
how `outbox-relay check` knows that there were any.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from sqlalchemy import DDL, Connection
from sqlalchemy.exc import DBAPIError

from outbox.entities.entity import Entity
from outbox.entities.registry import EntityRegistry
from outbox.errors import ConfigurationError
from outbox.triggers import sqlite
from outbox.triggers.sources import quoted, sources_of, unique_keys
from outbox.triggers.sqlite import MARK, VIEW, Trigger, triggers_of


class Standing(NamedTuple):
    """A trigger that a database has, or should have. `state`: `ok`, `missing`, `stale` or `foreign`."""

    name: str
    table: str
    state: str
    detail: str


class Executes(Protocol):
    """A connection, or Alembic's `op`."""

    def execute(self, statement: Any, /) -> Any: ...


# -- what an application calls ----------------------------------------------------------------------------------


def create_sql(registry: EntityRegistry) -> list[str]:
    """The statements that make all triggers of a registry anew, whether or not they are there."""
    made = triggers_of(registry)
    return [*drop_sql(registry), *(each.sql for each in made), sqlite.view(made)]


def drop_sql(registry: EntityRegistry) -> list[str]:
    """The statements that remove them."""
    return [
        *(f"DROP TRIGGER IF EXISTS {quoted(each.name)}" for each in triggers_of(registry)),
        f"DROP VIEW IF EXISTS {VIEW}",
    ]


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


# -- what a database has ----------------------------------------------------------------------------------------


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
        if sqlite.stored(connection, "view").get(VIEW, ("", ""))[1] != sqlite.view(made):
            _execute(connection, [f"DROP VIEW IF EXISTS {VIEW}", sqlite.view(made)])
    except DBAPIError as error:
        remedy = "create the tables of the application first"
        if "on view" in str(error.orig):
            remedy = "say in its model that the table is a view: Table(…, info={'is_view': True})"
        raise ConfigurationError(f"the triggers cannot be created: {error.orig}; {remedy}") from error
    return wrong


def remove(connection: Connection) -> list[str]:
    """Remove all triggers that outbox-relay made, of whatever registry. Returns their names."""
    _require_triggers(connection)
    names = [name for name, (_, sql) in sqlite.stored(connection, "trigger").items() if MARK in sql]
    _execute(connection, [*(f"DROP TRIGGER {quoted(name)}" for name in names), f"DROP VIEW IF EXISTS {VIEW}"])
    return names


def status(connection: Connection, registry: EntityRegistry) -> list[Standing]:
    """Each trigger that the registry asks for, and each further one of ours."""
    _require_triggers(connection)
    stored = sqlite.stored(connection, "trigger")
    found = [_standing(made, stored.pop(made.name, None)) for made in triggers_of(registry)]
    return found + [
        Standing(name, table, "stale", "the registry asks for no such trigger")
        for name, (table, sql) in stored.items()
        if MARK in sql
    ]


def _has_triggers(connection: Connection) -> bool:
    """Whether triggers can be made for this kind of database."""
    return connection.dialect.name == "sqlite"


def _require_triggers(connection: Connection) -> None:
    if not _has_triggers(connection):
        raise ConfigurationError(
            f"triggers are for SQLite only so far, and this database is {connection.dialect.name}: captured sessions "
            "note the changes"
        )


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
    if not _has_triggers(connection):
        return False
    ours = any(MARK in sql for _, sql in sqlite.stored(connection, "trigger").values())
    return ours or VIEW in sqlite.stored(connection, "view")


def unseen_keys(connection: Connection, registry: EntityRegistry) -> list[str]:
    """Unique keys of the database that the models lack: by those REPLACE removes rows that no trigger sees."""
    unseen = []
    sources = [source for entity in registry for source in sources_of(entity)]
    for table in {source.table.name: source.table for source in sources}.values():
        keys = unique_keys(table)
        places = [source.places for source in sources if source.table.name == table.name]
        for index, columns in sqlite.unique_indexes(connection, table.name):
            seen = index in {key.index_name for key in keys} or columns in {frozenset(key.columns) for key in keys}
            if not seen and not all(columns.issuperset(each) for each in places):
                unseen.append(f"{index} on {table.name}")
    return unseen


def covered(connection: Connection, registry: EntityRegistry) -> frozenset[Entity]:
    """The entities that have all of their triggers: their changes are noted by the database itself."""
    if not _has_triggers(connection):
        return frozenset()
    stored = sqlite.stored(connection, "trigger")
    if not any(MARK in sql for _, sql in stored.values()):
        return frozenset()
    lacking = {each.entity for each in triggers_of(registry) if stored.get(each.name, ("", ""))[1] != each.sql}
    return frozenset(entity for entity in registry if entity.name not in lacking)
