"""Models of every kind that a session may change: paths, collections, subclasses, composite keys."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID, uuid4

from sqlalchemy import Column, Computed, ForeignKey, ForeignKeyConstraint, Table, func
from sqlalchemy.orm import DeclarativeBase, Mapped, column_property, mapped_column, relationship, synonym


class Base(DeclarativeBase):
    pass


contact_tags = Table(
    "contact_tags",
    Base.metadata,
    Column("contact_id", ForeignKey("contacts.id"), primary_key=True),
    Column("tag_id", ForeignKey("tags.id", ondelete="CASCADE"), primary_key=True),
)


class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    notes: Mapped[str | None]
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id"))
    parent: Mapped[Account | None] = relationship(remote_side="Account.id")


class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]
    colour: Mapped[str | None]


class Phone(Base):
    __tablename__ = "phones"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[str]
    contact_id: Mapped[int | None] = mapped_column(ForeignKey("contacts.id"))


class Contact(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str | None]
    secret: Mapped[str | None]
    archived: Mapped[bool] = mapped_column(default=False)
    tenant_id: Mapped[str | None]
    account_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id"))
    account: Mapped[Account | None] = relationship()
    tags: Mapped[list[Tag]] = relationship(secondary=contact_tags)
    phones: Mapped[list[Phone]] = relationship()
    title = synonym("name")


class Deal(Base):
    __tablename__ = "deals"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str]
    account_id: Mapped[int | None]


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
    language: Mapped[str | None]
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "engineer"}


class Order(Base):
    __tablename__ = "orders"
    shop: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    shop: Mapped[str | None]
    number: Mapped[int | None]
    __table_args__ = (ForeignKeyConstraint(["shop", "number"], ["orders.shop", "orders.number"]),)


class Album(Base):
    __tablename__ = "albums"
    id: Mapped[int] = mapped_column(primary_key=True)
    songs: Mapped[list[Song]] = relationship(cascade="all, delete-orphan")


class Song(Base):
    __tablename__ = "songs"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    album_id: Mapped[int] = mapped_column(ForeignKey("albums.id"))
    verses: Mapped[list[Verse]] = relationship(cascade="all, delete-orphan", back_populates="song")


class Verse(Base):
    __tablename__ = "verses"
    id: Mapped[int] = mapped_column(primary_key=True)
    words: Mapped[str] = mapped_column(default="la")
    tenant_id: Mapped[str]
    song_id: Mapped[int | None] = mapped_column(ForeignKey("songs.id"))
    song: Mapped[Song | None] = relationship(back_populates="verses")


class Country(Base):
    __tablename__ = "countries"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    motto: Mapped[str | None]


class City(Base):
    __tablename__ = "cities"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    country_id: Mapped[int | None] = mapped_column(ForeignKey("countries.id"))
    country: Mapped[Country | None] = relationship()


class Street(Base):
    __tablename__ = "streets"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    city_id: Mapped[int | None] = mapped_column(ForeignKey("cities.id"))
    city: Mapped[City | None] = relationship()


class Book(Base):
    __tablename__ = "books"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]


class Reader(Base):
    __tablename__ = "readers"
    id: Mapped[int] = mapped_column(primary_key=True)
    books: Mapped[list[Book]] = relationship(secondary="loans", viewonly=True)


class Loan(Base):
    __tablename__ = "loans"
    reader_id: Mapped[int] = mapped_column(ForeignKey("readers.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    book_id: Mapped[int] = mapped_column(ForeignKey("books.id"))
    remark: Mapped[str | None]
    book: Mapped[Book] = relationship()


class Card(Base):
    __tablename__ = "cards"
    id: Mapped[int] = mapped_column(primary_key=True)
    reader_id: Mapped[int] = mapped_column(ForeignKey("readers.id"))
    reader: Mapped[Reader] = relationship()


class Page(Base):
    """Columns that change without being set."""

    __tablename__ = "pages"
    id: Mapped[int] = mapped_column(primary_key=True)
    words: Mapped[str] = mapped_column(default="")
    hidden: Mapped[str] = mapped_column(default="")
    changed: Mapped[datetime | None] = mapped_column(onupdate=func.current_timestamp())
    length: Mapped[int] = mapped_column(Computed("length(hidden)", persisted=True))
    revision: Mapped[int] = mapped_column()
    __mapper_args__: ClassVar[Any] = {"version_id_col": revision}


Page.shout = column_property(func.upper(Page.hidden))


def deal_document(deal: Deal) -> dict[str, Any]:
    return {"name": deal.name}
