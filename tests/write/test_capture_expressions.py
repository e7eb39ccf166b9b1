"""Attributes that are set to an SQL expression: after the flush the object says nothing of them, the database does."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, String, TypeDecorator, event, func, literal, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from outbox import EntityRegistry
from tests.support.following import Following
from tests.support.watching import Rows
from tests.write.models import Account, Contact, Phone


@pytest.fixture
def session(registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows) -> Any:
    registry.add(Contact, index="contacts", fields=["name", "account.name", "phones.number"])
    with sessions() as session:
        account = Account(id=1, name="Acme")
        session.add_all([account, Account(id=2, name="Other")])
        for at in (1, 2):
            session.add(Contact(id=at, name="Ada", account=account, phones=[Phone(id=at, number="1")]))
        session.add(Contact(id=3, name="alone"))
        session.commit()
        new()
        yield session


EXPRESSIONS: dict[str, Callable[[], Any]] = {
    "of the column": lambda: Contact.name + "!",
    "of a function": lambda: func.upper(Contact.name),
    "of a query": lambda: select(Account.name).where(Account.id == 1).scalar_subquery(),
}


@pytest.mark.parametrize("given", EXPRESSIONS)
def test_attribute_that_is_set_to_an_expression_is_noted(session: Session, new: Rows, given: str) -> None:
    session.get_one(Contact, 1).name = EXPRESSIONS[given]()
    session.commit()
    assert new() == ["contacts/1"]


def test_expression_that_no_document_shows_has_no_row(session: Session, new: Rows) -> None:
    session.get_one(Contact, 1).secret = func.upper("x")
    session.commit()
    assert new() == []


def test_expression_that_a_listener_sets_is_noted(session: Session, new: Rows) -> None:
    contact = session.get_one(Contact, 1)
    contact.secret = "x"

    @event.listens_for(Contact, "before_update")
    def rename(_mapper: Any, _connection: Any, target: Contact) -> None:
        target.name = func.upper(Contact.name)

    session.flush()
    event.remove(Contact, "before_update", rename)
    session.commit()
    assert new() == ["contacts/1"]


def test_object_that_an_earlier_listener_expires_is_noted(
    database: Engine, registry: EntityRegistry, new: Rows
) -> None:
    registry.add(Contact, index="contacts", fields=["name"])
    sessions = sessionmaker(database)
    event.listen(sessions, "after_flush", lambda session, _: [session.expire(each) for each in session.dirty])
    with registry.capture(sessions)() as session:
        session.add(Contact(id=1, name="Ada"))
        session.commit()
        new()
        session.get_one(Contact, 1).name = "Grace"
        session.commit()
        assert new() == ["contacts/1"]


def test_row_that_documents_are_made_of_is_noted(session: Session, new: Rows) -> None:
    session.get_one(Account, 1).name = func.upper(Account.name)
    session.commit()
    assert sorted(new()) == ["contacts/1", "contacts/2"]


def test_row_that_an_expression_gives_to_another_is_noted_at_both(session: Session, new: Rows) -> None:
    session.get_one(Phone, 1).contact_id = literal(1) + 2
    session.commit()
    assert sorted(new()) == ["contacts/1", "contacts/3"]
    session.get_one(Contact, 1).account_id = select(func.max(Account.id)).scalar_subquery()
    session.commit()
    assert new() == ["contacts/1"]


@pytest.mark.parametrize(
    ("tenancy", "places"),
    [
        ("shared", [("contacts/1", "t2")]),
        ("prefixed", [("contacts/2:t1:1", "t1"), ("contacts/2:t2:1", "t2")]),
        ("index", [("t1_contacts/1", "t1"), ("t2_contacts/1", "t2")]),
    ],
)
def test_tenant_that_is_set_to_an_expression_is_the_databases(
    registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows, tenancy: str, places: list[tuple[str, str]]
) -> None:
    registry.add(Contact, index="contacts", fields=["name"], tenant="tenant_id", tenancy=tenancy)
    with sessions() as session:
        contact = Contact(id=1, name="Ada", tenant_id="t1")
        session.add(contact)
        session.commit()
        new()
        contact.tenant_id = func.replace(Contact.tenant_id, "1", "2")
        session.commit()
    rows = sorted(new.events(), key=lambda row: f"{row.index_name}/{row.document_id}")
    assert [(f"{row.index_name}/{row.document_id}", row.tenant_id) for row in rows] == places


def test_value_that_the_database_returns_at_once_is_noted(engine: Engine) -> None:
    class Base(DeclarativeBase):
        pass

    class Counter(Base):
        __tablename__ = "counters"
        __mapper_args__: dict[str, Any] = {"eager_defaults": True}  # noqa: RUF012
        id: Mapped[int] = mapped_column(primary_key=True)
        count: Mapped[int]

    Base.metadata.create_all(engine)
    registry, new = EntityRegistry(), Rows(engine)
    registry.add(Counter, index="counters", fields=["count"])
    with registry.capture(sessionmaker(engine))() as session:
        session.add(Counter(id=1, count=1))
        session.commit()
        new()
        session.get_one(Counter, 1).count = Counter.count + 1
        session.commit()
    assert new() == ["counters/1"]


class Region(str, enum.Enum):  # noqa: UP042  (what many applications have)
    """An enum whose members are texts: `str` of one is another text than the one that drivers write."""

    EAST = "east"
    WEST = "west"


@pytest.mark.parametrize(
    ("tenancy", "places"),
    [
        ("shared", [("shops/west", "east"), ("shops/west", "west")]),
        ("prefixed", [("shops/4:east:west", "east"), ("shops/4:west:west", "west")]),
    ],
)
def test_member_of_an_enum_in_a_text_column_is_the_text_that_is_stored(
    engine: Engine, tenancy: str, places: list[tuple[str, str]]
) -> None:
    class Base(DeclarativeBase):
        pass

    class Shop(Base):
        __tablename__ = "shops"
        id: Mapped[str] = mapped_column(primary_key=True)
        region: Mapped[str]
        name: Mapped[str]

    Base.metadata.create_all(engine)
    registry, new = EntityRegistry(), Rows(engine)
    registry.add(Shop, index="shops", fields=["name"], tenant="region", tenancy=tenancy)
    with registry.capture(sessionmaker(engine))() as session:
        session.add(Shop(id=Region.WEST, region=Region.EAST, name="one"))
        session.commit()
        session.get_one(Shop, "west").region = Region.WEST
        session.commit()
    noted = {(f"{row.index_name}/{row.document_id}", row.tenant_id) for row in new.events()}
    assert sorted(noted) == places


class Lower(TypeDecorator[str]):
    """Text that the database makes lower case."""

    impl = String
    cache_ok = True

    def bind_expression(self, bindparam: Any) -> Any:
        return func.lower(bindparam)


@pytest.mark.parametrize("tenancy", ["shared", "prefixed"])
def test_new_row_belongs_where_the_database_spells_its_key_and_tenant(
    registry: EntityRegistry, engine: Engine, tenancy: str
) -> None:
    class Own(DeclarativeBase):
        pass

    class Letter(Own):
        __tablename__ = "letters"
        id: Mapped[str] = mapped_column(
            String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql"), primary_key=True
        )
        to: Mapped[str]
        tenant_id: Mapped[str] = mapped_column(Lower)

    Own.metadata.create_all(engine)
    registry.add(Letter, index="letters", fields=["to"], tenant="tenant_id", tenancy=tenancy)
    rows, following = Rows(engine), Following(engine, registry)
    with registry.capture(sessionmaker(engine))() as session:
        session.add(letter := Letter(id="0" * 31 + "a", to="x", tenant_id="ACME"))
        session.commit()
        assert {each.tenant_id for each in rows.events()} == {"acme"}
        assert following.follow() == following.rebuilt()
        assert len(following.index) == 1
        changes: list[Callable[[], object]] = [
            lambda: setattr(letter, "to", "y"),
            lambda: setattr(letter, "tenant_id", "BOLT"),
            lambda: session.delete(letter),
        ]
        for change in changes:
            change()
            session.commit()
            assert following.follow() == following.rebuilt()
