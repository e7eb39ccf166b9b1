"""The members of a to-many path come in the order of their primary keys, of whatever types those are."""

from __future__ import annotations

import enum
import json
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import (
    Column,
    Date,
    DateTime,
    Engine,
    Enum,
    Float,
    ForeignKey,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    String,
    Time,
    TypeDecorator,
    Uuid,
    func,
)
from sqlalchemy.dialects.postgresql import CITEXT
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from outbox import EntityRegistry
from outbox.entities import loader
from outbox.testing import OutboxTester


class Role(enum.Enum):
    USER = "a user"
    ADMIN = "an admin"


class Version:
    """A value of the application's own, which has no order and prints its address."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and other.number == self.number

    def __hash__(self) -> int:
        return hash(self.number)


class VersionType(TypeDecorator[Version]):
    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Any, _dialect: Any) -> Any:
        return value.number

    def process_result_value(self, value: Any, _dialect: Any) -> Any:
        return Version(value)


KEYS: dict[str, tuple[Any, list[Any]]] = {
    "enum": (Enum(Role), [Role.ADMIN, Role.USER]),
    "date": (Date(), [date(2024, 1, 31), date(2024, 2, 1)]),
    "datetime": (DateTime(), [datetime(2024, 1, 1, 9), datetime(2024, 1, 1, 9, 0, 0, 5)]),
    "time": (Time(), [time(9), time(10)]),
    "uuid": (Uuid(), [UUID(int=1), UUID(int=2)]),
    "uuid as text": (Uuid(as_uuid=False), [str(UUID(int=1)), str(UUID(int=2))]),
    "decimal": (Numeric(10, 2), [Decimal("9.5"), Decimal("10")]),
    "float": (Float(), [9.5, 10.0]),
    "bytes": (LargeBinary(), [b"\x00", b"\xff"]),
    "interval": (Interval(), [timedelta(1), timedelta(2)]),
    "integer": (Integer(), [9, 10]),
    "text": (String(), ["10", "9"]),
    "of the application": (VersionType(), [Version(9), Version(10)]),
}


def team_of(type_: Any) -> tuple[type[DeclarativeBase], Any, Any]:
    class Base(DeclarativeBase):
        pass

    class Member(Base):
        __tablename__ = "members"
        team_id = Column(ForeignKey("teams.id"), primary_key=True)
        key = Column(type_, primary_key=True)
        name = Column(String)

    class Team(Base):
        __tablename__ = "teams"
        id = Column(Integer, primary_key=True)
        members = relationship(Member)

    return Base, Team, Member


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("turned", [False, True])
def test_list_of_members_has_the_order_of_their_keys_in_relay_reindex_and_verify(
    engine: Engine, kind: str, turned: bool
) -> None:
    type_, keys = KEYS[kind]
    base, team, member = team_of(type_)
    base.metadata.create_all(engine)
    registry = EntityRegistry()
    entity = registry.add(team, index="teams", fields=["members.name"])
    with Session(engine) as session:
        session.add(team(id=1))
        for at, key in sorted(enumerate(keys), reverse=turned):
            session.add(member(team_id=1, key=key, name=str(at)))
            session.flush()
        session.commit()
    with engine.connect() as connection:
        (relayed,) = loader.load_places(connection, entity, [("teams", "1")]).values()
        (reindexed,) = loader.page(connection, entity, loader.Part(), None, 10)
        ((_, verified),) = next(loader.load_rows(connection, entity, [(1,)], 1)).values()
    assert relayed == reindexed.document == verified
    assert isinstance(relayed, bytes)
    assert json.loads(relayed) == {"members": [{"name": "0"}, {"name": "1"}]}


@pytest.mark.parametrize("how", ["plain", "descending"])
def test_members_that_are_equal_by_the_order_of_their_relationship_have_that_of_their_keys(
    either: Engine, how: str
) -> None:
    """PostgreSQL writes a row anew, at another place, whatever changes of it."""
    base, team, member = team_of(Integer())
    team.some = relationship(
        member, order_by=member.name if how == "plain" else member.name.desc().nulls_last(), viewonly=True
    )
    base.metadata.create_all(either)
    entity = EntityRegistry().add(team, index="teams", fields=["some.key"])
    names = {5: "a", 4: "b", 3: "a", 2: None, 1: "b", 0: None}
    with Session(either) as session:
        session.add(team(id=1))
        for key, name in names.items():
            session.add(member(team_id=1, key=key, name=name))
            session.flush()
        (made,) = loader.load_places(session.connection(), entity, [("teams", "1")]).values()
    assert isinstance(made, bytes)
    nulls_first = either.dialect.name == "sqlite"
    keys = [0, 2, 3, 5, 1, 4] if nulls_first else [3, 5, 1, 4, 0, 2]
    assert [each["key"] for each in json.loads(made)["some"]] == (keys if how == "plain" else [1, 4, 3, 5, 0, 2])


def test_order_by_more_than_columns_is_left_to_the_database(engine: Engine) -> None:
    base, team, member = team_of(Integer())
    team.some = relationship(member, order_by=func.lower(member.name), viewonly=True)
    base.metadata.create_all(engine)
    entity = EntityRegistry().add(team, index="teams", fields=["some.key"])
    with Session(engine) as session:
        session.add_all([team(id=1), *(member(team_id=1, key=at, name=str(9 - at)) for at in range(5))])
        session.commit()
        (made,) = loader.load_places(session.connection(), entity, [("teams", "1")]).values()
    assert isinstance(made, bytes)
    assert json.loads(made) == {"some": [{"key": at} for at in (4, 3, 2, 1, 0)]}


def test_members_whose_key_is_spelt_otherwise_than_that_of_their_row_are_its_members(either: Engine) -> None:
    on_postgresql = either.dialect.name == "postgresql"
    any_case = CITEXT() if on_postgresql else String(collation="NOCASE")

    class Base(DeclarativeBase):
        pass

    class Entry(Base):
        __tablename__ = "entries"
        id: Mapped[int] = mapped_column(primary_key=True)
        by: Mapped[str] = mapped_column(any_case, ForeignKey("users.name"))

    class User(Base):
        __tablename__ = "users"
        name: Mapped[str] = mapped_column(any_case, primary_key=True)
        entries: Mapped[list[Entry]] = relationship()

    if on_postgresql:
        with either.begin() as connection:
            connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS citext")
    Base.metadata.create_all(either)
    registry, sessions = EntityRegistry(), sessionmaker(either)
    registry.add(User, index="users", fields=["entries.id"])
    registry.capture(sessions)
    with OutboxTester(either, registry) as tester:
        with sessions.begin() as session:
            session.add_all([User(name="Ada"), User(name="Grace")])
        with sessions.begin() as session:
            session.add_all([Entry(id=1, by="ADA"), Entry(id=2, by="grace")])
        tester.drain()
        assert tester.document("users", "Ada") == {"entries": [{"id": 1}]}
        with sessions.begin() as session:
            session.get_one(Entry, 1).by = "GRACE"
        tester.drain()
        assert tester.document("users", "Ada") == {"entries": []}
        assert tester.document("users", "Grace") == {"entries": [{"id": 1}, {"id": 2}]}


class UuidAsText(TypeDecorator[UUID]):
    impl = String(36)
    cache_ok = True

    def process_bind_param(self, value: Any, _dialect: Any) -> Any:
        return str(value)

    def process_result_value(self, value: Any, _dialect: Any) -> Any:
        return UUID(value)


@pytest.mark.parametrize(
    ("key", "foreign_key"), [(UuidAsText(), String(36)), (Uuid(), Uuid(as_uuid=False))], ids=["decorated", "plain"]
)
def test_members_whose_key_is_of_another_type_than_that_of_their_row_are_its_members(
    either: Engine, key: Any, foreign_key: Any
) -> None:
    class Base(DeclarativeBase):
        pass

    class Entry(Base):
        __tablename__ = "entries"
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[str] = mapped_column(foreign_key, ForeignKey("users.id"))

    class User(Base):
        __tablename__ = "users"
        id: Mapped[UUID] = mapped_column(key, primary_key=True)
        entries: Mapped[list[Entry]] = relationship()

    Base.metadata.create_all(either)
    entity = EntityRegistry().add(User, index="users", fields=["entries.id"])
    with Session(either) as session:
        session.add_all([User(id=UUID(int=1)), User(id=UUID(int=2))])
        session.flush()
        session.add_all(Entry(id=at, user_id=str(UUID(int=of))) for at, of in ((1, 2), (2, 1), (3, 2)))
        session.flush()
        made = [each.document for each in loader.page(session.connection(), entity, loader.Part(), None, 10)]
    assert [isinstance(each, bytes) and json.loads(each)["entries"] for each in made] == [
        [{"id": 2}],
        [{"id": 1}, {"id": 3}],
    ]


def test_members_whose_keys_lack_a_part_come_first(engine: Engine) -> None:
    base, team, _ = team_of(String())
    partly = base.metadata.tables["members"].c.key
    partly.nullable = True
    base.metadata.create_all(engine)
    entity = EntityRegistry().add(team, index="teams", fields=["members.name"])
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO teams (id) VALUES (1)")
        connection.exec_driver_sql("INSERT INTO members VALUES (1, 'a', '1'), (1, NULL, '0')")
        (made,) = loader.load_places(connection, entity, [("teams", "1")]).values()
    assert isinstance(made, bytes)
    assert json.loads(made) == {"members": [{"name": "0"}, {"name": "1"}]}


def test_set_of_members_has_the_order_of_their_keys_also_if_the_relationship_has_one(engine: Engine) -> None:
    base, team, member = team_of(Integer())
    team.some = relationship(member, collection_class=set, order_by=member.name.desc(), viewonly=True)
    base.metadata.create_all(engine)
    entity = EntityRegistry().add(team, index="teams", fields=["some.name"])
    with Session(engine) as session:
        session.add_all([team(id=1), *(member(team_id=1, key=at, name=str(at)) for at in range(20))])
        session.commit()
        (made,) = loader.load_places(session.connection(), entity, [("teams", "1")]).values()
    assert isinstance(made, bytes)
    assert json.loads(made) == {"some": [{"name": str(at)} for at in range(20)]}
