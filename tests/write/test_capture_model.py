"""Random histories of an application: after each commit, an index that follows the rows equals the database."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from sqlalchemy import Column, Engine, ForeignKey, Table, create_engine, delete, insert, select, text, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from outbox import EntityRegistry, sqlite
from outbox.entities.maker import LoadFailed
from outbox.relay.load import from_database
from outbox.store import models
from outbox.store.models import Event

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("CAPTURE_EXAMPLES", "60"))


class Base(DeclarativeBase):
    pass


contact_tags = Table(
    "contact_tags",
    Base.metadata,
    Column("contact_id", ForeignKey("contacts.id"), primary_key=True),
    Column("tag_id", ForeignKey("tags.id"), primary_key=True),
)


class Owner(Base):
    __tablename__ = "owners"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("owners.id"))
    owner: Mapped[Owner | None] = relationship()


class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    contacts: Mapped[list[Contact]] = relationship(secondary=contact_tags, back_populates="tags")


class Phone(Base):
    __tablename__ = "phones"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    contact_id: Mapped[int | None] = mapped_column(ForeignKey("contacts.id"))


class Contact(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    secret: Mapped[str] = mapped_column(default="")
    archived: Mapped[bool] = mapped_column(default=False)
    tenant_id: Mapped[str]
    account_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id"))
    account: Mapped[Account | None] = relationship()
    tags: Mapped[list[Tag]] = relationship(secondary=contact_tags, back_populates="contacts")
    phones: Mapped[list[Phone]] = relationship()  # not known to the phone


class Line(Base):
    __tablename__ = "lines"
    deal: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    tenant_id: Mapped[str]
    account_id: Mapped[int | None]


def registry() -> EntityRegistry:
    made = EntityRegistry()
    made.add(
        Contact,
        index="contacts",
        fields=["name", "account.name", "account.owner.name", "tags.name", "phones.name"],
        tenant="tenant_id",
        tenancy="prefixed",
        when=lambda contact: not contact.archived,
        watch=["archived"],
    )
    made.add(Contact, name="cards", index="cards", fields=["name"], when=lambda row: row.secret != "x")
    made.add(
        Line,
        index="lines",
        to_document=lambda line: {"name": line.name, "account": line.account_id},
        tenant="tenant_id",
        tenancy="index",
        depends_on={Account: "account_id"},
    )
    made.add(Owner, index="owners", fields=["name"])
    return made


ids = st.integers(1, 3)
names = st.sampled_from(["a", "b", "x"])
tenants = st.sampled_from(["t1", "t2"])
maybe = st.none() | ids
some_model = st.sampled_from([Contact, Account, Tag, Phone, Owner, Line])


def any_of(model: type[Any], at: int) -> Any:
    """A primary key."""
    return (f"d|{at}", at) if model is Line else at


class History(RuleBasedStateMachine):
    """One session that works for long, another one in between, and an index that follows their rows."""

    @initialize(expire=st.booleans(), autoflush=st.booleans())
    def begin(self, expire: bool, autoflush: bool) -> None:
        self.opened = ExitStack()
        self.engine = self.open()
        Base.metadata.create_all(self.engine)
        self.registry = registry()
        self.prepare()
        sessions = sessionmaker(self.engine, expire_on_commit=expire, autoflush=autoflush)
        self.registry.capture(sessions)
        self.session, self.other = sessions(), sessions()
        self.index: dict[tuple[str, str], Any] = {}
        self.seen = 0
        owners = [Owner(id=at, name="a") for at in (1, 2)]
        accounts = [Account(id=at, name="a", owner=owners[0]) for at in (1, 2)]
        tags = [Tag(id=at, name="a") for at in (1, 2)]
        self.session.add_all([*owners, *accounts, *tags])
        for at in (1, 2):
            phones = [Phone(id=at, name="a")]
            self.session.add(
                Contact(id=at, name="a", tenant_id="t1", account=accounts[0], tags=tags[:at], phones=phones)
            )
            self.session.add(Line(deal=f"d|{at}", number=at, name="a", tenant_id="t1", account_id=1))
        self.commit()

    def open(self) -> Engine:
        """A new database with the outbox tables."""
        directory = self.opened.enter_context(tempfile.TemporaryDirectory())
        engine = create_engine(f"sqlite:///{Path(directory) / 'app.db'}")
        sqlite.prepare(engine)
        models.metadata.create_all(engine)
        return engine

    def prepare(self) -> None:
        """What a machine that is like this one needs beside the tables."""

    # -- what the application does

    def attempt(self, work: Callable[[Session], Any], session: Session | None = None) -> None:
        """Work that may fail as it may in an application: then its transaction is rolled back."""
        session = session or self.session
        try:
            work(session)
        except SQLAlchemyError as error:
            note(f"failed: {type(error).__name__}")
            session.rollback()
            session.expire_all()
        else:
            return

    def change(self, model: type[Any], at: int, work: Callable[[Any], Any]) -> None:
        def find_and_change(session: Session) -> None:
            found = session.get(model, any_of(model, at))
            if found is not None:
                work(found)

        self.attempt(find_and_change)

    @rule(at=ids, name=names, tenant=tenants, account=maybe)
    def add_contact(self, at: int, name: str, tenant: str, account: int | None) -> None:
        made = Contact(id=at, name=name, tenant_id=tenant, account_id=account)
        self.attempt(lambda session: (session.add(made), session.flush()))

    @rule(model=st.sampled_from([Account, Owner, Tag, Phone]), at=ids, name=names)
    def add_other(self, model: type[Any], at: int, name: str) -> None:
        self.attempt(lambda session: (session.add(model(id=at, name=name)), session.flush()))

    @rule(at=ids, name=names, tenant=tenants, account=maybe)
    def add_line(self, at: int, name: str, tenant: str, account: int | None) -> None:
        made = Line(deal=f"d|{at}", number=at, name=name, tenant_id=tenant, account_id=account)
        self.attempt(lambda session: (session.add(made), session.flush()))

    @rule(model=some_model, at=ids, name=names)
    def rename(self, model: type[Any], at: int, name: str) -> None:
        self.change(model, at, lambda found: setattr(found, "name", name))

    @rule(at=ids, name=names)
    def change_what_only_one_entity_counts(self, at: int, name: str) -> None:
        self.change(Contact, at, lambda found: setattr(found, "secret", name))

    @rule(at=ids, archived=st.booleans())
    def archive(self, at: int, archived: bool) -> None:
        self.change(Contact, at, lambda found: setattr(found, "archived", archived))

    @rule(model=st.sampled_from([Contact, Line]), at=ids, tenant=tenants)
    def change_tenant(self, model: type[Any], at: int, tenant: str) -> None:
        self.change(model, at, lambda found: setattr(found, "tenant_id", tenant))

    @rule(model=some_model.filter(lambda model: model is not Line), at=ids, to=ids)
    def change_key(self, model: type[Any], at: int, to: int) -> None:
        self.change(model, at, lambda found: setattr(found, "id", to))
        self.attempt(lambda session: session.flush())

    @rule(model=st.sampled_from([Contact, Line]), at=ids, account=maybe)
    def point_to_account(self, model: type[Any], at: int, account: int | None) -> None:
        self.change(model, at, lambda found: setattr(found, "account_id", account))

    @rule(at=ids, account=maybe)
    def relate_to_account(self, at: int, account: int | None) -> None:
        self.change(
            Contact,
            at,
            lambda found: setattr(found, "account", account and self.session.get(Account, account)),
        )

    @rule(at=ids, owner=maybe)
    def relate_account_to_owner(self, at: int, owner: int | None) -> None:
        self.change(Account, at, lambda found: setattr(found, "owner", owner and self.session.get(Owner, owner)))

    @rule(at=ids, tag=ids, from_tag=st.booleans())
    def toggle_tag(self, at: int, tag: int, from_tag: bool) -> None:
        def toggle(session: Session) -> None:
            contact, found = session.get(Contact, at), session.get(Tag, tag)
            if contact is None or found is None:
                return
            members, member = (found.contacts, contact) if from_tag else (contact.tags, found)
            members.remove(member) if member in members else members.append(member)  # type: ignore[union-attr, arg-type]

        self.attempt(toggle)

    @rule(at=ids, phone=ids)
    def toggle_phone(self, at: int, phone: int) -> None:
        def toggle(session: Session) -> None:
            contact, found = session.get(Contact, at), session.get(Phone, phone)
            if contact is not None and found is not None:
                contact.phones.remove(found) if found in contact.phones else contact.phones.append(found)

        self.attempt(toggle)

    @rule(phone=ids, contact=maybe)
    def point_phone(self, phone: int, contact: int | None) -> None:
        self.change(Phone, phone, lambda found: setattr(found, "contact_id", contact))

    @rule(model=some_model, at=ids)
    def delete(self, model: type[Any], at: int) -> None:
        def find_and_delete(session: Session) -> None:
            found = session.get(model, any_of(model, at))
            if found is not None:
                session.delete(found)
                session.flush()

        self.attempt(find_and_delete)

    # -- statements

    @rule(model=some_model, where=names, name=names)
    def update_names(self, model: type[Any], where: str, name: str) -> None:
        self.attempt(lambda session: session.execute(update(model).where(model.name == where).values(name=name)))

    @rule(model=some_model, where=names, name=names)
    def update_by_query(self, model: type[Any], where: str, name: str) -> None:
        self.attempt(lambda session: session.query(model).filter_by(name=where).update({"name": name}))

    @rule(model=st.sampled_from([Contact, Line]), where=names, tenant=tenants)
    def update_tenants(self, model: type[Any], where: str, tenant: str) -> None:
        self.attempt(lambda session: session.execute(update(model).where(model.name == where).values(tenant_id=tenant)))

    @rule(archived=st.booleans())
    def update_archived(self, archived: bool) -> None:
        self.attempt(
            lambda session: session.execute(
                update(Contact).where(Contact.archived != archived).values(archived=archived)
            )
        )

    @rule(where=names, account=maybe, model=st.sampled_from([Contact, Line]))
    def update_accounts(self, where: str, account: int | None, model: type[Any]) -> None:
        self.attempt(
            lambda session: session.execute(update(model).where(model.name == where).values(account_id=account))
        )

    @rule(contact=maybe, to=maybe)
    def update_phones(self, contact: int | None, to: int | None) -> None:
        self.attempt(
            lambda session: session.execute(update(Phone).where(Phone.contact_id == contact).values(contact_id=to))
        )

    @rule(model=st.sampled_from([Contact, Account, Phone, Tag]), at=ids, to=ids)
    def update_keys(self, model: type[Any], at: int, to: int) -> None:
        def move(session: Session) -> None:
            session.execute(update(model).where(model.id == at).values(id=to))
            session.expunge_all()  # what the session remembers has the old keys

        self.attempt(lambda session: (session.flush(), move(session)))

    @rule(rows=st.lists(st.tuples(ids, names, tenants), min_size=2, max_size=3, unique_by=lambda row: row[0]))
    def update_by_key(self, rows: list[tuple[int, str, str]]) -> None:
        values = [{"id": at, "name": name, "tenant_id": tenant} for at, name, tenant in rows]
        self.attempt(lambda session: (session.flush(), session.execute(update(Contact), values), session.expire_all()))

    @rule(model=some_model, where=names)
    def delete_by_name(self, model: type[Any], where: str) -> None:
        self.attempt(lambda session: session.execute(delete(model).where(model.name == where)))

    @rule(rows=st.lists(st.tuples(ids, names, tenants), min_size=1, max_size=3), returning=st.booleans())
    def insert_contacts(self, rows: list[tuple[int, str, str]], returning: bool) -> None:
        values = [{"id": at, "name": name, "tenant_id": tenant} for at, name, tenant in rows]
        statement = insert(Contact).returning(Contact) if returning else insert(Contact)
        self.attempt(
            lambda session: (
                session.execute(statement, values).all() if returning else session.execute(statement, values)
            )
        )

    @rule(rows=st.lists(ids, min_size=1, max_size=2), name=names)
    def insert_accounts(self, rows: list[int], name: str) -> None:
        self.attempt(lambda session: session.execute(insert(Account).values([{"id": at, "name": name} for at in rows])))

    # -- transactions

    @rule()
    def flush(self) -> None:
        self.attempt(lambda session: session.flush())

    @rule()
    def set_savepoint(self) -> None:
        self.attempt(lambda session: session.begin_nested())

    @rule()
    def roll_back_to_savepoint(self) -> None:
        nested = self.session.get_nested_transaction()
        if nested:
            self.attempt(lambda _: nested.rollback())

    @rule()
    def release_savepoint(self) -> None:
        nested = self.session.get_nested_transaction()
        if nested:
            self.attempt(lambda _: nested.commit())

    @rule(at=ids, names_=st.tuples(names, names), of_connection=st.booleans())
    def change_again_after_a_savepoint_that_is_rolled_back(
        self, at: int, names_: tuple[str, str], of_connection: bool
    ) -> None:
        """A savepoint of the connection is one that the session knows nothing of."""

        def work(session: Session) -> None:
            session.flush()
            savepoint = (session.connection() if of_connection else session).begin_nested()
            try:
                if (found := session.get(Contact, at)) is not None:
                    found.name, found.tenant_id = names_[0], "t2"
                    session.flush()
            finally:
                savepoint.rollback()
            session.expire_all()
            if (found := session.get(Contact, at)) is not None:
                found.name = names_[1]

        self.attempt(work)

    @rule()
    def roll_back(self) -> None:
        self.session.rollback()

    @rule(model=some_model, at=ids, name=names, tenant=tenants)
    def someone_else_changes_a_row(self, model: type[Any], at: int, name: str, tenant: str) -> None:
        """…which the session may remember otherwise."""
        # No precondition: whether a flush fails depends on the order of SQLAlchemy's sets, and draws must not.
        if self.session.in_transaction():
            return

        def work(session: Session) -> None:
            found = session.get(model, any_of(model, at), populate_existing=True)
            if found is not None:
                found.name = name
                if model in (Contact, Line):
                    found.tenant_id = tenant
            session.commit()

        self.attempt(work, self.other)
        self.other.rollback()
        self.check()

    @rule()
    def commit(self) -> None:
        self.attempt(lambda session: session.commit())
        if not self.session.in_transaction():
            self.check()

    # -- what must hold

    def check(self) -> None:
        with self.engine.connect() as connection:
            rows = connection.execute(
                text(f"SELECT {', '.join(Event._fields)} FROM outbox_events WHERE id > :seen ORDER BY id"),
                {"seen": self.seen},
            )
            events = [Event._make(row) for row in rows]
            self.seen = events[-1].id if events else self.seen
            assert {event.action for event in events} <= {"refresh"}
            for event_id, document in from_database(connection, self.registry, events).items():
                event = next(each for each in events if each.id == event_id)
                assert not isinstance(document, LoadFailed), document
                self.index.pop((event.index_name, event.document_id), None)
                if document is not None:
                    self.index[event.index_name, event.document_id] = json.loads(document)
            assert self.index == self.truth(connection)

    def truth(self, connection: Any) -> dict[tuple[str, str], Any]:
        """What the registry says of the whole database."""
        found: dict[tuple[str, str], Any] = {}
        for entity in self.registry:
            places = connection.execute(select(entity.index_sql(), entity.document_id_sql())).all()
            events = [
                Event(at, "refresh", index, document_id, None, entity.name, 0, 1, 0)
                for at, (index, document_id) in enumerate(places)
            ]
            documents = from_database(connection, self.registry, events)
            found |= {
                (event.index_name, event.document_id): json.loads(document)
                for event in events
                if isinstance(document := documents[event.id], bytes)
            }
        return found

    def teardown(self) -> None:
        if not hasattr(self, "session"):
            return
        try:
            self.attempt(lambda session: session.commit())
            self.session.rollback()
            self.check()
        finally:
            self.session.close()
            self.other.close()
            self.engine.dispose()
            self.opened.close()


def run(machine: type[RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")  # of histories that no application should have
def test_index_that_follows_the_rows_equals_the_database_after_any_history() -> None:
    run(History)
