"""What a session changes becomes rows: all that is needed, and no more, whichever way it is changed."""

from __future__ import annotations

import asyncio
import gc
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID, uuid4

import pytest
from sqlalchemy import (
    Column,
    Computed,
    Engine,
    ForeignKey,
    ForeignKeyConstraint,
    Table,
    bindparam,
    create_engine,
    delete,
    event,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    column_property,
    mapped_column,
    relationship,
    scoped_session,
    sessionmaker,
    synonym,
)

from outbox import ConfigurationError, Dependency, EntityRegistry, InvalidName, OutboxRepository, sqlite
from outbox.entities.registry import Entity
from outbox.store.models import Event
from outbox.triggers import installer as triggers


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
    length: Mapped[int] = mapped_column(Computed("length(hidden)"))
    revision: Mapped[int] = mapped_column()
    __mapper_args__: ClassVar[Any] = {"version_id_col": revision}


Page.shout = column_property(func.upper(Page.hidden))


@pytest.fixture
def database(engine: Engine) -> Engine:
    Base.metadata.create_all(engine)
    return engine


@pytest.fixture
def registry() -> EntityRegistry:
    return EntityRegistry()


@pytest.fixture
def sessions(database: Engine, registry: EntityRegistry) -> sessionmaker[Session]:
    return registry.capture(sessionmaker(database))


@pytest.fixture
def contacts(registry: EntityRegistry) -> Entity:
    return registry.add(Contact, index="contacts", fields=["name", "email"], tenant="tenant_id")


class Rows:
    """Rows that came in since the last look, as `index/_id`."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._seen = engine, 0

    def events(self) -> list[Event]:
        with self._engine.connect() as connection:
            found = connection.execute(
                text(f"SELECT {', '.join(Event._fields)} FROM outbox_events WHERE id > :seen ORDER BY id"),
                {"seen": self._seen},
            )
            events = [Event._make(row) for row in found]
        self._seen = max([self._seen, *(each.id for each in events)])
        assert {each.action for each in events} <= {"refresh"}
        return events

    def __call__(self) -> list[str]:
        return [f"{each.index_name}/{each.document_id}" for each in self.events()]


@pytest.fixture
def new(database: Engine) -> Rows:
    return Rows(database)


@contextmanager
def statements(engine: Engine, start: str) -> Iterator[list[str]]:
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        if sql.startswith(start):
            seen.append(sql)

    event.listen(engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine, "before_cursor_execute", note)


# -- objects ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("contacts")
def test_object_that_is_added_changed_and_deleted_has_a_row_each_time(
    sessions: sessionmaker[Session], new: Rows
) -> None:
    with sessions() as session:
        contact = Contact(name="Ada", tenant_id="t1")
        session.add(contact)
        session.commit()
        (row,) = new.events()
        assert (row.index_name, row.document_id, row.tenant_id, row.entity) == ("contacts", "1", "t1", "contacts")
        contact.name = "Grace"
        session.commit()
        assert new() == ["contacts/1"]
        session.delete(contact)
        session.commit()
        assert new() == ["contacts/1"]


@pytest.mark.usefixtures("contacts")
def test_row_is_inserted_after_the_entity_is_written(sessions: sessionmaker[Session], database: Engine) -> None:
    order: list[str] = []
    event.listen(database, "before_cursor_execute", lambda *call: order.append(call[2][:30]))
    with sessions.begin() as session:
        session.add(Contact(name="Ada"))
        event.listen(session, "before_flush", lambda *_: order.append(f"rows: {count(session)}"))
        event.listen(session, "after_flush_postexec", lambda *_: order.append(f"rows: {count(session)}"))
        session.flush()
    assert order.index("rows: 0") < next(at for at, sql in enumerate(order) if sql.startswith("INSERT INTO contacts"))
    assert "rows: 1" in order


def count(session: Session) -> int:
    return int(session.connection().exec_driver_sql("SELECT count(*) FROM outbox_events").scalar_one())


@pytest.mark.usefixtures("contacts")
def test_row_goes_with_its_transaction(sessions: sessionmaker[Session], new: Rows) -> None:
    with sessions() as session:
        session.add(Contact(name="Ada"))
        session.flush()
        session.rollback()
        assert new() == []
        session.add(Contact(id=7, name="Ada"))
        session.commit()
        assert new() == ["contacts/7"]


@pytest.mark.usefixtures("contacts")
def test_document_has_one_row_however_often_it_changes_in_a_transaction(
    sessions: sessionmaker[Session], new: Rows
) -> None:
    with sessions() as session:
        contact = Contact(name="Ada")
        session.add(contact)
        for name in ("a", "b", "c"):
            session.flush()
            contact.name = name
        session.execute(update(Contact).values(email="x"))
        session.commit()
        assert new() == ["contacts/1"]
        contact.name = "d"
        session.commit()
        assert new() == ["contacts/1"]


@pytest.mark.parametrize("of_connection", [False, True])
@pytest.mark.usefixtures("contacts")
def test_savepoint_that_is_rolled_back_leaves_no_changed_entity_without_a_row(
    sessions: sessionmaker[Session], new: Rows, of_connection: bool
) -> None:
    with sessions() as session:
        session.add_all([Contact(id=1, name="Ada"), Contact(id=2, name="Bob")])
        session.commit()
        new()
        session.get_one(Contact, 1).name = "before"
        session.flush()
        savepoint = (session.connection() if of_connection else session).begin_nested()
        session.get_one(Contact, 2).name = "rolled back"
        session.flush()
        savepoint.rollback()
        session.expire_all()
        session.get_one(Contact, 2).name = "after"
        session.commit()
        assert new() == ["contacts/1", "contacts/2"]


@pytest.mark.usefixtures("contacts")
def test_change_in_a_savepoint_of_what_is_noted_outside_needs_no_second_row(
    sessions: sessionmaker[Session], new: Rows
) -> None:
    with sessions() as session:
        contact = Contact(id=1, name="Ada")
        session.add(contact)
        session.flush()
        savepoint = session.begin_nested()
        contact.name = "Grace"
        session.flush()
        savepoint.rollback()
        with session.begin_nested():
            contact.name = "Grace"
        session.commit()
        assert new() == ["contacts/1"]


@pytest.mark.usefixtures("contacts")
def test_change_in_a_released_savepoint_has_its_row(sessions: sessionmaker[Session], new: Rows) -> None:
    with sessions() as session:
        with session.begin_nested():
            session.add(Contact(id=1, name="Ada"))
        with session.begin_nested():
            session.get_one(Contact, 1).name = "Grace"
        session.commit()
        assert set(new()) == {"contacts/1"}


def test_change_that_no_document_shows_has_no_row(
    registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows
) -> None:
    registry.add(Contact, index="contacts", fields=["title"], watch=["archived"], when=lambda row: not row.archived)
    with sessions() as session:
        contact = Contact(name="Ada")
        session.add(contact)
        session.commit()
        new()
        contact.secret = "x"
        session.commit()
        session.execute(update(Contact).values(secret="y"))
        session.commit()
        contact.name = contact.name  # set, but not changed
        session.commit()
        assert new() == []
        contact.archived = True
        session.commit()
        assert new() == ["contacts/1"]
        contact.name = "Grace"  # the synonym's column
        session.commit()
        assert new() == ["contacts/1"]


@pytest.mark.parametrize(
    "given", [{"to_document": lambda contact: {"name": contact.name}}, {"fields": ["name"], "when": bool}]
)
def test_every_column_counts_where_functions_may_look_at_any(
    registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows, given: dict[str, Any]
) -> None:
    registry.add(Contact, index="contacts", **given)
    with sessions() as session:
        contact = Contact(name="Ada")
        session.add(contact)
        session.commit()
        new()
        contact.secret = "x"
        session.commit()
        assert new() == ["contacts/1"]
        contact.tags.append(Tag(label="x"))
        session.commit()
        assert new() == ["contacts/1"]


@pytest.mark.parametrize("field", ["changed", "length", "revision", "shout"])
def test_column_that_changes_by_itself_makes_every_change_count(
    registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows, field: str
) -> None:
    registry.add(Page, index="pages", fields=["words", field])
    with sessions() as session:
        page = Page()
        session.add(page)
        session.commit()
        new()
        page.hidden = "x"
        session.commit()
        assert new() == ["pages/1"]
        session.execute(update(Page).values(hidden="y"))
        session.commit()
        assert new() == ["pages/1"]


@pytest.mark.usefixtures("contacts")
def test_changed_key_has_rows_for_the_old_and_the_new_one(sessions: sessionmaker[Session], new: Rows) -> None:
    with sessions() as session:
        contact = Contact(id=1, name="Ada")
        session.add(contact)
        session.commit()
        new()
        contact.id = 2
        session.commit()
        assert sorted(new()) == ["contacts/1", "contacts/2"]
        session.execute(update(Contact).values(id=Contact.id + 5))
        session.commit()
        assert sorted(new()) == ["contacts/2", "contacts/7"]


@pytest.mark.parametrize(
    ("tenancy", "places"),
    [
        ("shared", ["contacts/1"]),
        ("prefixed", ["contacts/2:t1:1", "contacts/2:t2:1"]),
        ("index", ["t1_contacts/1", "t2_contacts/1"]),
    ],
)
@pytest.mark.parametrize("way", ["object", "expired object", "update", "update by key", "query", "in a listener"])
def test_changed_tenant_has_rows_for_the_old_and_the_new_place(
    registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows, tenancy: str, places: list[str], way: str
) -> None:
    registry.add(Contact, index="contacts", fields=["name"], tenant="tenant_id", tenancy=tenancy)
    with sessions() as session:
        contact = Contact(id=1, name="Ada", tenant_id="t1")
        session.add(contact)
        session.commit()
        new()
        if way == "object":
            assert contact.name == "Ada"
            contact.tenant_id = "t2"
        elif way == "expired object":
            contact.tenant_id = "t2"
        elif way == "update":
            session.execute(update(Contact).where(Contact.tenant_id == "t1").values(tenant_id="t2"))
        elif way == "update by key":
            session.execute(update(Contact), [{"id": 1, "tenant_id": "t2"}])
        elif way == "query":
            session.query(Contact).filter_by(tenant_id="t1").update({Contact.tenant_id: "t2"})
        else:
            assert contact.tenant_id == "t1"
            contact.name = "Grace"

            @event.listens_for(Contact, "before_update")
            def move(_mapper: Any, _connection: Any, target: Contact) -> None:
                target.tenant_id = "t2"

            session.flush()
            event.remove(Contact, "before_update", move)
        session.commit()
        assert sorted(new()) == places


def test_place_is_the_databases_not_the_one_in_stale_memory(
    registry: EntityRegistry, database: Engine, new: Rows
) -> None:
    registry.add(Contact, index="contacts", fields=["name"], tenant="tenant_id", tenancy="prefixed")
    sessions = registry.capture(sessionmaker(database, expire_on_commit=False))
    with sessions() as stale, sessions() as other:
        contact = Contact(id=1, name="Ada", tenant_id="t1")
        stale.add(contact)
        stale.commit()
        other.get_one(Contact, 1).tenant_id = "t2"
        other.commit()
        new()
        contact.name = "Grace"
        stale.commit()
        assert contact.tenant_id == "t1"
        assert new() == ["contacts/2:t2:1"]
        contact.tenant_id = "t3"
        stale.commit()
        assert sorted(new()) == ["contacts/2:t2:1", "contacts/2:t3:1"]
        other.get_one(Contact, 1, populate_existing=True).tenant_id = "t4"
        other.commit()
        new()
        stale.delete(contact)
        stale.commit()
        assert new() == ["contacts/2:t4:1"]


@pytest.mark.usefixtures("contacts")
def test_two_sessions_that_change_different_columns_of_a_row_both_reach_the_index(
    registry: EntityRegistry, database: Engine, new: Rows
) -> None:
    sessions = registry.capture(sessionmaker(database, expire_on_commit=False))
    with sessions() as one, sessions() as two:
        mine = Contact(id=1, name="Ada", email="old")
        one.add(mine)
        one.commit()
        theirs = two.get_one(Contact, 1)
        two.commit()
        mine.name = "Grace"
        one.commit()
        theirs.email = "new"
        two.commit()
        assert (mine.email, theirs.name) == ("old", "Ada")
        events = new.events()
        loaded = registry.load(one.connection(), events)
        assert {json.loads(each)["email"] for each in loaded.values() if isinstance(each, bytes)} == {"new"}  # type: ignore[index]
        assert json.loads(loaded[events[-1].id]) == {"name": "Grace", "email": "new"}  # type: ignore[arg-type]


@pytest.mark.parametrize("tenancy", ["shared", "prefixed", "index"])
@pytest.mark.parametrize("tenant", ["*" * 300, "a\nb"])
def test_hostile_tenant_fails_the_write(
    registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows, tenancy: str, tenant: str
) -> None:
    registry.add(Contact, index="contacts", fields=["name"], tenant="tenant_id", tenancy=tenancy)
    with sessions() as session:
        session.add(Contact(id=1, name="Ada", tenant_id="t1"))
        session.commit()
        new()
        session.add(Contact(name="Eve", tenant_id=tenant))
        with pytest.raises(InvalidName, match="tenant id"):
            session.commit()
        session.rollback()
        session.get_one(Contact, 1).tenant_id = tenant
        with pytest.raises(InvalidName, match="tenant id"):
            session.commit()
        session.rollback()
        for statement in (
            update(Contact).values(tenant_id=tenant),
            insert(Contact).values(name="Eve", tenant_id=tenant),
        ):
            with pytest.raises(InvalidName, match="tenant id"):
                session.execute(statement)
            session.rollback()
        assert new() == []
        assert session.scalars(select(Contact.tenant_id)).all() == ["t1"]


@pytest.mark.parametrize("tenant", ["*", "a,b", "../x", "<x-{now/d}>", "Acme"])
def test_tenant_that_would_leave_its_index_fails_the_write(
    registry: EntityRegistry, sessions: sessionmaker[Session], tenant: str
) -> None:
    registry.add(Contact, index="contacts", fields=["name"], tenant="tenant_id", tenancy="index")
    with sessions() as session:
        session.add(Contact(name="Eve", tenant_id=tenant))
        with pytest.raises(InvalidName, match="tenant id"):
            session.commit()


@pytest.mark.parametrize(
    ("tenancy", "left", "place"),
    [("index", [], "t1_contacts/3"), ("shared", ["contacts/1", "contacts/2"], "contacts/3")],
)
def test_row_of_a_hostile_tenant_that_is_there_already_can_be_deleted_and_moved_back(
    registry: EntityRegistry,
    sessions: sessionmaker[Session],
    database: Engine,
    new: Rows,
    tenancy: str,
    left: list[str],
    place: str,
) -> None:
    registry.add(Contact, index="contacts", fields=["name"], tenant="tenant_id", tenancy=tenancy)
    with database.begin() as connection:
        connection.execute(
            insert(Contact.__table__),
            [{"id": at, "name": "Eve", "tenant_id": "*" * 300, "archived": False} for at in range(1, 4)],
        )
    with sessions() as session:
        session.delete(session.get_one(Contact, 1))
        session.commit()
        session.execute(delete(Contact).where(Contact.id == 2))
        session.commit()
        assert new() == left
        session.get_one(Contact, 3).tenant_id = "t1"
        session.commit()
        assert new() == [place]


def test_subclasses_are_documents_of_the_entities_above_them(
    registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows
) -> None:
    registry.add(Person, index="people", fields=["name"])
    registry.add(Guest, index="guests", fields=["name", "room"], name="guests")
    registry.add(Engineer, index="engineers", fields=["name", "language"], name="engineers")
    with sessions() as session:
        session.add_all([Person(id=1, name="a"), Guest(id=2, name="b"), Engineer(id=3, name="c")])
        session.commit()
        assert sorted(new()) == ["engineers/3", "guests/2", "people/1", "people/2", "people/3"]
        session.get_one(Engineer, 3).language = "COBOL"  # shown by one of them only
        session.commit()
        assert new() == ["engineers/3"]
        session.execute(update(Person).values(name="d"))
        session.commit()
        assert sorted(new()) == ["engineers/3", "guests/2", "people/1", "people/2", "people/3"]
        session.execute(delete(Guest))
        session.commit()
        assert sorted(new()) == ["guests/2", "people/2"]


# -- relationships ----------------------------------------------------------------------------------------------


@pytest.fixture
def joined(registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows) -> Iterator[Session]:
    """Contacts 1 and 2 with account, parent account, tags and phones."""
    registry.add(
        Contact,
        index="contacts",
        fields=["name", "account.name", "account.parent.name", "tags.label", "phones.number"],
    )
    with sessions() as session:
        parent = Account(id=1, name="Holding")
        account = Account(id=2, name="Acme", parent=parent)
        tag = Tag(id=1, label="x")
        for at in (1, 2):
            session.add(Contact(id=at, name="Ada", account=account, tags=[tag], phones=[Phone(id=at, number="1")]))
        session.add_all([Contact(id=3, name="alone"), Account(id=3, name="Other"), Tag(id=2, label="y")])
        session.commit()
        assert sorted(new()) == ["contacts/1", "contacts/2", "contacts/3"]
        yield session


@pytest.mark.parametrize(
    ("model", "at", "values", "expected"),
    [
        (Account, 2, {"name": "Acme Ltd"}, "12"),
        (Account, 1, {"name": "Holding Ltd"}, "12"),
        (Account, 2, {"parent_id": None}, "12"),
        (Account, 2, {"notes": "not shown"}, ""),
        (Account, 3, {"name": "of nobody"}, ""),
        (Tag, 1, {"label": "z"}, "12"),
        (Tag, 1, {"colour": "not shown"}, ""),
        (Phone, 1, {"number": "2"}, "1"),
        (Phone, 1, {"contact_id": 3}, "13"),
        (Phone, 1, {"contact_id": None}, "1"),
        (Contact, 1, {"account_id": 3}, "1"),
    ],
)
@pytest.mark.parametrize("way", ["object", "update"])
def test_change_of_what_a_path_leads_to_refreshes_the_documents_made_of_it(
    joined: Session, new: Rows, model: type[Any], at: int, values: dict[str, Any], expected: str, way: str
) -> None:
    if way == "object":
        found = joined.get_one(model, at)
        for name, value in values.items():
            setattr(found, name, value)
    else:
        joined.execute(update(model).where(model.id == at).values(**values))
    joined.commit()
    assert sorted(new()) == [f"contacts/{each}" for each in expected]


@pytest.mark.parametrize(
    ("model", "at", "expected"), [(Account, 2, "12"), (Account, 1, "12"), (Tag, 1, "12"), (Phone, 1, "1"), (Tag, 2, "")]
)
@pytest.mark.parametrize("way", ["object", "delete"])
def test_deletion_of_what_a_path_leads_to_refreshes_the_documents_made_of_it(
    joined: Session, new: Rows, model: type[Any], at: int, expected: str, way: str
) -> None:
    joined.execute(text("PRAGMA foreign_keys = OFF"))
    if way == "object":
        joined.delete(joined.get_one(model, at))
    else:
        joined.execute(delete(model).where(model.id == at))
    joined.commit()
    assert sorted(new()) == [f"contacts/{each}" for each in expected]


def test_members_of_collections_that_come_and_go_refresh_both_sides(joined: Session, new: Rows) -> None:
    ada, alone = joined.get_one(Contact, 1), joined.get_one(Contact, 3)
    alone.tags.append(joined.get_one(Tag, 2))
    joined.commit()
    assert new() == ["contacts/3"]
    ada.tags.clear()
    joined.commit()
    assert new() == ["contacts/1"]
    alone.phones.append(joined.get_one(Phone, 1))  # contact 1 is not told
    joined.commit()
    assert sorted(new()) == ["contacts/1", "contacts/3"]
    joined.add(Contact(id=4, name="new", phones=[joined.get_one(Phone, 1)]))
    joined.commit()
    assert sorted(new()) == ["contacts/3", "contacts/4"]
    joined.add(Phone(number="3", contact_id=2))
    joined.commit()
    assert new() == ["contacts/2"]
    alone.account = joined.get_one(Account, 3)
    joined.commit()
    assert new() == ["contacts/3"]
    joined.get_one(Account, 3).parent = joined.get_one(Account, 1)
    joined.commit()
    assert new() == ["contacts/3"]


def test_row_that_comes_later_than_what_points_to_it_refreshes_it(joined: Session, new: Rows) -> None:
    joined.add(Contact(id=4, name="early", account_id=9))
    joined.commit()
    new()
    joined.add(Account(id=9, name="late"))
    joined.commit()
    assert new() == ["contacts/4"]


# -- dependents -------------------------------------------------------------------------------------------------


def deal_document(deal: Deal) -> dict[str, Any]:
    return {"name": deal.name}


@pytest.mark.parametrize("way", ["object", "update"])
def test_dependents_are_noted_by_one_statement_whatever_their_number(
    registry: EntityRegistry, sessions: sessionmaker[Session], database: Engine, new: Rows, way: str
) -> None:
    registry.add(Deal, index="deals", to_document=deal_document, depends_on={Account: "account_id"})
    with sessions() as session:
        session.add(Account(id=1, name="Acme"))
        session.commit()
        session.execute(insert(Deal), [{"name": "d", "account_id": 1 if at < 2_000 else 2} for at in range(2_500)])
        session.commit()
        assert len(new()) == 2_500
        with statements(database, "INSERT INTO outbox_events") as seen, statements(database, "SELECT") as selects:
            if way == "object":
                session.get_one(Account, 1).name = "Acme Ltd"
            else:
                session.execute(update(Account).where(Account.id == 1).values(name="Acme Ltd"))
            session.flush()
            session.get_one(Account, 1).name = "Acme Inc"
            session.commit()
        assert len(seen) == 1
        assert not [sql for sql in selects if "FROM deals" in sql]
        events = new.events()
        assert len({each.document_id for each in events}) == len(events) == 2_000
        loaded = registry.load(session.connection(), events[:10])
        assert [json.loads(each) for each in loaded.values() if isinstance(each, bytes)] == [{"name": "d"}] * 10


def test_dependent_that_has_its_row_already_gets_no_second_one(
    registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows
) -> None:
    registry.add(Deal, index="deals", to_document=deal_document, depends_on={Account: "account_id"})
    with sessions() as session:
        account = Account(id=1, name="Acme")
        session.add_all([account, Deal(name="a", account_id=1), Deal(name="b", account_id=1)])
        session.commit()
        assert len(new()) == 2
        deal = session.scalars(select(Deal)).first()
        assert deal is not None
        account.name, deal.name = "Acme Ltd", "c"
        session.commit()
        assert len(new()) == 2


def test_only_watched_columns_of_what_is_depended_on_count(
    registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows
) -> None:
    registry.add(
        Deal,
        index="deals",
        to_document=deal_document,
        watch=["name"],
        depends_on={Account: Dependency("account_id", watch=["name"])},
    )
    with sessions() as session:
        account, deal = Account(id=1, name="Acme"), Deal(id=UUID(int=1), name="d", account_id=1)
        session.add_all([account, deal])
        session.commit()
        new()
        account.notes = "x"
        session.commit()
        assert new() == []
        account.name = "Acme Ltd"
        session.commit()
        assert new() == [f"deals/{UUID(int=1)}"]
        deal.account_id = 2  # points elsewhere, without being watched
        session.commit()
        assert new() == [f"deals/{UUID(int=1)}"]


@pytest.mark.parametrize("way", ["object", "delete"])
def test_dependents_of_a_row_that_is_deleted_are_refreshed(
    registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows, way: str
) -> None:
    registry.add(Deal, index="deals", to_document=deal_document, depends_on={Account: "account_id"})
    with sessions() as session:
        session.add_all([Account(id=1, name="Acme"), Deal(id=UUID(int=1), name="d", account_id=1)])
        session.commit()
        new()
        if way == "object":
            session.delete(session.get_one(Account, 1))
        else:
            session.execute(delete(Account))
        session.commit()
        assert new() == [f"deals/{UUID(int=1)}"]


@pytest.mark.parametrize("via", ["account", "account_id"])
def test_dependency_leads_through_a_column_or_a_relationship(
    registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows, via: str
) -> None:
    registry.add(Contact, index="contacts", fields=["name"], depends_on={Account: via})
    with sessions() as session:
        session.add_all([Account(id=1, name="Acme"), Contact(id=1, name="Ada", account_id=1)])
        session.commit()
        new()
        session.get_one(Account, 1).name = "Acme Ltd"
        session.commit()
        assert new() == ["contacts/1"]
        session.get_one(Contact, 1).account = None
        session.commit()
        assert new() == ["contacts/1"]


@pytest.mark.parametrize("way", ["object", "update"])
def test_every_row_on_the_way_of_a_dependency_counts(
    registry: EntityRegistry, sessions: sessionmaker[Session], database: Engine, new: Rows, way: str
) -> None:
    registry.add(
        Street, index="streets", fields=["name"], depends_on={Country: Dependency("city.country", watch=["name"])}
    )

    def change(session: Session, model: type[Base], **values: Any) -> list[str]:
        with statements(database, "INSERT INTO outbox_events") as seen:
            if way == "object":
                for name, value in values.items():
                    setattr(session.get_one(model, 1), name, value)
            else:
                session.execute(update(model).where(inspect(model).primary_key[0] == 1).values(values))
            session.commit()
        assert len(seen) <= 1
        return new()

    with sessions() as session:
        session.add_all([Country(id=1, name="A"), Country(id=2, name="B"), City(id=1, name="C", country_id=2)])
        session.add_all([Street(id=at, name="s", city_id=1) for at in (1, 2)])
        session.commit()
        new()
        assert change(session, City, country_id=1) == ["streets/1", "streets/2"]
        assert change(session, City, name="D") == []
        assert change(session, Country, motto="none") == []
        assert change(session, Country, name="E") == ["streets/1", "streets/2"]
        assert change(session, Street, city_id=None) == ["streets/1"]
        assert change(session, Country, name="F") == ["streets/2"]
        if way == "object":
            session.delete(session.get_one(City, 1))
        else:
            session.execute(delete(City))
        session.commit()
        assert new() == ["streets/2"]


def test_association_objects_are_rows_of_the_relationship(
    registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows
) -> None:
    registry.add(Reader, index="readers", fields=["books.title"])
    registry.add(Card, index="cards", fields=["id"], depends_on={Book: "reader.books"})
    both = ["cards/1", "readers/1"]
    with sessions() as session:
        session.add_all([Book(id=1, title="a"), Book(id=2, title="b"), Reader(id=1), Reader(id=2)])
        session.add_all([Card(id=1, reader_id=1), Card(id=2, reader_id=2)])
        session.commit()
        new()
        loan = Loan(reader_id=1, number=1, book_id=1)
        session.add(loan)
        session.commit()
        assert sorted(new()) == both
        loan.remark = "late"
        session.commit()
        assert new() == []
        loan.book = session.get_one(Book, 2)
        session.commit()
        assert sorted(new()) == both
        loan.reader_id = 2
        session.commit()
        assert sorted(new()) == ["cards/1", "cards/2", "readers/1", "readers/2"]
        session.delete(loan)
        session.commit()
        assert sorted(new()) == ["cards/2", "readers/2"]
        session.execute(insert(Loan), [{"reader_id": 1, "number": 1, "book_id": 1}])
        session.commit()
        assert sorted(new()) == both
        session.execute(delete(Loan))
        session.commit()
        assert sorted(new()) == both


def test_dependency_on_a_composite_key(registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows) -> None:
    registry.add(Item, index="items", fields=["name"], depends_on={Order: ("shop", "number")})
    with sessions() as session:
        session.add_all([Order(shop="a", number=1, name="x"), Order(shop="a", number=2, name="y")])
        session.add_all([Item(id=at, name="i", shop="a", number=at) for at in (1, 2)])
        session.commit()
        new()
        session.get_one(Order, ("a", 2)).name = "z"
        session.commit()
        assert new() == ["items/2"]
        session.execute(update(Order).values(name="w"))
        session.commit()
        assert sorted(new()) == ["items/1", "items/2"]


@pytest.mark.parametrize(
    ("depends_on", "reason"),
    [
        ({Account: "acount_id"}, r"no column or relationship 'acount_id'; did you mean 'account_id'\?"),
        ({Account: "tags"}, "'tags' leads to Tag"),
        ({Order: "account_id"}, "primary key has 2 columns"),
        (
            {Account: Dependency("account_id", watch=["nmae"])},
            r"Account has no attribute 'nmae'; did you mean 'name'\?",
        ),
        ({"Account": "account_id"}, "no mapped class"),
        ([Account], "say what leads to each model"),
        ({Account: []}, "name the column or the relationships"),
    ],
)
def test_mistake_in_a_dependency_is_named_at_registration(
    registry: EntityRegistry, depends_on: Any, reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        registry.add(Contact, index="contacts", fields=["name"], depends_on=depends_on)
    assert len(registry) == 0


def test_dependent_of_a_hostile_tenant_holds_up_nobody(
    registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows
) -> None:
    registry.add(Contact, index="contacts", fields=["account.name"], tenant="tenant_id", tenancy="index")
    with sessions() as session:
        session.add_all([Account(id=1, name="Acme"), Contact(id=1, name="Ada", tenant_id="t1", account_id=1)])
        session.commit()
        new()
        row = {"name": "Eve", "tenant_id": "*", "archived": False, "account_id": 1}
        session.execute(insert(Contact.__table__), row)  # unseen
        session.get_one(Account, 1).name = "Acme Ltd"
        session.commit()
        assert new() == ["t1_contacts/1"]


SWAPPED = [("songs", 2), ("songs", 4), ("verses", 3), ("verses", 4)]


@pytest.mark.parametrize("tenancy", ["shared", "prefixed"])
def test_orphans_that_a_flush_deletes_leave_the_index(
    registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows, tenancy: str
) -> None:
    registry.add(Song, index="songs", fields=["id"], tenant="tenant_id", tenancy=tenancy)
    registry.add(Verse, index="verses", fields=["words"], tenant="tenant_id", tenancy=tenancy)
    registry.add(Deal, index="deals", fields=["name"], depends_on={Verse: "account_id"})
    before = "2:t1:" if tenancy == "prefixed" else ""

    def song(number: int) -> Song:
        return Song(id=number, tenant_id="t1", verses=[Verse(id=number, tenant_id="t1")])

    deal = Deal(name="rights", account_id=1)
    with sessions() as session:
        album = Album(id=1, songs=[song(1), song(2)])
        session.add_all([album, deal])
        session.commit()
        new()
        del album.songs[0]
        session.commit()
        assert sorted(new()) == [f"deals/{deal.id}", f"songs/{before}1", f"verses/{before}1"]
        (kept,) = album.songs
        kept.verses[0].song = None
        session.commit()
        assert new() == [f"verses/{before}2"]
        kept.verses = [Verse(id=3, tenant_id="t1")]
        session.commit()
        assert new() == [f"verses/{before}3"]
        album.songs = [song(4)]
        session.commit()
        assert sorted(new()) == sorted(f"{each}/{before}{at}" for each, at in SWAPPED)
        assert session.scalars(select(Verse.id)).all() == [4]


# -- statements -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("contacts")
def test_statement_touches_the_rows_of_its_criteria_only(sessions: sessionmaker[Session], new: Rows) -> None:
    with sessions() as session:
        session.add_all([Contact(id=at, name="Ada" if at % 2 else "Bob") for at in range(1, 6)])
        session.commit()
        new()
        session.execute(update(Contact).where(Contact.name == "Bob").values(name="Grace"))  # no longer matches
        session.commit()
        assert new() == ["contacts/2", "contacts/4"]
        session.execute(update(Contact).where(Contact.id == bindparam("which")).values(name="x"), {"which": 1})
        session.commit()
        assert new() == ["contacts/1"]
        session.execute(update(Contact).where(Contact.id == 99).values(name="x"))
        session.commit()
        assert new() == []
        session.execute(update(Contact), [{"id": 3, "name": "y"}, {"id": 5, "secret": "z"}])
        session.commit()
        assert new() == ["contacts/3", "contacts/5"]
        session.query(Contact).filter(Contact.id < 3).update({"name": "q"}, synchronize_session=False)
        session.commit()
        assert new() == ["contacts/1", "contacts/2"]
        session.execute(delete(Contact).where(Contact.id == 1))
        session.query(Contact).filter(Contact.id > 4).delete()
        session.commit()
        assert new() == ["contacts/1", "contacts/5"]
        assert session.scalars(select(Contact.id)).all() == [2, 3, 4]


@pytest.mark.usefixtures("contacts")
def test_statement_that_sees_pending_changes_touches_what_they_make_it_match(
    sessions: sessionmaker[Session], new: Rows
) -> None:
    with sessions() as session:
        session.add(Contact(id=1, name="Ada"))
        session.commit()
        new()
        session.get_one(Contact, 1).secret = "x"  # pending, and no reason for a row by itself
        session.execute(update(Contact).where(Contact.secret == "x").values(name="Grace"))
        session.commit()
        assert new() == ["contacts/1"]


@pytest.mark.usefixtures("contacts")
def test_listener_that_hides_rows_from_queries_hides_none_from_capture(
    sessions: sessionmaker[Session], new: Rows
) -> None:
    with sessions() as session:
        session.add(Contact(id=1, name="Ada", archived=True))
        session.commit()
        new()

        @event.listens_for(session, "do_orm_execute")
        def hide(state: Any) -> None:
            if state.is_select:
                state.statement = state.statement.where(Contact.archived.is_(False))

        session.execute(update(Contact).values(name="Grace"))
        session.commit()
        assert new() == ["contacts/1"]


@pytest.mark.usefixtures("contacts")
def test_inserted_rows_are_known_by_what_the_database_returns(sessions: sessionmaker[Session], new: Rows) -> None:
    with sessions() as session:
        session.execute(insert(Contact), [{"name": "a"}, {"name": "b", "email": "x"}])
        session.execute(insert(Contact).values([{"name": "c"}, {"name": "d"}]))
        session.execute(insert(Contact).values(name="e"))
        session.execute(
            insert(Contact).from_select(["name", "archived"], select(Contact.name, Contact.archived).limit(1))
        )
        session.commit()
        assert new() == [f"contacts/{at}" for at in range(1, 7)]
        upsert = sqlite_insert(Contact).values(id=3, name="z", archived=False)
        session.execute(upsert.on_conflict_do_update(index_elements=["id"], set_={"name": "z"}))
        session.execute(upsert.on_conflict_do_nothing())
        session.commit()
        assert new() == ["contacts/3"]


@pytest.mark.usefixtures("contacts")
def test_caller_of_a_statement_gets_what_it_asked_for(sessions: sessionmaker[Session], database: Engine) -> None:
    bare = sessionmaker(database)
    for make in (sessions, bare):
        with make() as session:
            single = session.execute(insert(Contact).values(name="a"))
            assert tuple(single.inserted_primary_key) == (1,)  # type: ignore[attr-defined]
            assert single.rowcount == 1  # type: ignore[attr-defined]
            many = session.scalars(insert(Contact).returning(Contact), [{"name": "b"}, {"name": "c"}]).all()
            assert [each.name for each in many] == ["b", "c"]
            assert many[0] is session.get(Contact, 2)
            pairs = session.execute(insert(Contact).returning(Contact.name, Contact.id), [{"name": "d"}])
            assert [tuple(each) for each in pairs] == [("d", 4)]
            changed = session.execute(update(Contact).where(Contact.id < 3).values(name="x"))
            assert changed.rowcount == 2  # type: ignore[attr-defined]
            moved = session.execute(update(Contact).where(Contact.id == 4).values(id=9))
            assert moved.rowcount == 1  # type: ignore[attr-defined]
            named = session.execute(update(Contact).where(Contact.id == 9).values(id=8).returning(Contact.name))
            assert named.mappings().all() == [{"name": "d"}]
            assert session.execute(delete(Contact).where(Contact.id == 8)).rowcount == 1  # type: ignore[attr-defined]
            session.rollback()


# -- sessions ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("contacts")
def test_every_kind_of_session_can_be_captured(registry: EntityRegistry, database: Engine, new: Rows) -> None:
    class Own(Session):
        pass

    registry.capture(Own)
    scoped = registry.capture(scoped_session(sessionmaker(database)))
    single = registry.capture(Session(database))
    for session in (Own(database), scoped(), single):
        session.add(Contact(name="Ada"))
        session.commit()
        session.close()
    with Session(database) as other:
        other.add(Contact(name="unseen"))
        other.commit()
    assert new() == ["contacts/1", "contacts/2", "contacts/3"]


@pytest.mark.usefixtures("contacts")
def test_capturing_twice_notes_once(registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows) -> None:
    registry.capture(sessions)
    with sessions.begin() as session:
        session.add(Contact(name="Ada"))
    assert new() == ["contacts/1"]


def test_two_registries_capture_one_session(
    sessions: sessionmaker[Session], registry: EntityRegistry, new: Rows
) -> None:
    registry.add(Contact, index="contacts", fields=["name"], tenant="tenant_id", tenancy="prefixed")
    other = EntityRegistry()
    other.add(Deal, index="deals", fields=["name"], depends_on={Account: "account_id"})
    other.capture(sessions)
    with sessions() as session:
        session.add_all([Account(id=1, name="Acme"), Contact(id=1, name="Ada", tenant_id="t1")])
        session.add(Deal(id=UUID(int=1), name="d", account_id=1))
        session.commit()
        new()
        session.get_one(Contact, 1).tenant_id = "t2"
        session.delete(session.get_one(Account, 1))
        session.commit()
        assert sorted(new()) == ["contacts/2:t1:1", "contacts/2:t2:1", f"deals/{UUID(int=1)}"]


def test_what_makes_no_sessions_cannot_be_captured(registry: EntityRegistry, database: Engine) -> None:
    for wrong in (object(), database, Contact):
        with pytest.raises(ConfigurationError, match="makes no sessions"):
            registry.capture(wrong)


def test_entity_registered_after_capture_is_captured(
    registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows
) -> None:
    with sessions() as session:
        session.add(Contact(name="Ada"))
        session.commit()
        assert new() == []
        registry.add(Contact, index="contacts", fields=["name"])
        session.add(Contact(name="Bob"))
        session.commit()
        assert new() == ["contacts/2"]


@pytest.mark.parametrize("own_class", [False, True])
@pytest.mark.usefixtures("contacts")
def test_async_sessions_are_captured(registry: EntityRegistry, database: Engine, new: Rows, own_class: bool) -> None:
    class Inside(Session):
        pass

    async def write() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{database.url.database}")
        sqlite.prepare(engine)
        sessions = async_sessionmaker(engine, **({"sync_session_class": Inside} if own_class else {}))
        assert registry.capture(sessions) is sessions
        async with sessions.begin() as session:
            session.add(Contact(name="Ada"))
            await session.flush()
            await session.execute(update(Contact).values(name="Grace"))
            assert isinstance(session.sync_session, Inside if own_class else Session)
        async with sessions() as session:
            await session.execute(insert(Contact), [{"name": "b"}, {"name": "c"}])
            await session.commit()
        async with AsyncSession(engine) as session:
            session.add(Contact(name="unseen"))
            await session.commit()
        await engine.dispose()

    asyncio.run(write())
    assert new() == ["contacts/1", "contacts/2", "contacts/3"]


@pytest.mark.usefixtures("contacts")
def test_disabled_outbox_notes_nothing(
    sessions: sessionmaker[Session], new: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    from outbox import settings

    monkeypatch.setenv("OUTBOX_ENABLED", "false")
    settings.write_settings.cache_clear()
    try:
        with sessions.begin() as session:
            session.add(Contact(name="Ada"))
            session.flush()
            session.execute(update(Contact).values(name="Grace"))
        assert new() == []
    finally:
        settings.write_settings.cache_clear()


@pytest.mark.usefixtures("contacts")
def test_captured_rows_are_waited_for(
    registry: EntityRegistry, sessions: sessionmaker[Session], database: Engine
) -> None:
    registry.add(Deal, index="deals", to_document=deal_document, depends_on={Account: "account_id"})
    with sessions() as session:
        session.add_all([Account(id=1, name="Acme"), *(Deal(name="d", account_id=1) for _ in range(5))])
        session.commit()
        session.get_one(Account, 1).name = "Acme Ltd"  # rows 6 to 10
        session.add_all([Contact(name="Ada"), Contact(name="Bob")])  # before them
        session.commit()
        with database.begin() as connection:
            connection.execute(text("UPDATE outbox_events SET state = 'done', outcome = 'applied' WHERE id > 5"))
        assert OutboxRepository(session).wait_until_synced(timeout=0) == dict.fromkeys(range(6, 13), "applied")


@pytest.mark.usefixtures("contacts")
def test_statements_on_tables_are_not_seen_and_refresh_is_the_remedy(
    registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows
) -> None:
    with sessions() as session:
        session.execute(insert(Contact.__table__), {"id": 1, "name": "Ada", "archived": False})
        session.bulk_insert_mappings(Contact, [{"id": 2, "name": "Bob"}])  # type: ignore[arg-type]
        session.commit()
        assert new() == []
        repo = OutboxRepository(session, registry)
        repo.refresh("contacts", 1)
        repo.refresh(session.get_one(Contact, 2))
        session.commit()
        assert new() == ["contacts/1", "contacts/2"]


@pytest.mark.usefixtures("contacts")
def test_missing_outbox_tables_are_named_by_the_first_write(registry: EntityRegistry, tmp_path: Any) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'bare.db'}")
    sqlite.prepare(engine)
    Base.metadata.create_all(engine)
    with registry.capture(sessionmaker(engine))() as session:
        session.add(Contact(name="Ada"))
        with pytest.raises(Exception, match="run 'outbox-relay migrate'"):
            session.commit()
    engine.dispose()


@pytest.mark.usefixtures("contacts")
def test_no_cursor_is_left_to_the_garbage_collector_of_another_thread(
    sessions: sessionmaker[Session], database: Engine, registry: EntityRegistry
) -> None:
    """It would reset its statement, which the connection keeps for the next one and may be using at that moment."""
    with database.begin() as connection:
        triggers.install(connection, registry)
    for covered in (True, False):
        gc.collect()
        gc.disable()  # what it would have to find stays to be found
        try:
            with sessions.begin() as session:
                session.add_all([Contact(id=n + covered * 10, name="Ada", tenant_id="t1") for n in (1, 2)])
                session.flush()
                OutboxRepository(session).index_many("notes", [("1", {}), ("2", {})])
            cursors = [each for each in gc.get_objects() if isinstance(each, sqlite3.Cursor)]
            assert [each for each in cursors if not _is_closed(each)] == []
        finally:
            gc.enable()
        with database.begin() as connection:
            triggers.remove(connection)


def _is_closed(cursor: sqlite3.Cursor) -> bool:
    try:
        cursor.fetchone()
    except sqlite3.ProgrammingError:  # or its connection is
        return True
    return False


@pytest.mark.parametrize("when", ["before_flush", "after_flush"])
@pytest.mark.usefixtures("contacts")
def test_statement_of_a_listener_to_the_flush_itself_is_noted(
    sessions: sessionmaker[Session], new: Rows, when: str
) -> None:
    with sessions.begin() as session:
        session.add_all([Contact(id=1, name="Ada", tenant_id="t1"), Tag(id=1, label="a")])
    assert new() == ["contacts/1"]

    def rename(session: Session, *_: Any) -> None:
        session.execute(update(Contact).where(Contact.id == 1).values(name="Grace"))

    event.listen(sessions, when, rename)
    with sessions.begin() as session:
        session.get_one(Tag, 1).label = "b"
    assert new() == ["contacts/1"]


@pytest.mark.usefixtures("contacts")
def test_session_in_autocommit_is_refused(database: Engine, registry: EntityRegistry) -> None:
    """What it notes once would be delivered, and a later change of the same transaction not be noted again."""
    sessions = registry.capture(sessionmaker(database.execution_options(isolation_level="AUTOCOMMIT")))
    with sessions() as session, pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        session.add(Contact(id=1, name="Ada", tenant_id="t1"))
        session.flush()
