"""The SQL of the triggers of a registry: what each table means to the documents of each entity.

A document is made of rows of one or several tables. For each of them there is a trigger for each way to change it,
which inserts a row for every document that was made of the changed row, or is now. No other row has changed at that
moment, so the rest of a path can be read from the tables as they stand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    UniqueConstraint,
    and_,
    insert,
    inspect,
    literal,
    literal_column,
    null,
    or_,
    select,
    text,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.orm import Mapper, RelationshipProperty, aliased
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import BinaryExpression, TextClause
from sqlalchemy.sql.schema import Column, Table
from sqlalchemy.sql.util import ClauseAdapter

from outbox.entities.entity import Entity
from outbox.entities.keys import Tenancy
from outbox.entities.links import Link, counted, joined, links_of, selected
from outbox.entities.registry import EntityRegistry
from outbox.errors import ConfigurationError
from outbox.store import models
from outbox.store.models import Action

PREFIX: Final = "outbox_"
MARK: Final = "/* outbox-relay "
"""Begins the comment by which a trigger is known as ours; its fingerprint follows."""

NEW, OLD, STANDING = "NEW", "OLD", "standing"
"""The row of a table that a statement is about: as it is now, as it was, or one that REPLACE is about to remove."""

_OPERATIONS: Final = {
    # SQLite fires no DELETE trigger for a row that REPLACE removes, so those rows are looked for before.
    "replace": "BEFORE INSERT",
    "insert": "AFTER INSERT",
    "update_replace": "BEFORE UPDATE",
    "update": "AFTER UPDATE",
    "delete": "AFTER DELETE",
}
_DIALECT: Final = sqlite.dialect()
quoted: Final = _DIALECT.identifier_preparer.quote

_Name = tuple[str, str]  # of a column: its table and its own
_Twins = dict[_Name, Column[Any]]


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
                if statements := [each for source in sources for each in source.statements(operation)]:
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

    def sql(self, among: tuple[str, ...] | None) -> str:
        """`among`: the columns of which one has changed, as the trigger's own condition says."""
        rows = self.rows
        if self.columns is not None and self.columns != among:
            rows = rows.where(literal_column(f"({_changed(self.columns)})"))
        if self.entity is None:
            return _compiled(rows)
        rows = rows.add_columns(
            literal(Action.REFRESH.value, Text).label("action"),
            literal(self.entity.name, Text).label("entity"),
            literal(0).label("document_bytes"),
        )
        return _compiled(insert(models.events).from_select([each["name"] for each in rows.column_descriptions], rows))


def _changed(columns: Iterable[str]) -> str:
    # Where a column compares without regard to case, 'ada' is not distinct from 'Ada'; in a document it is.
    return " OR ".join(f"OLD.{quoted(name)} COLLATE BINARY IS NOT NEW.{quoted(name)}" for name in columns)


def _compiled(statement: Any) -> str:
    return str(statement.compile(dialect=_DIALECT, compile_kwargs={"literal_binds": True}))


def text_literal(value: str) -> str:
    """A string as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"


# -- what a document is made of ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Source:
    """Rows of a table that documents of an entity are made of.

    `documents(row)` selects the places of the documents that are made of a row: NEW, OLD, or one STANDING in the table.
    """

    entity: Entity
    table: Table
    counts: tuple[str, ...]  # columns whose change makes the documents anew
    places: tuple[str, ...]  # columns that say which documents those are
    documents: Callable[[str], Select[Any]]
    refusal: Select[Any] | None = None

    def statements(self, operation: str) -> Iterator[_Statement]:
        """What a trigger has to do."""
        counts = self.counts if operation == "update" else None
        if operation in ("insert", "update"):
            if self.refusal is not None:
                yield _Statement(self.refusal, counts, None)
            if operation == "update":
                yield _Statement(self.documents(OLD), self.places, self.entity)
            yield _Statement(self.documents(NEW), counts, self.entity)
        elif operation == "delete":
            yield _Statement(self.documents(OLD), None, self.entity)
        else:
            for key in unique_keys(self.table):
                if not key.settles(self.places):
                    moved = [
                        _named(STANDING, name).collate("BINARY").is_distinct_from(_named(NEW, name))
                        for name in self.places
                    ]
                    rows = self.documents(STANDING).where(key.meets, or_(*moved))
                    yield _Statement(rows, key.columns if operation == "update_replace" else None, self.entity)


def sources_of(entity: Entity) -> list[Source]:
    """Whatever documents of an entity are made of. Raises `ConfigurationError`."""
    found = [_own(entity, mapper, table) for mapper, table in _tables(entity.mapper, all_=counted(entity) is None)]
    paths: set[tuple[Any, ...]] = set()
    for link in links_of(entity):
        found += [_linked(link, mapper, table) for mapper, table in _tables(link.target, all_=link.counts is None)]
        for at, prop in enumerate(link.path):
            if prop.secondary is not None and link.path[: at + 1] not in paths:
                paths.add(link.path[: at + 1])
                found.append(_secondary(entity, link.path[:at], prop))
    return found


def _tables(mapper: Mapper[Any], *, all_: bool) -> list[tuple[Mapper[Any], Table]]:
    """The tables of a model, each with a model that has it; with `all_` also those that only subclasses have."""
    found: dict[str, tuple[Mapper[Any], Table]] = {}
    for each in mapper.self_and_descendants if all_ else [mapper]:
        for table in each.tables:
            if isinstance(table, Table):
                found.setdefault(table.key, (each, table))
    if not found:
        raise ConfigurationError(f"{mapper.class_.__name__} is mapped to no table, so triggers cannot follow it")
    return list(found.values())


# -- the rows of the entity itself ------------------------------------------------------------------------------


def _own(entity: Entity, mapper: Mapper[Any], table: Table) -> Source:
    """In joined inheritance each table of the entity has a part of its rows."""
    twins = _twins(mapper, table)
    tenant, kind = entity.tenant_sql(), _kind(entity.mapper)
    place = [entity.index_sql(), entity.document_id_sql(), null() if tenant is None else tenant]

    def documents(row: str) -> Select[Any]:
        seen = _Seen(entity.mapper, table, twins, row)
        named = [seen.say(each).label(name) for each, name in zip(place, _PLACE, strict=True)]
        statement = select(*named)
        if row != NEW:  # what is new and has no place is refused
            statement = statement.where(*(each.element.is_not(None) for each in named[:2]))
        # A row that is gone may have taken its parts in other tables along: it says what it can by itself.
        if kind is not None and (row == NEW or _read(kind) <= twins.keys()):
            statement = statement.where(seen.say(kind))
        statement = statement.where(*seen.conditions(whole=row == NEW))
        return statement.select_from(table.alias(STANDING)) if row == STANDING else statement

    new = _Seen(entity.mapper, table, twins, NEW)
    refused = [new.say(entity.refused_sql()), *([] if kind is None else [new.say(kind)])]
    message: ColumnElement[Any] = literal_column(f"RAISE(ABORT, {text_literal(_refusal(entity))})")
    telling = [*place[:2], *([] if kind is None else [kind])]
    reads = {twins[name].name for each in telling for name in _read(each) if name in twins}
    counts = {*_columns_of(mapper, table, counted(entity)), *reads}
    return Source(
        entity,
        table,
        _in_order(table, counts),
        _in_order(table, reads),
        documents,
        select(message).where(*refused, *new.conditions(whole=True)),
    )


_PLACE: Final = ("index_name", "document_id", "tenant_id")


def _refusal(entity: Entity) -> str:
    tenant = {
        Tenancy.INDEX: "its tenant becomes part of an index name, so it must be 1 to 63 lower-case letters, digits and "
        "'-', beginning with a letter or digit; ",
        Tenancy.PREFIXED: "its tenant must be 1 to 255 printable characters; ",
        Tenancy.SHARED: "its tenant must be 1 to 255 printable characters, or NULL; " if entity.tenant else "",
    }[entity.tenancy]
    return (
        f"outbox-relay: a document of entity {entity.name!r} can have no place: {tenant}its id must be 1 to 512 bytes"
    )


def _kind(mapper: Mapper[Any]) -> ColumnElement[bool] | None:
    """What tells rows of a subclass from those of its relatives."""
    if mapper.inherits is None or not isinstance(mapper.polymorphic_on, Column):
        return None
    kinds = [each.polymorphic_identity for each in mapper.self_and_descendants]
    return mapper.polymorphic_on.in_([each for each in kinds if each is not None])


class _Seen:
    """A model seen from one row of one of its tables: expressions said of that row, the other tables joined to it."""

    def __init__(self, mapper: Mapper[Any], table: Table, twins: _Twins, row: str) -> None:
        self._row, self._twins = row, twins
        self._others = {each.key: each for each in mapper.tables if isinstance(each, Table) and each.key != table.key}
        self._joined: dict[str, Any] = {}

    def say(self, expression: Any) -> Any:
        """The expression, of the values that this row has."""
        return visitors.replacement_traverse(expression, {}, self._replaced)

    def conditions(self, *, whole: bool) -> list[ColumnElement[bool]]:
        """What joins the other tables that were spoken of; with `whole` all, as there is no document without them."""
        for key in self._others if whole else ():
            self._alias(key)
        return [
            alias.c[column.key] == _value(self._row, self._twins[key, column.name])
            for key, alias in self._joined.items()
            for column in self._others[key].primary_key
        ]

    def _replaced(self, element: Any, **_: Any) -> Any:
        if not isinstance(element, Column) or not isinstance(element.table, Table):
            return None
        twin = self._twins.get((element.table.key, element.name))
        if twin is not None:
            return _value(self._row, twin)
        return self._alias(element.table.key).c[element.key] if element.table.key in self._others else None

    def _alias(self, key: str) -> Any:
        if key not in self._joined:
            self._joined[key] = self._others[key].alias()
        return self._joined[key]


def _twins(mapper: Mapper[Any], table: Table) -> _Twins:
    """The columns of a table, also by the names of those in the model's other tables that hold the same."""
    pairs = [
        ((element.left.table.key, element.left.name), (element.right.table.key, element.right.name))
        for each in mapper.iterate_to_root()
        if each.inherit_condition is not None
        for element in visitors.iterate(each.inherit_condition)
        if isinstance(element, BinaryExpression) and element.operator is operators.eq
    ]
    twins: _Twins = {(table.key, column.name): column for column in table.c}
    for _ in pairs:  # as far as a chain of subclasses may lead
        for one, other in pairs:
            if one in twins:
                twins.setdefault(other, twins[one])
            elif other in twins:
                twins[one] = twins[other]
    return twins


# -- the rows of other models -----------------------------------------------------------------------------------


def _linked(link: Link, mapper: Mapper[Any], table: Table) -> Source:
    """`mapper`: the link's target, or a subclass that has the table."""
    entity, twins = link.entity, _twins(mapper, table)
    key = [twins[column.table.key, column.name] for column in link.target.primary_key]
    places = {*_columns_of(mapper, table, link.linking), *(column.name for column in key)}

    def by_columns(row: str) -> Select[Any]:
        same = [entity.column(name) == _value(row, column) for name, column in zip(link.columns, key, strict=True)]
        statement = selected(entity).where(*same)
        return statement.select_from(table.alias(STANDING)) if row == STANDING else statement

    def by_path(row: str) -> Select[Any]:
        draft = _compiled(_through(link, mapper, table, twins, row, list(table.c)))
        used = [column for column in table.c if f"{STANDING}.{quoted(column.name)}" in draft]
        return _through(link, mapper, table, twins, row, used)

    return Source(
        entity,
        table,
        _in_order(table, {*_columns_of(mapper, table, link.counts), *places}),
        _in_order(table, places),
        by_path if link.path else by_columns,
    )


def _through(
    link: Link, mapper: Mapper[Any], table: Table, twins: _Twins, row: str, columns: Sequence[Column[Any]]
) -> Select[Any]:
    """The documents at the other end of the relationships, with one row in the place of the table at this end."""
    only: Any = table.alias(STANDING)
    if row != STANDING:
        values = ", ".join(f"{row}.{quoted(column.name)} AS {quoted(column.name)}" for column in columns)
        only = text(f"SELECT {values}".replace(":", "\\:")).columns(*columns).subquery(STANDING)
    whole = only
    for other in mapper.tables:
        if isinstance(other, Table) and other.key != table.key:
            alias = other.alias()
            same = [alias.c[column.key] == only.c[twins[other.key, column.name].key] for column in other.primary_key]
            whole = whole.outerjoin(alias, and_(*same))
    return joined(link.entity, link.path, aliased(mapper, whole))[0].distinct()


def _secondary(entity: Entity, above: Sequence[RelationshipProperty[Any]], prop: RelationshipProperty[Any]) -> Source:
    """The rows of a many-to-many table, which say what belongs together."""
    table = prop.secondary
    if not isinstance(table, Table):
        raise ConfigurationError(f"entity {entity.name!r}: {prop} leads through no table, so triggers cannot follow it")

    def documents(row: str) -> Select[Any]:
        statement, at = joined(entity, above)
        condition = _in_row(table, row, prop.primaryjoin)
        if above:
            condition = ClauseAdapter(inspect(at).selectable).traverse(condition)
        statement = statement.where(condition).distinct()
        return statement.select_from(table.alias(STANDING)) if row == STANDING else statement

    def columns(*conditions: Any) -> tuple[str, ...]:
        return _in_order(table, {name for each in conditions for key, name in _read(each) if key == table.key})

    counts = columns(prop.primaryjoin, prop.secondaryjoin, *(prop.order_by or ()))
    return Source(entity, table, counts, columns(prop.primaryjoin), documents)


# -- unique keys ------------------------------------------------------------------------------------------------


class Key(NamedTuple):
    """A unique key of a table. `meets`: the condition that a standing row has the one of the new row."""

    index_name: str | None  # its name, if it is an index
    columns: tuple[str, ...]
    alike: frozenset[str]  # columns that are equal to the letter in two rows with the same key
    meets: ColumnElement[bool]

    def settles(self, places: Sequence[str]) -> bool:
        """Whether a row that takes the place of another one has the same documents, by all these columns."""
        return self.alike.issuperset(places)


def unique_keys(table: Table) -> list[Key]:
    """The unique keys that the model knows, but for those of an index in plain SQL."""
    members: list[tuple[str | None, list[Any], Any]] = [(None, list(table.primary_key.columns), None)]
    members += [(None, list(each.columns), None) for each in table.constraints if isinstance(each, UniqueConstraint)]
    members += [
        (str(index.name), list(index.expressions), index.dialect_options["sqlite"]["where"])
        for index in table.indexes
        if index.unique
    ]
    found: dict[str, Key] = {}
    for name, expressions, where in members:
        if not expressions or any(isinstance(each, TextClause) for each in (*expressions, where)):
            continue
        same = [_in_row(table, STANDING, each) == _in_row(table, NEW, each) for each in expressions]
        if where is not None:
            same.append(_in_row(table, STANDING, where))
        names = _in_order(table, {name for each in expressions for _, name in _read(each)})
        alike = frozenset(
            each.name for each in expressions if isinstance(each, Column) and not getattr(each.type, "collation", None)
        )
        key = Key(name, names, alike, and_(*same))
        found[_compiled(key.meets)] = key
    return [found[each] for each in sorted(found)]  # constraints and indexes are sets


# -- columns ----------------------------------------------------------------------------------------------------


def _columns_of(mapper: Mapper[Any], table: Table, attributes: Iterable[str] | None) -> set[str]:
    """The columns of a table behind attributes of a model; None stands for all."""
    if attributes is None:
        return {column.name for column in table.c}
    return {
        column.name
        for attribute in attributes
        for column in getattr(mapper.attrs[attribute], "columns", ())
        if _is_of(column, table)
    }


def _in_order(table: Table, names: Iterable[str]) -> tuple[str, ...]:
    wanted = set(names)
    return tuple(column.name for column in table.c if column.name in wanted)


def _read(expression: Any) -> set[_Name]:
    """The columns of tables that an expression reads."""
    return {
        (element.table.key, element.name)
        for element in ([] if expression is None else visitors.iterate(expression))
        if isinstance(element, Column) and isinstance(element.table, Table)
    }


def _in_row(table: Table, row: str, expression: Any) -> Any:
    """An expression, with the values of one row in the place of a table's columns."""

    def replaced(element: Any, **_: Any) -> Any:
        return _value(row, element) if _is_of(element, table) else None

    return visitors.replacement_traverse(expression, {}, replaced)


def _is_of(element: Any, table: Table) -> bool:
    """Whether it is a column of the table itself, not of an alias."""
    return isinstance(element, Column) and isinstance(element.table, Table) and element.table.key == table.key


def _value(row: str, column: Column[Any]) -> ColumnElement[Any]:
    return literal_column(f"{row}.{quoted(column.name)}", column.type)


def _named(row: str, name: str) -> ColumnElement[Any]:
    return literal_column(f"{row}.{quoted(name)}", Text)
