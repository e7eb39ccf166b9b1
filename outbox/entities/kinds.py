"""Hierarchies of classes whose rows say of which kind they are, and may change it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, ColumnElement
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.exc import UnmappedColumnError
from sqlalchemy.sql import visitors


def kind_sql(mapper: Mapper[Any]) -> ColumnElement[bool] | None:
    """What tells rows of a subclass from those of its relatives; None, if nothing has to or can."""
    if mapper.inherits is None or mapper.concrete or mapper.polymorphic_on is None:
        return None
    kinds = [each.polymorphic_identity for each in mapper.self_and_descendants]
    return _discriminator(mapper).in_([each for each in kinds if each is not None])


def _discriminator(mapper: Mapper[Any]) -> ColumnElement[Any]:
    """As the mapped attribute, so that a statement about the mapper finds it in whatever the mapper selects from."""
    on: Any = mapper.polymorphic_on
    try:
        found: ColumnElement[Any] = getattr(mapper.class_, mapper.get_property_by_column(on).key)
    except (UnmappedColumnError, AttributeError):
        found = on
    return found


def kind_attributes(mapper: Mapper[Any]) -> frozenset[str]:
    """The attributes that say of which kind a row is."""
    read = [] if mapper.polymorphic_on is None else list(visitors.iterate(mapper.polymorphic_on))
    columns = [each for each in read if isinstance(each, Column)]
    if read and not columns:  # text, or columns without a table
        return frozenset(prop.key for prop in mapper.column_attrs)
    return frozenset(prop.key for prop in mapper.column_attrs if any(each in prop.columns for each in columns))


def same_hierarchy(one: Mapper[Any], other: Mapper[Any]) -> bool:
    """Whether a row of one may be a row of the other, now or later."""
    return _root(one) is _root(other)


def _root(mapper: Mapper[Any]) -> Mapper[Any]:
    while mapper.inherits is not None and not mapper.concrete:
        mapper = mapper.inherits
    return mapper
