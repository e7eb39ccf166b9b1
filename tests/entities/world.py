"""Models of every kind that may be registered, and what a relay loads of their rows."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from uuid import UUID, uuid4

from sqlalchemy import Column, Engine, Enum, ForeignKey, String, Table, TypeDecorator, Uuid, event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from outbox import EntityRegistry
from outbox.entities.entity import Entity
from outbox.entities.maker import Loaded
from outbox.relay.load import from_database
from outbox.store.models import Event


class Base(DeclarativeBase):
    pass


contact_tags = Table(
    "contact_tags",
    Base.metadata,
    Column("contact_id", ForeignKey("contacts.id"), primary_key=True),
    Column("tag_id", ForeignKey("tags.id"), primary_key=True),
)


class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("people.id"))
    owner: Mapped[Person | None] = relationship()


class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]


class Contact(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str | None]
    notes: Mapped[str | None] = mapped_column(deferred=True)
    archived: Mapped[bool] = mapped_column(default=False)
    count: Mapped[int] = mapped_column(default=0)  # named as a method that SQLAlchemy's rows have
    tenant_id: Mapped[str | None]
    account_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id"))
    account: Mapped[Account | None] = relationship()
    tags: Mapped[list[Tag]] = relationship(secondary=contact_tags)
    words: Mapped[list[Word]] = relationship()

    @property
    def shout(self) -> str:
        return self.name.upper()


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Guest(Person):
    room: Mapped[str | None]
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "guest"}


class Engineer(Person):
    __tablename__ = "engineers"
    id: Mapped[int] = mapped_column(ForeignKey("people.id"), primary_key=True)
    language: Mapped[str]
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "engineer"}


class Colour(enum.Enum):
    RED = "#f00"
    BLUE = "#00f"


class Sku(TypeDecorator[int]):
    """Stored as an integer, used as a string with a prefix."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, _dialect: Any) -> Any:
        return value.removeprefix("SKU-")

    def process_result_value(self, value: Any, _dialect: Any) -> Any:
        return f"SKU-{value}"


class Doc(Base):
    __tablename__ = "docs"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str]
    tenant_id: Mapped[UUID | None]


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[str] = mapped_column(Uuid(as_uuid=False), primary_key=True)
    name: Mapped[str]


class Part(Base):
    __tablename__ = "parts"
    maker: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    serial: Mapped[UUID] = mapped_column(primary_key=True)
    colour: Mapped[Colour] = mapped_column(Enum(Colour), primary_key=True)
    sku: Mapped[str] = mapped_column(Sku, primary_key=True)
    tenant_id: Mapped[str | None]


class Word(Base):
    __tablename__ = "words"
    text: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str | None]
    contact_id: Mapped[int | None] = mapped_column(ForeignKey("contacts.id"))


def refresh(entity: Entity, *places: tuple[Any, ...] | str, index: str | None = None) -> list[Event]:
    """Rows as a relay claims them; a place is an _id, or index and _id."""
    named = [place if isinstance(place, tuple) else (index or entity.index, place) for place in places]
    return [
        Event(at, "refresh", index_name, document_id, None, entity.name, 0, 1, 0)
        for at, (index_name, document_id) in enumerate(named, 1)
    ]


def loaded(
    registry: EntityRegistry, session: Session, entity: Entity, *places: tuple[Any, ...] | str, index: str | None = None
) -> list[Any]:
    """What the registry says of each place, documents parsed."""
    session.flush()
    events = refresh(entity, *places, index=index)
    found = from_database(session.connection(), registry, events)
    assert list(found) == [each.id for each in events]
    return [parsed(found[each.id]) for each in events]


def parsed(document: Loaded) -> Any:
    return json.loads(document) if isinstance(document, bytes) else document


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """The SELECTs that were executed meanwhile."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        if sql.startswith("SELECT"):
            seen.append(sql)

    event.listen(engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine, "before_cursor_execute", note)
