"""What triggers do in any database: which rows they insert when a table changes, and how they are told from others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Final, NamedTuple, Protocol

from sqlalchemy import Connection, Insert, Select, Table, Text, insert, literal
from sqlalchemy.exc import CompileError
from sqlalchemy.types import TypeEngine

from outbox.entities.entity import Entity
from outbox.entities.registry import EntityRegistry
from outbox.store import models
from outbox.store.models import Action
from outbox.triggers.sources import NEW, OLD, Compiled, Refusal, Source, sources_of

VIEW: Final = "outbox_triggers"
PREFIX: Final = "outbox_"


class Trigger(NamedTuple):
    """A trigger as the registry asks for it. `table`: as the model calls it."""

    name: str
    table: str
    entity: str
    create: tuple[str, ...]
    drop: tuple[str, ...]  # it need not be there
    text: str  # what a database that has it says of it
    key: str  # what tells it from the other triggers of a database


class Stored(NamedTuple):
    """A trigger that a database has by one of our names."""

    name: str
    table: str
    text: str
    ours: bool
    drop: tuple[str, ...]
    disabled: bool = False


Listed = tuple[str, str, str]
"""A line of the view that lists what was installed: trigger, table and entity."""


class Language(Protocol):
    """The triggers of one kind of database. A module is one."""

    def triggers_of(self, registry: EntityRegistry, connection: Connection | None, /) -> list[Trigger]:
        """All triggers of a registry; without a connection, as far as the models say what the tables are like. Raises
        `ConfigurationError` for what triggers cannot follow."""

    def stored(self, connection: Connection, registry: EntityRegistry | None, /) -> Mapping[str, Stored]:
        """The triggers that the database has by our names, each by its key."""

    def listed(self, connection: Connection, /) -> list[Listed] | None:
        """What the view lists; None: there is no view."""

    def view(self, made: Sequence[Trigger], /) -> list[str]:
        """Statements that make the view which lists what was installed, where there is none. Every role may read it."""

    def leftovers(self, connection: Connection, /) -> list[str]:
        """Statements that remove what triggers of ours have left behind, once these are gone."""

    def unseen_keys(self, connection: Connection, registry: EntityRegistry, /) -> list[str]:
        """Unique keys by which the database removes rows that no trigger sees."""


class Literals:
    """Of a compiler: writes values as literals, also what SQLAlchemy sends as parameters only (JSON, intervals)."""

    dialect: Any

    def special(self, stored: Any) -> str | None:
        """How this database writes what SQLAlchemy would write in another way; None: it does not."""
        raise NotImplementedError

    def render_literal_value(self, value: Any, type_: TypeEngine[Any]) -> str:
        write = type_.dialect_impl(self.dialect).bind_processor(self.dialect)
        stored = value if write is None or value is None else write(value)
        if (special := self.special(stored)) is not None:
            return special
        compiler: Any = super()
        try:
            return str(compiler.render_literal_value(value, type_))
        except CompileError:
            if not isinstance(stored, str):
                raise
            return str(compiler.render_literal_value(stored, Text()))


class Statement(NamedTuple):
    """A statement of a trigger. `columns`: whose change calls for it; None: always."""

    row: str  # OLD, NEW or REPLACED: what it selects the documents of
    rows: Select[Any]
    columns: tuple[str, ...] | None
    entity: Entity


class Refused(NamedTuple):
    """The same: new rows that must not be written."""

    refusal: Refusal
    columns: tuple[str, ...] | None


def statements_of(source: Source, operation: str) -> Iterator[Statement | Refused]:
    """What a trigger for `insert`, `update`, `delete`, `before_update` or `before_delete` has to do."""
    counts = source.counts if operation == "update" else None
    if operation in ("insert", "update"):
        if source.refusal is not None:
            yield Refused(source.refusal, counts)
        if operation == "update" and not source.told_before:
            yield Statement(OLD, source.documents(OLD), source.places, source.entity)
        yield Statement(NEW, source.documents(NEW), counts, source.entity)
    elif operation in ("before_update", "before_delete"):
        if source.told_before:
            places = source.places if operation == "before_update" else None
            yield Statement(OLD, source.documents(OLD), places, source.entity)
    elif operation == "delete" and not source.told_before:
        yield Statement(OLD, source.documents(OLD), None, source.entity)


def noted(rows: Select[Any], entity: Entity) -> tuple[list[str], Select[Any]]:
    """What to insert for these documents, and into which columns."""
    rows = rows.add_columns(
        literal(Action.REFRESH.value, Text).label("action"),
        literal(entity.name, Text).label("entity"),
        literal(0).label("document_bytes"),
    )
    return [each["name"] for each in rows.column_descriptions], rows


def inserted(rows: Select[Any], entity: Entity) -> Insert:
    """The INSERT that does it."""
    return insert(models.events).from_select(*noted(rows, entity))


def changed_columns(statements: Iterable[Statement | Refused]) -> tuple[str, ...]:
    """The columns of which one has to change for a statement to be called for."""
    return tuple(dict.fromkeys(each for statement in statements for each in statement.columns or ()))


def sources_by_table(entity: Entity, compiled: Compiled) -> list[tuple[Table, list[Source]]]:
    """What the documents of an entity are made of, together what is about the same table."""
    found: dict[str, tuple[Table, list[Source]]] = {}
    for source in sources_of(entity, compiled):
        found.setdefault(source.table.key, (source.table, []))[1].append(source)
    return list(found.values())


def unused(name: str, taken: Iterable[str], limit: int | None = None) -> str:
    """Tables and entities may have such names that two triggers would have the same. `limit`: bytes of a name."""
    used = {each.lower() for each in taken}
    names = (_within(name, "" if number == 1 else f"_{number}", limit) for number in count(1))
    return next(each for each in names if each.lower() not in used)


def _within(name: str, suffix: str, limit: int | None) -> str:
    if limit is not None:
        name = name.encode()[: limit - len(suffix)].decode(errors="ignore")
    return name + suffix


def text_literal(value: str) -> str:
    """A string as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"


def lines_of(made: Sequence[Trigger]) -> list[Listed]:
    """What the view lists of triggers."""
    return [(each.name, each.table, each.entity) for each in made]


def view_of(made: Sequence[Trigger]) -> str:
    """The statement that makes the view which lists what was installed."""
    lines = [f"({', '.join(map(text_literal, line))})" for line in lines_of(made)]
    values = f"VALUES {', '.join(lines)}" if lines else "SELECT NULL, NULL, NULL WHERE 1 = 0"
    return f"CREATE VIEW {VIEW} (name, table_name, entity) AS {values}"
