"""A change becomes a row for each document that is made of what changed, whichever way leads there."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import UUID

import pytest
from sqlalchemy import (
    Column,
    Engine,
    Enum,
    ForeignKey,
    Integer,
    String,
    Table,
    Text,
    Unicode,
    Uuid,
    cast,
    delete,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    composite,
    foreign,
    mapped_column,
    relationship,
    sessionmaker,
    synonym,
)

from outbox import ConfigurationError, Dependency, EntityRegistry, triggers
from outbox.relay.load import from_database
from tests.support.following import Following
from tests.support.watching import Rows, statements
from tests.write.models import (
    Account,
    Album,
    Base,
    Book,
    Card,
    City,
    Contact,
    Country,
    Deal,
    Item,
    Loan,
    Order,
    Phone,
    Reader,
    Song,
    Street,
    Tag,
    Verse,
    deal_document,
)


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
    if joined.get_bind().dialect.name == "sqlite":
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


@pytest.mark.parametrize("lazy", ["select", "dynamic", "write_only"])
def test_members_are_followed_by_whichever_collection_writes_them(
    registry: EntityRegistry, engine: Engine, lazy: Any
) -> None:
    class Own(DeclarativeBase):
        pass

    class Worker(Own):
        __tablename__ = "workers"
        id: Mapped[int] = mapped_column(primary_key=True)
        firm_id: Mapped[int | None] = mapped_column(ForeignKey("firms.id"))

    class Firm(Own):
        __tablename__ = "firms"
        id: Mapped[int] = mapped_column(primary_key=True)
        workers = relationship(Worker, lazy=lazy)
        shown: Mapped[list[Worker]] = relationship(viewonly=True)

    Own.metadata.create_all(engine)
    registry.add(Firm, index="firms", fields=["shown.id"])
    following = Following(engine, registry)
    sessions = registry.capture(sessionmaker(engine))
    with sessions() as session:
        firm, other = Firm(id=1), Firm(id=2)
        workers = [Worker(id=at, firm_id=1) for at in (1, 2, 3)]
        session.add_all([firm, other, *workers])
        session.commit()
        following.follow()
        added = "add" if lazy == "write_only" else "append"
        changes: list[Callable[[], object]] = [
            lambda: getattr(other.workers, added)(workers[0]),
            lambda: firm.workers.remove(workers[1]),
            lambda: session.add(Firm(id=3, workers=[workers[2]])),
        ]
        for change in changes:
            change()
            session.commit()
            assert following.follow() == following.rebuilt()


def test_members_are_followed_by_what_only_a_subclass_has(registry: EntityRegistry, engine: Engine) -> None:
    class Own(DeclarativeBase):
        pass

    pairs = Table("pairs", Own.metadata, *(Column(name, ForeignKey(f"{name}.id")) for name in ("firms", "workers")))

    class Firm(Own):
        __tablename__ = "firms"
        id: Mapped[int] = mapped_column(primary_key=True)
        staff: Mapped[list[Worker]] = relationship(viewonly=True)
        friends: Mapped[list[Worker]] = relationship(secondary=pairs, viewonly=True)

    class Worker(Own):
        __tablename__ = "workers"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        firm_id: Mapped[int | None] = mapped_column(ForeignKey("firms.id"))
        __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind", "polymorphic_identity": "worker"}

    class Manager(Worker):
        firm: Mapped[Firm] = relationship()
        friends: Mapped[list[Firm]] = relationship(secondary=pairs)
        __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "manager"}

    Own.metadata.create_all(engine)
    registry.add(Firm, index="firms", fields=["staff.id", "friends.id"])
    following = Following(engine, registry)
    sessions = registry.capture(sessionmaker(engine))
    with sessions() as session:
        manager, other = Manager(id=1, firm_id=1), Firm(id=2)
        session.add_all([Firm(id=1), other, manager])
        session.commit()
        following.follow()
        changes: list[Callable[[], object]] = [
            lambda: setattr(manager, "firm", other),
            lambda: manager.friends.append(other),
            lambda: manager.friends.clear(),
        ]
        for change in changes:
            change()
            session.commit()
            assert following.follow() == following.rebuilt()


def members() -> tuple[type[Any], type[Any], type[Any]]:
    """Users and groups, and the class between them, whose table collections of both write as well."""

    class Own(DeclarativeBase):
        pass

    class Group(Own):
        __tablename__ = "groups"
        id: Mapped[int] = mapped_column(primary_key=True)
        users: Mapped[list[User]] = relationship(secondary="memberships", overlaps="memberships")

    class User(Own):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        memberships: Mapped[list[Membership]] = relationship(overlaps="users")
        groups: Mapped[list[Group]] = relationship(secondary="memberships", overlaps="memberships,users")

    class Membership(Own):
        __tablename__ = "memberships"
        user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
        group_id: Mapped[int] = mapped_column(ForeignKey("groups.id"), primary_key=True)
        group: Mapped[Group] = relationship(overlaps="groups,users")

    return User, Group, Membership


def test_association_objects_that_a_collection_adds_and_removes_are_noted(
    registry: EntityRegistry, engine: Engine
) -> None:
    user_class, group_class, _ = members()
    user_class.metadata.create_all(engine)
    registry.add(user_class, index="users", fields=["memberships.group.id"])
    following = Following(engine, registry)
    sessions = registry.capture(sessionmaker(engine))
    with sessions() as session:
        user, group, other = user_class(id=1), group_class(id=1), group_class(id=2)
        session.add_all([user, group, other])
        session.commit()
        following.follow()
        changes: list[Callable[[], object]] = [
            lambda: user.groups.append(group),
            lambda: other.users.append(user),
            lambda: group.users.clear(),
            lambda: user.groups.clear(),
        ]
        for change in changes:
            change()
            session.commit()
            assert following.follow() == following.rebuilt()


def test_collection_that_adds_rows_of_an_entity_past_its_objects_is_refused(registry: EntityRegistry) -> None:
    user_class, _, membership_class = members()
    reason = r"Group\.users adds and removes rows of Membership past its objects.*; declare it viewonly=True"
    with pytest.raises(ConfigurationError, match=reason):
        registry.add(membership_class, index="memberships", fields=["group.id"])
    with pytest.raises(ConfigurationError, match=reason):
        registry.add(user_class, index="users", to_document=dict, depends_on={membership_class: ("id", "id")})


def test_row_that_comes_later_than_what_points_to_it_refreshes_it(joined: Session, new: Rows) -> None:
    joined.add(Contact(id=4, name="early", account_id=9))
    joined.commit()
    new()
    joined.add(Account(id=9, name="late"))
    joined.commit()
    assert new() == ["contacts/4"]


def looks(database: Engine) -> int:
    """How often dependents are looked for: on PostgreSQL once more as the transaction ends."""
    return 1 if database.dialect.name == "sqlite" else 2


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
        assert len(seen) == looks(database)
        assert not [sql for sql in selects if "FROM deals" in sql]
        events = new.events()
        assert len({each.document_id for each in events}) == len(events) == 2_000
        loaded = from_database(session.connection(), registry, events[:10])
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


@dataclass
class Size:
    width: int
    height: int


@pytest.mark.parametrize("noted_by", ["sessions", "triggers"])
def test_watched_relationship_or_composite_changes_with_its_columns(
    registry: EntityRegistry, engine: Engine, noted_by: str
) -> None:
    class Own(DeclarativeBase):
        pass

    class Maker(Own):
        __tablename__ = "makers"
        id: Mapped[int] = mapped_column(primary_key=True)
        owner_id: Mapped[int | None] = mapped_column(ForeignKey("makers.id"))
        owner: Mapped[Maker | None] = relationship(remote_side=[id])
        plot: Mapped[Size] = composite(mapped_column("plot_width"), mapped_column("plot_height"))

    class Toy(Own):
        __tablename__ = "toys"
        id: Mapped[int] = mapped_column(primary_key=True)
        maker_id: Mapped[int] = mapped_column(ForeignKey("makers.id"))
        maker: Mapped[Maker] = relationship(foreign_keys=[maker_id])
        brand_id: Mapped[int | None] = mapped_column(ForeignKey("makers.id"))
        brand: Mapped[Maker | None] = relationship(foreign_keys=[brand_id])
        label = synonym("brand")
        size: Mapped[Size] = composite(mapped_column("width"), mapped_column("height"))

    Own.metadata.create_all(engine)
    registry.add(
        Toy,
        index="toys",
        to_document=lambda toy: {"all": [toy.brand_id, toy.size.width, toy.maker.owner_id, toy.maker.plot.width]},
        watch=["label", "size"],
        depends_on={Maker: Dependency("maker", watch=["owner", "plot"])},
    )
    following = Following(engine, registry)
    if noted_by == "triggers":
        with engine.begin() as connection:
            triggers.install(connection, registry)
    sessions = registry.capture(sessionmaker(engine))
    with sessions() as session:
        makers = [Maker(id=at, plot=Size(1, 1)) for at in (1, 2)]
        toy = Toy(id=1, maker=makers[0], size=Size(1, 1))
        session.add_all([*makers, toy])
        session.commit()
        following.follow()
        changes: list[Callable[[], object]] = [
            lambda: setattr(toy, "brand_id", 2),
            lambda: setattr(toy, "brand", makers[0]),
            lambda: session.execute(update(Toy).values(brand_id=2)),
            lambda: setattr(toy, "size", Size(2, 1)),
            lambda: session.execute(update(Toy).values(width=3)),
            lambda: setattr(makers[0], "plot", Size(2, 1)),
            lambda: setattr(makers[0], "owner_id", 2),
            lambda: setattr(makers[0], "owner", None),
            lambda: session.execute(update(Maker).values(owner_id=None)),
        ]
        for change in changes:
            change()
            session.commit()
            assert following.follow() == following.rebuilt()


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


def test_dependency_leads_along_each_of_several_ways(
    registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows
) -> None:
    registry.add(
        Contact, index="contacts", fields=["name"], watch=[], depends_on={Account: ["account", "account.parent"]}
    )
    with sessions() as session:
        acme = Account(id=2, name="Acme", parent=Account(id=1, name="Holding"))
        session.add_all([Contact(id=1, name="Ada", account=acme), Account(id=3, name="Other")])
        session.commit()
        new()
        for change, of in (("name", 1), ("name", 2)):
            setattr(session.get_one(Account, of), change, "Ltd")
            session.commit()
            assert new() == ["contacts/1"]
        acme.parent_id = 3
        session.commit()
        assert new() == ["contacts/1"]
        session.execute(update(Contact).values(account_id=3))
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
        assert len(seen) <= looks(database)
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


def remarks(key: Any) -> tuple[type[Any], type[Any]]:
    """A thing with a key of that type, and remarks about things of any kind, which hold the key as text."""

    class Own(DeclarativeBase):
        pass

    class Thing(Own):
        __tablename__ = "things"
        id: Mapped[Any] = mapped_column(key, primary_key=True)
        name: Mapped[str]

    class Remark(Own):
        __tablename__ = "remarks"
        id: Mapped[int] = mapped_column(primary_key=True)
        about: Mapped[str]
        thing: Mapped[Thing | None] = relationship(
            primaryjoin=lambda: foreign(Remark.about) == cast(Thing.id, String), viewonly=True
        )

    return Thing, Remark


@pytest.mark.parametrize(
    "key", [Integer(), Uuid(), Enum(enum.Enum("Kind", "A B")), String().with_variant(postgresql.UUID(), "postgresql")]
)
def test_column_that_cannot_be_compared_with_the_key_is_refused_as_what_leads_to_it(
    registry: EntityRegistry, key: Any
) -> None:
    thing, remark = remarks(key)
    with pytest.raises(ConfigurationError, match=r"'about' is of type String\(\).*cast\(Thing\.id, …\), viewonly=True"):
        registry.add(remark, index="remarks", to_document=dict, depends_on={thing: "about"})


@pytest.mark.parametrize("key", [Text(), String(9), Unicode()])
def test_column_that_can_be_compared_with_the_key_leads_to_it(registry: EntityRegistry, key: Any) -> None:
    thing, remark = remarks(key)
    registry.add(remark, index="remarks", to_document=dict, depends_on={thing: "about"})


@pytest.mark.parametrize("noted_by", ["sessions", "triggers"])
def test_relationship_that_converts_a_key_leads_to_it(registry: EntityRegistry, engine: Engine, noted_by: str) -> None:
    thing, remark = remarks(Integer())
    remark.metadata.create_all(engine)
    registry.add(
        remark,
        index="remarks",
        to_document=lambda made: {"about": made.thing and made.thing.name},
        depends_on={thing: "thing"},
    )
    following = Following(engine, registry)
    if noted_by == "triggers":
        with engine.begin() as connection:
            triggers.install(connection, registry)
    sessions = registry.capture(sessionmaker(engine))
    with sessions() as session:
        session.add_all([thing(id=1, name="a"), remark(id=1, about="1"), remark(id=2, about="2")])
        session.commit()
        assert following.follow() == following.rebuilt()
        changes: list[Callable[[], object]] = [
            lambda: session.add(thing(id=2, name="b")),
            lambda: setattr(session.get_one(thing, 1), "name", "c"),
            lambda: session.execute(update(thing).values(name="d")),
            lambda: session.delete(session.get_one(thing, 1)),
        ]
        for change in changes:
            change()
            session.commit()
            assert following.follow() == following.rebuilt()


@pytest.mark.parametrize(
    ("depends_on", "reason"),
    [
        ({Account: "acount_id"}, r"no column or relationship 'acount_id'; did you mean 'account_id'\?"),
        ({Account: "tags"}, "'tags' leads to Tag"),
        ({Account: ["account", "tags"]}, "'tags' leads to Tag"),
        ({Account: "account.parent_id"}, r"Account\.parent_id is a column; .* ends at the one that leads to Account"),
        ({Order: "account_id"}, "primary key has 2 columns"),
        (
            {Account: Dependency("account_id", watch=["nmae"])},
            r"Account has no attribute 'nmae'; did you mean 'name'\?",
        ),
        (
            {Contact: Dependency("id", watch=["phones"])},
            r"watch: Contact\.phones changes with other rows than those of Contact; name Phone in depends_on",
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


@pytest.mark.parametrize("way", ["by the child", "by its new parent"])
def test_object_that_gets_another_parent_is_moved_without_a_look_at_what_is_below_it(
    registry: EntityRegistry, engine: Engine, way: str
) -> None:
    class Own(DeclarativeBase):
        pass

    class Node(Own):
        __tablename__ = "nodes"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(default="n")
        parent_id: Mapped[int | None] = mapped_column(ForeignKey("nodes.id"))
        children: Mapped[list[Node]] = relationship(cascade="all, delete-orphan", back_populates="parent")
        parent: Mapped[Node | None] = relationship(back_populates="children", remote_side=[id])

    Own.metadata.create_all(engine)
    registry.add(Node, index="nodes", fields=["name", "parent.name"])
    sessions, new = registry.capture(sessionmaker(engine)), Rows(engine)
    with sessions() as session:
        session.add_all([Node(id=1), Node(id=2), Node(id=3, parent_id=1), Node(id=4, parent_id=3)])
        session.commit()
        new()
        moved, later = session.get_one(Node, 3), session.get_one(Node, 2)
        if way == "by the child":
            moved.parent = later
        else:
            later.children.append(moved)
        session.flush()
        assert "children" in inspect(moved).unloaded
        session.commit()
        assert "nodes/3" in new()
        later.children.remove(moved)
        session.commit()
        assert sorted(new()) == ["nodes/3", "nodes/4"]
        assert session.scalars(select(Node.id).order_by(Node.id)).all() == [1, 2]


def test_orphan_of_one_of_two_parents_leaves_the_index_with_what_is_below_it(
    registry: EntityRegistry, engine: Engine
) -> None:
    class Own(DeclarativeBase):
        pass

    class Author(Own):
        __tablename__ = "authors"
        id: Mapped[int] = mapped_column(primary_key=True)
        posts: Mapped[list[Post]] = relationship(cascade="all, delete-orphan", back_populates="author")

    class Blog(Own):
        __tablename__ = "blogs"
        id: Mapped[int] = mapped_column(primary_key=True)
        posts: Mapped[list[Post]] = relationship(cascade="all, delete-orphan", back_populates="blog")

    class Post(Own):
        __tablename__ = "posts"
        id: Mapped[int] = mapped_column(primary_key=True)
        author_id: Mapped[int | None] = mapped_column(ForeignKey("authors.id"))
        blog_id: Mapped[int | None] = mapped_column(ForeignKey("blogs.id"))
        author: Mapped[Author | None] = relationship(back_populates="posts")
        blog: Mapped[Blog | None] = relationship(back_populates="posts")
        remarks: Mapped[list[Remark]] = relationship(cascade="all, delete-orphan")
        __mapper_args__: ClassVar[Any] = {"legacy_is_orphan": True}  # which a flush goes by before the INSERT alone

    class Remark(Own):
        __tablename__ = "remarks"
        id: Mapped[int] = mapped_column(primary_key=True)
        tenant_id: Mapped[str]
        post_id: Mapped[int] = mapped_column(ForeignKey("posts.id"))

    Own.metadata.create_all(engine)
    registry.add(Remark, index="remarks", fields=["id"], tenant="tenant_id", tenancy="prefixed")
    sessions, new = registry.capture(sessionmaker(engine, expire_on_commit=False)), Rows(engine)
    with sessions() as session:
        post = Post(id=1, author=Author(id=1), blog=Blog(id=1), remarks=[Remark(id=1, tenant_id="t1")])
        session.add(post)
        session.commit()
        new()
        with engine.begin() as connection:
            connection.execute(text("UPDATE remarks SET tenant_id = 't2'"))  # which the session does not know
        post.blog = None
        session.commit()
        assert session.scalars(select(Post.id)).all() == []
        assert new() == ["remarks/2:t2:1"]


def _by_attribute(_session: Session, phone: Phone) -> None:
    phone.contact_id = 3


def _by_statement(session: Session, phone: Phone) -> None:
    session.execute(update(Phone).where(Phone.id == phone.id).values(contact_id=3))


def _by_another_object(session: Session, phone: Phone) -> None:
    session.delete(phone)
    session.flush()
    session.add(Phone(id=phone.id, number="7", contact_id=3))


@pytest.mark.parametrize("move", [_by_attribute, _by_statement, _by_another_object])
def test_row_that_is_moved_after_it_was_noted_has_its_new_document_noted(
    joined: Session, new: Rows, move: Callable[[Session, Phone], None]
) -> None:
    phone = Phone(id=9, number="7")
    joined.add(phone)
    joined.flush()  # a part of no document so far
    move(joined, phone)
    joined.commit()
    assert new() == ["contacts/3"]
