"""What documents read beside the rows that are followed: refused, since nothing would say when it changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

from sqlalchemy import Column, Table
from sqlalchemy.orm import ColumnProperty, Mapper, RelationshipProperty
from sqlalchemy.orm.util import AliasedInsp
from sqlalchemy.sql import visitors
from sqlalchemy.sql.selectable import Alias

from outbox.entities.entity import Branch, Entity
from outbox.errors import ConfigurationError

_Path = Sequence[RelationshipProperty[Any]]


class _Made(NamedTuple):
    """An attribute that documents go by: the expressions that it is made of, and the tables of its own."""

    said: str
    own: set[Any]
    expressions: list[Any]


def check_reads(entity: Entity, followed: Sequence[tuple[_Path, Mapper[Any]]]) -> None:
    """Raises `ConfigurationError` for what reads tables of no model which is followed: fields, what is watched, paths.
    `followed`: each model beside their own, with the path that leads there; without one it is found by its key."""
    tables = {table for _, mapper in followed for table in mapper.tables}
    for made in chain(_fields(entity.mapper, entity.tree, ""), _watched(entity), _paths(followed)):
        read = {table for each in made.expressions for table in _tables(each, made.own)}
        if lacking := sorted(table.name for table in read if table not in tables):
            instead = ", or make the document by to_document" if made.said.startswith("field ") else ""
            raise ConfigurationError(
                f"entity {entity.name!r}: {made.said} reads the table {lacking[0]}; name in depends_on the model "
                f"of it and what leads there{instead}"
            )
    for mapper in (entity.mapper, *(target for path, target in followed if path)):
        _check_kind(entity, mapper)


def _check_kind(entity: Entity, mapper: Mapper[Any]) -> None:
    """Raises `ConfigurationError` for a class whose rows another table tells from those of its relatives."""
    if mapper.inherits is None or mapper.concrete:
        return
    if read := sorted(table.name for table in _tables(mapper.polymorphic_on, set(mapper.tables))):
        model, base = mapper.class_.__name__, mapper.base_mapper.class_.__name__
        raise ConfigurationError(
            f"entity {entity.name!r}: the table {read[0]} tells which rows are of {model}, so that nothing says when "
            f"one becomes so or ceases to be; use {base} in its place"
        )


def check_relationship(prop: RelationshipProperty[Any], where: str) -> None:
    """Raises `ConfigurationError` for a relationship that no query can load with its rows."""
    name = f"{prop.parent.class_.__name__}.{prop.key}"
    if prop.lazy in ("dynamic", "write_only"):
        raise ConfigurationError(
            f"{where}: {name} is {prop.lazy}, so that it cannot be loaded with the row; map it once more, to read: "
            "relationship(…, viewonly=True)"
        )
    if isinstance(prop.entity, AliasedInsp):
        raise ConfigurationError(
            f"{where}: {name} leads to an aliased class; make the document by to_document, and say what it is made of "
            "by depends_on"
        )


def resolved(mapper: Mapper[Any], name: str) -> str:
    """The attribute that a name means: a synonym's own."""
    synonym = mapper.synonyms.get(name)
    return name if synonym is None else resolved(mapper, synonym.name)


def _fields(mapper: Mapper[Any], tree: Branch, above: str) -> Iterator[_Made]:
    for name in (*tree.leaves, *tree.branches):
        yield _made(mapper, name, f"field {above + name!r}")
    for name, branch in tree.branches.items():
        yield from _fields(mapper.relationships[name].mapper, branch, f"{above}{name}.")


def _watched(entity: Entity) -> Iterator[_Made]:
    for name in sorted(entity.watch or ()):
        yield _made(entity.mapper, name, f"watch {name!r}")
    for target, dependency in entity.depends_on.items():
        for name in dependency.watch or ():
            yield _made(target, name, f"depends_on {target.class_.__name__}: watch {name!r}")


def _paths(followed: Sequence[tuple[_Path, Mapper[Any]]]) -> Iterator[_Made]:
    for path, _ in followed:
        if path:
            yield _made(path[-1].parent, path[-1].key, f"relationship {'.'.join(each.key for each in path)!r}")


def _made(mapper: Mapper[Any], name: str, said: str) -> _Made:
    prop = mapper.attrs.get(resolved(mapper, name))
    if isinstance(prop, RelationshipProperty):
        own = {*prop.parent.tables, *prop.mapper.tables, prop.secondary}
        return _Made(said, own, [prop.primaryjoin, prop.secondaryjoin, prop.secondary, *(prop.order_by or ())])
    columns = prop.columns if isinstance(prop, ColumnProperty) else []
    return _Made(said, set(mapper.tables), [each for each in columns if not isinstance(each, Column)])


def _tables(expression: Any, own: set[Any]) -> Iterator[Table]:
    """The tables that an expression reads other rows of: others, and aliases of its own."""
    for element in () if expression is None or isinstance(expression, Table) else visitors.iterate(expression):
        table = element.table if isinstance(element, Column) else element
        if isinstance(table, Alias) and isinstance(table.element, Table):
            yield table.element
        elif isinstance(table, Table) and table not in own:
            yield table
