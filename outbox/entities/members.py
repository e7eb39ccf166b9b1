"""In which order the members of a list come: by primary keys, of whatever types."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
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


def _comparable(value: Any) -> tuple[int, Any]:
    """Numbers, texts and bytes each among themselves; anything else as text."""
    if value is None:
        return 0, None
    if isinstance(value, (int, float)) or (isinstance(value, Decimal) and value.is_finite()):
        return 1, value
    return (2, value) if isinstance(value, bytes) else (3, str(value))
