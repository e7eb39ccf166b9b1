"""Sessions that lock rows of the same tables do so in one order, however they came to change them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from outbox import EntityRegistry


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str]


class Line(Base):
    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str]


def test_rows_of_several_tables_are_locked_in_the_same_order_by_all(postgresql_engine: Engine) -> None:
    Base.metadata.create_all(postgresql_engine)
    registry = EntityRegistry()
    for model in (Order, Line):
        registry.add(model, index=model.__tablename__, fields=["tenant"], tenant="tenant", tenancy="prefixed")
    sessions = registry.capture(sessionmaker(postgresql_engine))
    with sessions.begin() as session:
        session.add_all([Order(id=1, tenant="a"), Line(id=1, tenant="a")])
    locked: list[str] = []

    @event.listens_for(postgresql_engine, "before_cursor_execute")
    def on_execute(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "FOR NO KEY UPDATE" in statement:
            locked.append(next(table for table in ("orders", "lines") if f"FROM {table}" in statement))

    for at in range(30):  # objects that are changed have the order of their addresses
        with sessions.begin() as session:
            models: list[type[Any]] = [Order, Line] if at % 2 else [Line, Order]
            for each in [session.get_one(model, 1) for model in models]:
                each.tenant = f"t{at}"
    assert locked == 30 * ["lines", "orders"]
