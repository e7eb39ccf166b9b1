"""In which order the members of a list come: that of their relationship; else, and where it leaves it open, that of
primary keys, of whatever types."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from itertools import groupby
from operator import attrgetter
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.orm import Mapper

Order = Callable[[Any], Any]
"""What to sort objects by."""


def order_of(mapper: Mapper[Any]) -> Order:
    """The order of primary keys: the same for the same rows, whatever Python thinks of comparing such values.

    An enum, or a type of the application's own, is compared by what it writes to the database.
    """
    dialect = DefaultDialect()
    write = [column.type.dialect_impl(dialect).bind_processor(dialect) for column in mapper.primary_key]

    def order(member: Any) -> Any:
        identity = inspect(member).identity
        return [
            _comparable(value if as_written is None or value is None else as_written(value))
            for value, as_written in zip(identity, write, strict=True)
        ]

    return order


def in_order(members: Iterable[Any], by: Sequence[str], order: Order) -> list[Any]:
    """The members, of which those that are equal `by` these attributes come in this order. What else puts them into one
    is where they happen to lie in their table, which an UPDATE of anything can change."""
    if not by:
        return sorted(members, key=order)
    return [member for _, equal in groupby(members, attrgetter(*by)) for member in sorted(equal, key=order)]


def _comparable(value: Any) -> tuple[int, Any]:
    """Numbers, texts and bytes each among themselves; anything else as text."""
    if value is None:
        return 0, None
    if isinstance(value, (int, float)) or (isinstance(value, Decimal) and value.is_finite()):
        return 1, value
    return (2, value) if isinstance(value, bytes) else (3, str(value))
