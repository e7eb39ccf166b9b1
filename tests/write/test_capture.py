"""What a session changes becomes rows: all that is needed, and no more."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

import pytest
from sqlalchemy import Computed, Engine, ForeignKey, delete, event, insert, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from outbox import EntityRegistry, InvalidName, OutboxRepository
from outbox.relay.load import from_database
from outbox.testing import OutboxTester
from tests.support.watching import Rows
from tests.write.models import Account, Contact, Engineer, Guest, Page, Person, Tag


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


@pytest.mark.parametrize("savepoint", [False, True])
@pytest.mark.parametrize("changed", [Contact, Account])
@pytest.mark.parametrize("action", ["index", "update", "delete"])
def test_change_after_a_row_of_the_application_is_noted_although_one_before_it_was(
    registry: EntityRegistry, sessions: sessionmaker[Session], action: str, changed: type[Any], savepoint: bool
) -> None:
    registry.add(Contact, index="contacts", fields=["name", "account.name"])
    with sessions() as session, OutboxTester(sessions.kw["bind"], registry) as outbox:
        session.add(Contact(id=1, name="Ada", account=Account(id=1, name="Acme")))
        session.commit()
        found = session.get_one(changed, 1)
        found.name = "first"
        session.flush()
        with session.begin_nested() if savepoint else nullcontext():
            arguments = () if action == "delete" else ({"name": "of the application"},)
            getattr(OutboxRepository(session), action)("contacts", "1", *arguments)
            found.name = "last"
            session.flush()
        session.commit()
        outbox.drain()
        held = outbox.document("contacts", "1")
        assert held and "last" in (held["name"], held["account"]["name"])


@pytest.mark.usefixtures("contacts")
def test_change_after_a_refresh_of_the_application_needs_no_second_row(
    registry: EntityRegistry, sessions: sessionmaker[Session], new: Rows
) -> None:
    with sessions() as session:
        contact = Contact(id=1, name="Ada")
        session.add(contact)
        session.flush()
        OutboxRepository(session, registry).refresh(contact)
        contact.name = "Grace"
        session.commit()
        assert new() == ["contacts/1", "contacts/1"]  # that of the session, and what was asked for


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


@pytest.mark.parametrize("set_by", ["relationship", "relationship of a subclass", "collection", "new object"])
@pytest.mark.parametrize("memory", ["expired", "stale"])
def test_tenant_that_a_relationship_sets_takes_the_document_from_where_it_is(
    registry: EntityRegistry, engine: Engine, new: Rows, set_by: str, memory: str
) -> None:
    class Own(DeclarativeBase):
        pass

    class Tenant(Own):
        __tablename__ = "tenants"
        id: Mapped[str] = mapped_column(primary_key=True)
        letters: Mapped[list[Letter]] = relationship()

    class Letter(Own):
        __tablename__ = "letters"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(default="letter")
        tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
        __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind", "polymorphic_identity": "letter"}

    class Postcard(Letter):
        tenant: Mapped[Tenant] = relationship(overlaps="letters")
        __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "postcard"}

    if set_by == "relationship":
        Letter.tenant = relationship(Tenant, overlaps="letters")  # type: ignore[attr-defined]
    Own.metadata.create_all(engine)
    registry.add(Letter, index="letters", fields=["id"], tenant="tenant_id", tenancy="prefixed")
    sessions = registry.capture(sessionmaker(engine, expire_on_commit=memory == "expired"))
    with sessions() as session:
        letter = (Postcard if set_by == "relationship of a subclass" else Letter)(id=1, tenant_id="t1")
        tenant = Tenant(id="t2")
        session.add_all([letter, *(Tenant(id=each) for each in ("t1", "t9"))])
        if set_by != "new object":
            session.add(tenant)
        session.commit()
        former = "t1"
        if memory == "stale":
            with sessions() as other:
                other.get_one(Letter, 1).tenant_id = former = "t9"
                other.commit()
        new()
        if set_by in ("collection", "new object"):
            tenant.letters.append(letter)
            session.add(tenant)
        else:
            letter.tenant = tenant  # type: ignore[attr-defined]
        session.commit()
        assert sorted(new()) == sorted([f"letters/2:{former}:1", "letters/2:t2:1"])


@pytest.mark.parametrize(
    "tenant",
    [
        lambda: mapped_column(Computed('lower("to")', persisted=True)),
        lambda: mapped_column(default="t1", onupdate=lambda: "t2"),
    ],
    ids=["computed", "onupdate"],
)
@pytest.mark.parametrize("way", ["object", "update"])
def test_tenant_that_changes_without_being_set_takes_the_document_from_where_it_is(
    registry: EntityRegistry, engine: Engine, new: Rows, tenant: Callable[[], Any], way: str
) -> None:
    class Own(DeclarativeBase):
        pass

    class Letter(Own):
        __tablename__ = "letters"
        id: Mapped[int] = mapped_column(primary_key=True)
        to: Mapped[str]
        tenant_id: Mapped[str] = tenant()

    Own.metadata.create_all(engine)
    registry.add(Letter, index="letters", fields=["to"], tenant="tenant_id", tenancy="prefixed")
    sessions = registry.capture(sessionmaker(engine))
    with sessions() as session:
        session.add(letter := Letter(id=1, to="T1"))
        session.commit()
        assert new() == ["letters/2:t1:1"]
        if way == "object":
            letter.to = "T2"
        else:
            session.execute(update(Letter).values(to="T2"))
        session.commit()
        assert sorted(new()) == ["letters/2:t1:1", "letters/2:t2:1"]


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
        loaded = from_database(one.connection(), registry, events)
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
