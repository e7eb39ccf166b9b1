"""Types of columns, and of each a few values: few, so that histories meet the same one again."""

from __future__ import annotations

import enum
from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    PickleType,
    String,
    Text,
    Time,
    TypeDecorator,
    Uuid,
)
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.types import TypeEngine


class Level(enum.Enum):
    LOW = "low level"
    HIGH = "high level"
    NONE = "none"


class Rank(enum.IntEnum):
    FIRST = 1
    SECOND = 2
    THIRD = 3


class Trimmed(TypeDecorator[str]):
    """What is read is not what was written."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, _dialect: Any) -> str | None:
        return None if value is None else value.strip().lower()


class Cents(TypeDecorator[Decimal]):
    """Stored as another kind of value."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, _dialect: Any) -> int | None:
        return None if value is None else int(value * 100)

    def process_result_value(self, value: int | None, _dialect: Any) -> Decimal | None:
        return None if value is None else Decimal(value) / 100


class Type(NamedTuple):
    """A type of columns. `make`: a new one, since a type may belong to its column."""

    make: Callable[[], TypeEngine[Any]]
    values: tuple[Any, ...]


TYPES: dict[str, Type] = {
    "int": Type(Integer, (1, 2, 3)),
    "bigint": Type(BigInteger, (2**62, -1, 0)),
    "str": Type(lambda: String(80), ("a", "b|c", "ä\\")),
    "text": Type(Text, ("", "x\ny", "null")),
    "bool": Type(Boolean, (True, False, True)),
    "float": Type(Float, (0.5, -1.25, 1e30)),
    "numeric": Type(lambda: Numeric(10, 2), (Decimal("1.10"), Decimal("0.00"), Decimal("-2.55"))),
    "date": Type(Date, (date(2024, 2, 29), date(1999, 1, 1), date(2030, 12, 31))),
    "datetime": Type(DateTime, (datetime(2024, 1, 1, 12), datetime(2024, 1, 1, 12, 0, 0, 5), datetime(1970, 1, 1))),
    "aware": Type(
        lambda: DateTime(timezone=True), (datetime(2024, 1, 1, tzinfo=UTC), datetime(2025, 5, 5, tzinfo=UTC))
    ),
    "time": Type(Time, (time(1, 2, 3), time(0, 0), time(23, 59, 59, 999999))),
    "uuid": Type(Uuid, tuple(UUID(int=number) for number in (1, 2, 2**127))),
    "uuid_text": Type(lambda: Uuid(as_uuid=False), tuple(str(UUID(int=number)) for number in (1, 2, 2**127))),
    "enum": Type(lambda: Enum(Level), tuple(Level)),
    "int_enum": Type(lambda: Enum(Rank), tuple(Rank)),
    "words": Type(lambda: Enum("red", "green", name="words"), ("red", "green")),
    "json": Type(JSON, ({"a": {"b": 1}}, [1, "x"], {})),
    "mutable": Type(lambda: MutableDict.as_mutable(JSON()), ({"a": 1}, {"b": [1]}, {})),
    "trimmed": Type(Trimmed, (" A ", "b", "c")),
    "cents": Type(Cents, (Decimal("1.5"), Decimal("0"), Decimal("2.25"))),
}

ODD: dict[str, Type] = {
    "bytes": Type(LargeBinary, (b"\x00\xff", b"", b"a")),
    "interval": Type(Interval, (timedelta(hours=1), timedelta(0), timedelta(days=2, microseconds=5))),
    "pickle": Type(PickleType, ({"a": (1, 2)}, "x", None)),
}
"""Types whose values no document can hold, or only some of them: refused as fields, harmless beside them."""

KEYS = ("int", "str", "uuid", "enum", "int_enum", "trimmed", "words", "uuid_text")
"""Types of primary keys that have a text form."""


def made(type_: str) -> TypeEngine[Any]:
    """A type of its own for a column."""
    return (TYPES | ODD)[type_].make()


def value(type_: str, at: int) -> Any:
    """One of the values of a type."""
    values = (TYPES | ODD)[type_].values
    return deepcopy(values[at % len(values)])  # of those that can be changed in place
