"""Triggers cannot send values as parameters: what a condition compares with is written into them."""

from __future__ import annotations

import enum
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import JSON, Engine, Enum, ForeignKey, Interval, LargeBinary, TypeDecorator, and_
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from outbox import EntityRegistry, triggers
from outbox.testing import OutboxTester


class Mood(enum.Enum):
    GOOD = "good's"


class Packed(TypeDecorator[str]):
    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, _dialect: Any) -> bytes | None:
        return None if value is None else value.encode()


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (JSON().with_variant(JSONB(), "postgresql"), {"it's": [1, ":name"]}),
        (LargeBinary(), b"\x00'\xff"),
        (Interval(), timedelta(hours=1)),
        (Enum(Mood), Mood.GOOD),
        (Packed(), "it's"),
    ],
    ids=["json", "bytes", "interval", "enum", "decorated"],
)
def test_relationship_goes_by_a_value_that_has_no_literal_in_sqlalchemy(engine: Engine, type_: Any, value: Any) -> None:
    class Base(DeclarativeBase):
        pass

    class Line(Base):
        __tablename__ = "lines"
        id: Mapped[int] = mapped_column(primary_key=True)
        deal_id: Mapped[int] = mapped_column(ForeignKey("deals.id"))
        name: Mapped[str]
        mark: Mapped[Any] = mapped_column(type_)

    class Deal(Base):
        __tablename__ = "deals"
        id: Mapped[int] = mapped_column(primary_key=True)
        lines: Mapped[list[Line]] = relationship(
            viewonly=True, primaryjoin=lambda: and_(Line.deal_id == Deal.id, Line.mark == value)
        )

    Base.metadata.create_all(engine)
    registry = EntityRegistry()
    registry.add(Deal, index="deals", fields=["lines.name"])
    with engine.begin() as connection:
        triggers.install(connection, registry)
    with OutboxTester(engine, registry) as outbox, Session(engine) as session:
        session.add_all([Deal(id=1), Line(id=1, deal_id=1, name="a", mark=value)])
        session.commit()
        outbox.drain()
        assert outbox.document("deals", "1") == {"lines": [{"name": "a"}]}
        session.get_one(Line, 1).name = "b"
        session.commit()
        outbox.drain()
        assert outbox.document("deals", "1") == {"lines": [{"name": "b"}]}
