"""A joined subclass calls its key otherwise than its base does."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import Engine, ForeignKey, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from outbox import EntityRegistry
from outbox.store.store import Store


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Engineer(Person):
    __tablename__ = "engineers"
    number: Mapped[int] = mapped_column(ForeignKey("people.id"), primary_key=True)
    language: Mapped[str]
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "engineer"}


def test_update_of_a_subclass_by_criteria_is_noted(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    registry = EntityRegistry()
    registry.add(Engineer, index="engineers", fields=["name", "language"])
    sessions = registry.capture(sessionmaker(engine))
    with sessions.begin() as session:
        session.add_all([Engineer(id=1, name="Ada", language="C"), Engineer(id=2, name="Grace", language="COBOL")])
    with sessions.begin() as session:
        assert session.execute(update(Engineer).where(Engineer.language == "C").values(language="Ada")).rowcount == 1
    store = Store(engine)
    assert [row["document_id"] for row in store.events()] == ["1", "2", "1"]
    store.close()
