"""What fields read beside the rows that are followed: refused, since nothing would say when it changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import Column, Table
from sqlalchemy.orm import ColumnProperty, Mapper, RelationshipProperty
from sqlalchemy.orm.util import AliasedInsp
from sqlalchemy.sql import visitors
from sqlalchemy.sql.selectable import Alias

from outbox.entities.entity import Branch, Entity
from outbox.errors import ConfigurationError


def check_reads(entity: Entity, targets: Iterable[Mapper[Any]]) -> None:
    """Raises `ConfigurationError` for a field that reads tables of no model which is followed: of the `targets`."""
    targets = list(targets)
    followed = {table for mapper in targets for table in mapper.tables}
    for field, own, expressions in _read(entity.mapper, entity.tree, ""):
        read = {table for each in expressions for table in _tables(each, own)}
        if lacking := sorted(table.name for table in read if table not in followed):
            raise ConfigurationError(
                f"entity {entity.name!r}: field {field!r} reads the table {lacking[0]}; name in depends_on the model "
                "of it and what leads there, or make the document by to_document"
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


def _read(mapper: Mapper[Any], tree: Branch, above: str) -> Iterator[tuple[str, set[Any], list[Any]]]:
    """Each field with the tables of its own and the expressions that it is made of."""
    for name in tree.leaves:
        prop = mapper.attrs.get(name)
        if isinstance(prop, ColumnProperty):
            yield above + name, set(mapper.tables), [each for each in prop.columns if not isinstance(each, Column)]
    for name, branch in tree.branches.items():
        prop = mapper.relationships[name]
        own = {*prop.parent.tables, *prop.mapper.tables, prop.secondary}
        yield above + name, own, [prop.primaryjoin, prop.secondaryjoin, prop.secondary]
        yield from _read(prop.mapper, branch, f"{above}{name}.")


def _tables(expression: Any, own: set[Any]) -> Iterator[Table]:
    """The tables that an expression reads other rows of: others, and aliases of its own."""
    for element in () if expression is None or isinstance(expression, Table) else visitors.iterate(expression):
        table = element.table if isinstance(element, Column) else element
        if isinstance(table, Alias) and isinstance(table.element, Table):
            yield table.element
        elif isinstance(table, Table) and table not in own:
            yield table
