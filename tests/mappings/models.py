"""Columns of every type that mappings are derived from, and values at the ends of what each holds."""

from __future__ import annotations

import enum
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, ClassVar, Final
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    Computed,
    Double,
    Enum,
    ForeignKey,
    Numeric,
    SmallInteger,
    String,
    TypeDecorator,
)
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, column_property, mapped_column, relationship, synonym


class Base(DeclarativeBase):
    pass


class Colour(enum.Enum):
    RED = "#f00"
    BLUE = 7


class Lower(TypeDecorator[str]):
    """Changes what is written, and nothing of what is read."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, _dialect: Any) -> Any:
        return value if value is None else value.lower()


class JsonText(TypeDecorator[Any]):
    """May read anything."""

    impl = String
    cache_ok = True

    def process_result_value(self, value: Any, _dialect: Any) -> Any:
        return value


class Declared(JsonText):
    """The same, and says what."""

    cache_ok = True
    python_type = dict  # type: ignore[assignment]


class Owner(Base):
    __tablename__ = "owners"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]
    since: Mapped[date | None]


class Part(Base):
    __tablename__ = "parts"
    id: Mapped[int] = mapped_column(primary_key=True)
    thing_id: Mapped[int | None] = mapped_column(ForeignKey("things.id"))
    label: Mapped[str | None]
    price: Mapped[Decimal | None] = mapped_column(Numeric(12, 2))


class Pet(Base):
    __tablename__ = "pets"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind", "polymorphic_identity": "pet"}


class Dog(Pet):
    bark: Mapped[str | None]
    age: Mapped[int | None] = mapped_column("dog_age")
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "dog"}


class Cat(Pet):
    lives: Mapped[int | None]
    age: Mapped[str | None] = mapped_column("cat_age")
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "cat"}


class Thing(Base):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(default="t1")
    small: Mapped[int | None] = mapped_column(SmallInteger)
    whole: Mapped[int | None]
    big: Mapped[int | None] = mapped_column(BigInteger)
    fraction: Mapped[float | None]
    double: Mapped[float | None] = mapped_column(Double)
    money: Mapped[Decimal | None] = mapped_column(Numeric(12, 2))
    flag: Mapped[bool | None]
    day: Mapped[date | None]
    moment: Mapped[datetime | None]
    at: Mapped[time | None]
    key: Mapped[UUID | None]
    colour: Mapped[Colour | None] = mapped_column(Enum(Colour))
    anything: Mapped[Any] = mapped_column(JSON, nullable=True)
    changing: Mapped[Any] = mapped_column(MutableDict.as_mutable(JSON()), nullable=True)
    text: Mapped[str | None]
    lower: Mapped[str | None] = mapped_column(Lower)
    json_text: Mapped[Any] = mapped_column(JsonText, nullable=True)
    declared: Mapped[Any] = mapped_column(Declared, nullable=True)
    doubled: Mapped[int | None] = mapped_column(Computed("whole * 2", persisted=True))
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("owners.id"))
    owner: Mapped[Owner | None] = relationship()
    parts: Mapped[list[Part]] = relationship()
    words = synonym("text")

    @hybrid_property
    def loud(self) -> str:
        return (self.text or "").upper()

    @property
    def quiet(self) -> str:
        return (self.text or "").lower()


Thing.known = column_property(Thing.text + "!")  # type: ignore[attr-defined]

KEYWORD: Final = {"type": "keyword"}
TEXT: Final = {"type": "text", "fields": {"keyword": {"type": "keyword", "ignore_above": 256}}}
LONG, DOUBLE, DATE = {"type": "long"}, {"type": "double"}, {"type": "date"}
ANYTHING: Final = {"type": "object", "enabled": False}
DERIVED: Final[dict[str, tuple[dict[str, Any], list[Any]]]] = {
    "small": (LONG, [-(2**63), 2**63 - 1]),  # SQLite takes them, whatever the column says
    "whole": (LONG, [-(2**62), 2**62 - 1]),
    "big": (LONG, [2**31, 2**53 + 1]),
    "fraction": (DOUBLE, [1.7976931348623157e308, -5e-324]),
    "double": (DOUBLE, [0.1, 1e22]),
    "money": (DOUBLE, [Decimal("9999999999.99"), Decimal("-0.01")]),
    "flag": ({"type": "boolean"}, [True, False]),
    "day": (DATE, [date(1, 1, 1), date(9999, 12, 31)]),
    "moment": (DATE, [datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999)]),
    "at": (KEYWORD, [time(0), time(23, 59, 59, 999999)]),
    "key": (KEYWORD, [UUID(int=0), UUID(int=2**128 - 1)]),
    "colour": (KEYWORD, [Colour.RED, Colour.BLUE]),
    "anything": (ANYTHING, [["a", 1, {"a": 1}], "text", 5, {"a": {"b": "c"}}, {"a": "x"}, True]),
    "changing": (ANYTHING, [{"a": 1}, {"a": "x"}]),
    "text": (TEXT, ["", "word", "x" * 100_000, "ä" * 300, "2026-01-01"]),
    "lower": (TEXT, ["ADA", None]),
    "declared": (ANYTHING, []),
    "doubled": (LONG, []),
    "known": (TEXT, []),
    "words": (TEXT, []),
}
"""Each field: its derived mapping, and values that are delivered with it."""

ON_POSTGRESQL: Final[dict[str, list[Any]]] = {"small": [-(2**15), 2**15 - 1], "whole": [-(2**30), 2**30 - 1]}
"""The values of fields whose columns hold less there."""
