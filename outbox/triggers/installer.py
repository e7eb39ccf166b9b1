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

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from sqlalchemy import DDL, Connection
from sqlalchemy.exc import DBAPIError

from outbox.entities.entity import Entity
from outbox.entities.registry import EntityRegistry
from outbox.errors import ConfigurationError, in_one_line
from outbox.triggers import postgresql, sqlite
from outbox.triggers.trigger import VIEW, Language, Stored, Trigger, lines_of

_LANGUAGES: Final[dict[str, Language]] = {"sqlite": sqlite, "postgresql": postgresql}


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


def create_sql(registry: EntityRegistry, dialect: str = "sqlite") -> list[str]:
    """The statements that make all triggers of a registry anew, whether or not they are there. `dialect`: "sqlite" or
    "postgresql"."""
    return _create_sql(dialect, registry, None)


def drop_sql(registry: EntityRegistry, dialect: str = "sqlite") -> list[str]:
    """The statements that remove them."""
    return _drop_sql(_language(dialect).triggers_of(registry, None))


def create(target: Executes, registry: EntityRegistry) -> None:
    """Make all triggers of a registry anew, through a connection or Alembic's `op` (offline: into its script)."""
    dialect, connection = _reached_by(target)
    _execute(target, _create_sql(dialect, registry, connection))


def drop(target: Executes, registry: EntityRegistry) -> None:
    """Remove them in the same way. Changes made until `create` are noted by captured sessions only."""
    _execute(target, drop_sql(registry, _reached_by(target)[0]))


def _create_sql(dialect: str, registry: EntityRegistry, connection: Connection | None) -> list[str]:
    language = _language(dialect)
    made = language.triggers_of(registry, connection)
    return [*_drop_sql(made), *(statement for each in made for statement in each.create), *language.view(made)]


def _drop_sql(made: Sequence[Trigger]) -> list[str]:
    return [*(statement for each in made for statement in each.drop), f"DROP VIEW IF EXISTS {VIEW}"]


def _reached_by(target: Any) -> tuple[str, Connection | None]:
    """The kind of database behind a target, and a connection to it; None: the target writes a script."""
    if isinstance(target, Connection):
        return target.dialect.name, target
    context = target.get_context() if hasattr(target, "get_context") else None
    return (context or target).dialect.name, None if context is None or context.as_sql else context.bind


def _language(dialect: str) -> Language:
    """Raises `ConfigurationError` for a database in which no triggers can be made."""
    try:
        return _LANGUAGES[dialect]
    except KeyError:
        raise ConfigurationError(
            f"triggers cannot be made on {dialect}: use {' or '.join(_LANGUAGES)}, or leave it to captured sessions to "
            "note the changes"
        ) from None


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
    language = _language(connection.dialect.name)
    try:
        made = language.triggers_of(registry, connection)
        stored = language.stored(connection, registry)
        lacking = _lacking(made, stored)
        kept = {each.key for each in made} - {each.key for each in lacking}
        _execute(
            connection, (step for key, each in stored.items() if each.ours and key not in kept for step in each.drop)
        )
        _execute(connection, (step for each in lacking for step in each.create))
        if language.listed(connection) != lines_of(made):
            _execute(connection, [f"DROP VIEW IF EXISTS {VIEW}", *language.view(made)])
    except DBAPIError as error:
        remedy = "create the tables of the application first"
        if "on view" in str(error.orig) or "is a view" in str(error.orig):
            remedy = "say in its model that the table is a view: Table(…, info={'is_view': True})"
        raise ConfigurationError(f"the triggers cannot be created: {in_one_line(error.orig)}; {remedy}") from error
    return wrong


def remove(connection: Connection) -> list[str]:
    """Remove all triggers that outbox-relay made, of whatever registry. Returns their names."""
    language = _language(connection.dialect.name)
    ours = [each for each in language.stored(connection, None).values() if each.ours]
    _execute(connection, (statement for each in ours for statement in each.drop))
    _execute(connection, [*language.leftovers(connection), f"DROP VIEW IF EXISTS {VIEW}"])
    return [each.name for each in ours]


def status(connection: Connection, registry: EntityRegistry) -> list[Standing]:
    """Each trigger that the registry asks for, and each further one of ours."""
    language = _language(connection.dialect.name)
    stored = dict(language.stored(connection, registry))
    found = [_standing(made, stored.pop(made.key, None)) for made in language.triggers_of(registry, connection)]
    return found + [
        Standing(each.name, each.table, "stale", "the registry asks for no such trigger")
        for each in stored.values()
        if each.ours
    ]


def _lacking(made: Iterable[Trigger], stored: Mapping[str, Stored]) -> list[Trigger]:
    """Those that a database has not got as they are asked for."""
    return [each for each in made if each.key not in stored or stored[each.key].text != each.text]


def _standing(made: Trigger, stored: Stored | None) -> Standing:
    if stored is None:
        return Standing(made.name, made.table, "missing", f"changes of {made.table} are not noted for {made.entity}")
    if stored.text == made.text:
        return Standing(made.name, stored.table, "ok", "")
    if stored.disabled and stored.ours:
        return Standing(made.name, stored.table, "stale", "it is disabled")
    if stored.ours:
        return Standing(made.name, stored.table, "stale", f"it is not what the registry says of {made.entity} now")
    return Standing(made.name, stored.table, "foreign", "outbox-relay did not make it, and needs the name")


def installed(connection: Connection) -> bool:
    """Whether triggers were ever installed here, and not removed since."""
    language = _LANGUAGES.get(connection.dialect.name)
    if language is None:
        return False
    return language.listed(connection) is not None or any(
        each.ours for each in language.stored(connection, None).values()
    )


def unseen_keys(connection: Connection, registry: EntityRegistry) -> list[str]:
    """Unique keys of the database that the models lack, by which it removes rows that no trigger sees (SQLite's
    REPLACE does)."""
    return _language(connection.dialect.name).unseen_keys(connection, registry)


def covered(connection: Connection, registry: EntityRegistry) -> frozenset[Entity]:
    """The entities that have all of their triggers: their changes are noted by the database itself."""
    language = _LANGUAGES.get(connection.dialect.name)
    if language is None:
        return frozenset()
    stored = language.stored(connection, registry)
    if not any(each.ours for each in stored.values()):
        return frozenset()
    lacking = {each.entity for each in _lacking(language.triggers_of(registry, connection), stored)}
    return frozenset(entity for entity in registry if entity.name not in lacking)
