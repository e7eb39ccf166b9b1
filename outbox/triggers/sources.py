"""What each table means to the documents of each entity: which of its columns matter, and which documents those are.

A document is made of rows of one or several tables. Each of them is a source: it selects the documents that were made
of a changed row, or are now. The rest of a path is read from the tables as they are: where a statement has changed
several rows of a path, the documents were made of the first of them by rows that stay, and are found through these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Join,
    Select,
    Text,
    UniqueConstraint,
    and_,
    inspect,
    literal_column,
    null,
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
from outbox.entities.kinds import kind_sql
from outbox.entities.links import Link, counted, joined, links_of, selected
from outbox.errors import ConfigurationError

NEW, OLD, REPLACED = "NEW", "OLD", "outbox_relay_row"
"""The row of a table that a statement is about: as it is now, as it was, or one that REPLACE is about to remove. No
table of an application has that name."""

# As SQLite has it; PostgreSQL takes any word behind the name of a row.
_PREPARER: Final = sqlite.dialect().identifier_preparer
quoted: Final = _PREPARER.quote

Compiled = Callable[[Any], str]
"""What writes a statement in the SQL of a database, its values in it."""

_Name = tuple[str, str]  # of a column: its table and its own
_Equated = dict[_Name, Column[Any]]


class Refusal(NamedTuple):
    """A new row that can have no place must not be written: why, and by which conditions it is known."""

    text: str
    conditions: tuple[ColumnElement[bool], ...]


@dataclass(frozen=True, eq=False)
class Source:
    """Rows of a table that documents of an entity are made of.

    `documents(row)` selects the places of the documents that are made of a row: NEW, OLD, or a REPLACED one.
    """

    entity: Entity
    table: Table
    counts: tuple[str, ...]  # columns whose change makes the documents anew
    places: tuple[str, ...]  # columns that say which documents those are
    documents: Callable[[str], Select[Any]]
    refusal: Refusal | None = None

    @property
    def told_before(self) -> bool:
        """Whether the old row has to be looked at before the change: a row of a view may be gone after it."""
        return self.entity.is_view


def sources_of(entity: Entity, compiled: Compiled) -> list[Source]:
    """All that documents of an entity are made of. Raises `ConfigurationError`."""
    found: list[Source] = []
    if isinstance(entity.mapper.local_table, Join):
        raise ConfigurationError(f"{entity.model.__name__} is mapped to a join of tables, so triggers cannot follow it")
    if not entity.is_view:
        found = [_own(entity, mapper, table) for mapper, table in _tables(entity.mapper, all_=counted(entity) is None)]
    paths: set[tuple[Any, ...]] = set()
    for link in links_of(entity):
        found += [
            _linked(link, mapper, table, compiled) for mapper, table in _tables(link.target, all_=link.counts is None)
        ]
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
    equated = _equated_columns(mapper, table)
    tenant, kind = entity.tenant_sql(), kind_sql(entity.mapper)
    place = [entity.index_sql(), entity.document_id_sql(), null() if tenant is None else tenant]

    def documents(row: str) -> Select[Any]:
        own = _Row(entity.mapper, table, equated, row)
        named = [own.value(each).label(name) for each, name in zip(place, _PLACE, strict=True)]
        statement = select(*named)
        if row != NEW:  # what is new and has no place is refused
            statement = statement.where(*(each.element.is_not(None) for each in named[:2]))
        # A deleted row may have taken its parts in other tables along: it says what it can by itself.
        if kind is not None and (row == NEW or _read(kind) <= equated.keys()):
            statement = statement.where(own.value(kind))
        statement = statement.where(*own.conditions(whole=row == NEW))
        return statement.select_from(table.alias(REPLACED)) if row == REPLACED else statement

    new = _Row(entity.mapper, table, equated, NEW)
    refused = [new.value(entity.refused_sql()), *([] if kind is None else [new.value(kind)])]
    telling = [*place[:2], *([] if kind is None else [kind])]
    reads = {equated[name].name for each in telling for name in _read(each) if name in equated}
    if any(name not in equated for each in telling for name in _read(each)):  # by the key it is read in other tables
        reads |= {column.name for column in table.primary_key}
    counts = {*_columns_of(mapper, table, counted(entity)), *reads}
    return Source(
        entity,
        table,
        _in_order(table, counts),
        _in_order(table, reads),
        documents,
        Refusal(_refusal(entity), (*refused, *new.conditions(whole=True))),
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


class _Row:
    """One row of one of a model's tables: the values that expressions have for it, the other tables joined to it."""

    def __init__(self, mapper: Mapper[Any], table: Table, equated: _Equated, row: str) -> None:
        self._row, self._equated = row, equated
        self._others = {each.key: each for each in mapper.tables if isinstance(each, Table) and each.key != table.key}
        self._joined: dict[str, Any] = {}

    def value(self, expression: Any) -> Any:
        """The expression, with the values that this row has."""
        return visitors.replacement_traverse(expression, {}, self._replaced)

    def conditions(self, *, whole: bool) -> list[ColumnElement[bool]]:
        """What joins the other tables that values came from; with `whole` all: there is no document without them."""
        for key in self._others if whole else ():
            self._alias(key)
        return [
            alias.c[column.key] == _value(self._row, self._equated[key, column.name])
            for key, alias in self._joined.items()
            for column in self._others[key].primary_key
        ]

    def _replaced(self, element: Any, **_: Any) -> Any:
        if not isinstance(element, Column) or not isinstance(element.table, Table):
            return None
        own = self._equated.get((element.table.key, element.name))
        if own is not None:
            return _value(self._row, own)
        return self._alias(element.table.key).c[element.key] if element.table.key in self._others else None

    def _alias(self, key: str) -> Any:
        if key not in self._joined:
            self._joined[key] = self._others[key].alias()
        return self._joined[key]


def _equated_columns(mapper: Mapper[Any], table: Table) -> _Equated:
    """The columns of a table, also by the names of those in the model's other tables that hold the same."""
    pairs = [
        ((element.left.table.key, element.left.name), (element.right.table.key, element.right.name))
        for each in mapper.iterate_to_root()
        if each.inherit_condition is not None
        for element in visitors.iterate(each.inherit_condition)
        if isinstance(element, BinaryExpression) and element.operator is operators.eq
    ]
    equated: _Equated = {(table.key, column.name): column for column in table.c}
    for _ in pairs:  # as far as a chain of subclasses may lead
        for one, other in pairs:
            if one in equated:
                equated.setdefault(other, equated[one])
            elif other in equated:
                equated[one] = equated[other]
    return equated


# -- the rows of other models -----------------------------------------------------------------------------------


def _linked(link: Link, mapper: Mapper[Any], table: Table, compiled: Compiled) -> Source:
    """`mapper`: the link's target, or a subclass that has the table."""
    entity, equated = link.entity, _equated_columns(mapper, table)
    key = [equated[column.table.key, column.name] for column in link.target.primary_key]
    places = {*_columns_of(mapper, table, link.linking), *(column.name for column in key)}

    def by_columns(row: str) -> Select[Any]:
        same = [entity.column(name) == _value(row, column) for name, column in zip(link.columns, key, strict=True)]
        statement = selected(entity).where(*same)
        return statement.select_from(table.alias(REPLACED)) if row == REPLACED else statement

    def by_path(row: str) -> Select[Any]:
        draft = compiled(_through(link, mapper, table, equated, row, list(table.c)))
        used = [column for column in table.c if any(f"{REPLACED}.{name}" in draft for name in _spellings(column))]
        return _through(link, mapper, table, equated, row, used)

    return Source(
        entity,
        table,
        _in_order(table, {*_columns_of(mapper, table, link.counts), *places}),
        _in_order(table, places),
        by_path if link.path else by_columns,
    )


def _spellings(column: Column[Any]) -> tuple[str, str]:
    """Which of them a database takes depends on the words that it knows."""
    return column.name, _PREPARER.quote_identifier(column.name)


def _through(
    link: Link, mapper: Mapper[Any], table: Table, equated: _Equated, row: str, columns: Sequence[Column[Any]]
) -> Select[Any]:
    """The documents at the other end of the relationships, with one row in the place of the table at this end."""
    only: Any = table.alias(REPLACED)
    if row != REPLACED:
        values = ", ".join(f"{row}.{quoted(column.name)} AS {quoted(column.name)}" for column in columns)
        only = text(f"SELECT {values}".replace(":", "\\:")).columns(*columns).subquery(REPLACED)
    whole = only
    for other in mapper.tables:
        if isinstance(other, Table) and other.key != table.key:
            alias = other.alias()
            same = [alias.c[column.key] == only.c[equated[other.key, column.name].key] for column in other.primary_key]
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
        return statement.select_from(table.alias(REPLACED)) if row == REPLACED else statement

    def columns(*conditions: Any) -> tuple[str, ...]:
        return _in_order(table, {name for each in conditions for key, name in _read(each) if key == table.key})

    counts = columns(prop.primaryjoin, prop.secondaryjoin, *(prop.order_by or ()))
    return Source(entity, table, counts, columns(prop.primaryjoin), documents)


# -- unique keys ------------------------------------------------------------------------------------------------


class Key(NamedTuple):
    """A unique key of a table. `condition`: that a row which is there already has the key of the new one."""

    index_name: str | None  # its name, if it is an index
    columns: tuple[str, ...]
    alike: frozenset[str]  # columns that are equal to the letter in two rows with the same key
    condition: ColumnElement[bool]

    def determines(self, places: Sequence[str]) -> bool:
        """Whether a row that replaces another one has the same documents, by all these columns."""
        return self.alike.issuperset(places)


def unique_keys(table: Table, compiled: Compiled) -> list[Key]:
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
        same = [_in_row(table, REPLACED, each) == _in_row(table, NEW, each) for each in expressions]
        if where is not None:
            same.append(_in_row(table, REPLACED, where))
        names = _in_order(table, {name for each in expressions for _, name in _read(each)})
        alike = frozenset(
            each.name for each in expressions if isinstance(each, Column) and not getattr(each.type, "collation", None)
        )
        key = Key(name, names, alike, and_(*same))
        found[compiled(key.condition)] = key
    return [found[each] for each in sorted(found)]  # constraints and indexes are sets


# -- columns ----------------------------------------------------------------------------------------------------


def _columns_of(mapper: Mapper[Any], table: Table, attributes: Iterable[str] | None) -> set[str]:
    """The columns of a table behind attributes of a model; None: all."""
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


def named(row: str, name: str) -> ColumnElement[Any]:
    """A column of a row, as text."""
    return literal_column(f"{row}.{quoted(name)}", Text)
