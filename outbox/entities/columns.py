"""What the types of columns make of values: which can be compared, and which the database spells otherwise."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Enum, Integer, Numeric, Uuid
from sqlalchemy.types import NullType, TypeDecorator, TypeEngine


def alike(one: TypeEngine[Any], other: TypeEngine[Any]) -> bool:
    """Whether columns of two types can be compared, in each database, and have the same values in Python."""
    databases = {"", *one._variant_mapping, *other._variant_mapping}
    pairs = [(one._variant_mapping.get(name, one), other._variant_mapping.get(name, other)) for name in databases]
    return all(
        isinstance(left, NullType) or isinstance(right, NullType) or _kind(left) == _kind(right)
        for left, right in pairs
    )


def is_respelt(type_: TypeEngine[Any]) -> bool:
    """Whether a database may keep a value in another spelling than an object has: by an expression, or a type that this
    database alone has."""
    own = _kind(type_)
    return type_._has_bind_expression or any(_kind(each) != own for each in type_._variant_mapping.values())


def _kind(type_: TypeEngine[Any]) -> Any:
    if isinstance(type_, TypeDecorator):  # who knows what it makes of values
        return type(type_)
    if isinstance(type_, Enum):
        return Enum, type_.enum_class
    if isinstance(type_, Uuid):
        return Uuid, type_.as_uuid
    return Numeric if isinstance(type_, Integer) else type_._type_affinity
