"""Triggers: what no session sees becomes rows too, by whoever it is written; and nothing becomes two of them."""

from __future__ import annotations

import asyncio
import io
import json
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from click.testing import CliRunner, Result
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    ForeignKey,
    Index,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    event,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from outbox import ConfigurationError, Dependency, EntityRegistry, OutboxRepository, SyncTimeout, check, sqlite
from outbox.cli import main
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.triggers import installer as triggers
from tests.support.outbox import Outbox


class Base(DeclarativeBase):
    pass


contact_tags = Table(
    "contact_tags",
    Base.metadata,
    Column("contact_id", ForeignKey("contacts.id", ondelete="CASCADE"), primary_key=True),
    Column("tag_id", ForeignKey("tags.id", ondelete="CASCADE"), primary_key=True),
)


class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    plan: Mapped[str | None]


class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]


class Contact(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(collation="NOCASE"))
    email: Mapped[str | None] = mapped_column(unique=True)
    seen: Mapped[int] = mapped_column(default=0, server_default="0")
    tenant_id: Mapped[str] = mapped_column(server_default="t1", default="t1")
    account_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    account: Mapped[Account | None] = relationship()
    tags: Mapped[list[Tag]] = relationship(secondary=contact_tags)


class Part(Base):
    __tablename__ = "parts"
    maker: Mapped[str] = mapped_column(primary_key=True)
    serial: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    tenant_id: Mapped[UUID]


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    tenant_id: Mapped[str] = mapped_column(default="t1")
    chief_id: Mapped[int | None] = mapped_column(ForeignKey("people.id"))
    chief: Mapped[Person | None] = relationship(remote_side=[id])
    __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Guest(Person):
    room: Mapped[str | None]
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "guest"}


class Engineer(Person):
    __tablename__ = "engineers"
    number: Mapped[int] = mapped_column(ForeignKey("people.id", ondelete="CASCADE"), primary_key=True)
    language: Mapped[str]
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "engineer"}


Row = tuple[str, str]


@pytest.fixture
def database(engine: Engine) -> Engine:
    """The tables, with foreign keys enforced."""
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys = ON"))
    engine.dispose()
    Base.metadata.create_all(engine)
    return engine


def registered(*models: type[Any], **given: Any) -> EntityRegistry:
    """A registry of these models, with fields that are there."""
    made = EntityRegistry()
    fields = {
        Contact: ["name", "email"], Part: ["name"], Account: ["name"], Person: ["name"], Guest: ["name"],
        Engineer: ["name", "language"],
    }  # fmt: skip
    for model in models:
        options = given if "to_document" in given else {"fields": fields[model]} | given
        made.add(model, name=model.__name__.lower(), index=f"{model.__name__.lower()}s", **options)
    return made


class World:
    """A database with the triggers of a registry, and what has come into the outbox since the last look."""

    def __init__(self, engine: Engine, registry: EntityRegistry) -> None:
        self.engine, self.registry = engine, registry
        self._seen = 0
        with engine.begin() as connection:
            triggers.install(connection, registry)

    def run(self, *statements: Any) -> list[Row]:
        """Statements in one transaction, past any session; the rows that they bring."""
        with self.engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement) if isinstance(statement, str) else statement)
        return self.rows()

    def rows(self) -> list[Row]:
        return [(row.index_name, row.document_id) for row in self.full_rows()]

    def full_rows(self) -> list[Any]:
        with self.engine.connect() as connection:
            found = connection.execute(
                text("SELECT * FROM outbox_events WHERE id > :seen ORDER BY id"), {"seen": self._seen}
            ).all()
        self._seen = found[-1].id if found else self._seen
        return list(found)

    def captured(self) -> sessionmaker[Session]:
        return self.registry.capture(sessionmaker(self.engine))


World_ = Callable[..., World]


@pytest.fixture
def world(database: Engine) -> World_:
    return lambda *models, **given: World(database, registered(*models, **given))


ADA = "INSERT INTO contacts (id, name, email) VALUES (1, 'Ada', 'ada@a.example')"


# -- whoever writes ---------------------------------------------------------------------------------------------


def test_row_of_a_trigger_is_the_one_that_capture_writes(database: Engine, world: World_) -> None:
    captured = registered(Contact, tenant="tenant_id", tenancy="prefixed").capture(sessionmaker(database))
    with captured.begin() as session:
        session.add(Contact(id=7, name="Ada", tenant_id="acme"))
    made = world(Contact, tenant="tenant_id", tenancy="prefixed")
    (by_capture,) = made.full_rows()
    made.run("DELETE FROM contacts", "INSERT INTO contacts (id, name, tenant_id) VALUES (7, 'Ada', 'acme')")
    with made.engine.connect() as connection:
        *_, by_trigger = connection.execute(text("SELECT * FROM outbox_events ORDER BY id")).all()
    assert abs(by_trigger.created_at - by_capture.created_at) < 60_000
    same = {"id": 1, "created_at": 1}
    assert {**by_trigger._mapping, **same} == {**by_capture._mapping, **same}


def test_plain_sql_is_noted(world: World_) -> None:
    made = world(Contact)
    assert made.run(ADA) == [("contacts", "1")]
    assert made.run("UPDATE contacts SET name = 'Grace'") == [("contacts", "1")]
    assert made.run("DELETE FROM contacts") == [("contacts", "1")]


def test_program_in_another_language_is_noted(world: World_) -> None:
    made = world(Contact)
    with closing(sqlite3.connect(str(made.engine.url.database))) as connection, connection:
        connection.execute(ADA)
        connection.executemany("INSERT INTO contacts (id, name) VALUES (?, ?)", [(2, "Bob"), (3, "Eve")])
    assert made.rows() == [("contacts", "1"), ("contacts", "2"), ("contacts", "3")]


def test_statements_on_tables_and_bulk_methods_are_noted(world: World_) -> None:
    made = world(Contact)
    table = Contact.__table__
    assert made.run(insert(table).values([{"id": n, "name": "x"} for n in (1, 2)])) == [
        ("contacts", "1"),
        ("contacts", "2"),
    ]
    assert made.run(update(table).where(table.c.id == 2).values(name="y")) == [("contacts", "2")]
    with made.captured().begin() as session:
        session.bulk_save_objects([Contact(id=3, name="z")])
        session.bulk_update_mappings(Contact, [{"id": 1, "name": "z"}])  # type: ignore[arg-type]
    assert made.rows() == [("contacts", "3"), ("contacts", "1")]


def test_rows_that_a_foreign_key_removes_are_noted(world: World_) -> None:
    made = world(Contact)
    made.run("INSERT INTO accounts (id, name) VALUES (1, 'Acme')", ADA, "UPDATE contacts SET account_id = 1")
    assert made.run("DELETE FROM accounts") == [("contacts", "1")]
    with made.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(Contact)).scalar_one() == 0


def test_transaction_that_is_rolled_back_leaves_no_row(world: World_) -> None:
    made = world(Contact)
    with made.engine.connect() as connection:
        connection.execute(text(ADA))
        savepoint = connection.begin_nested()
        connection.execute(text("UPDATE contacts SET name = 'Grace'"))
        savepoint.rollback()
        connection.rollback()
    assert made.rows() == []


def test_id_that_the_application_is_given_is_its_own(world: World_) -> None:
    """Not that of the row in the outbox."""
    made = world(Contact)
    made.run("INSERT INTO outbox_events (action, index_name, document_id) VALUES ('delete', 'x', 'x')")
    with made.captured().begin() as session:
        contact = Contact(name="Ada")
        session.add(contact)
        session.flush()
        assert contact.id == 1
        assert session.execute(text("UPDATE contacts SET name = 'Bob'")).rowcount == 1  # type: ignore[attr-defined]


# -- what counts ------------------------------------------------------------------------------------------------


def test_change_of_a_column_that_no_document_has_brings_no_row(world: World_) -> None:
    made = world(Contact)
    made.run(ADA)
    assert made.run("UPDATE contacts SET seen = 1", "UPDATE contacts SET name = 'Ada', seen = 2") == []
    assert made.run("UPDATE contacts SET email = NULL") == [("contacts", "1")]
    assert made.run("UPDATE contacts SET email = NULL") == []


def test_change_that_only_a_comparison_without_case_overlooks_is_noted(world: World_) -> None:
    made = world(Contact)
    made.run(ADA)
    assert made.run("UPDATE contacts SET name = 'ADA'") == [("contacts", "1")]


@pytest.mark.parametrize(
    ("given", "noted"),
    [
        ({"fields": ["name"], "watch": ["seen"]}, True),
        ({"fields": ["name"], "when": lambda row: row.seen}, True),
        ({"to_document": lambda row: {"seen": row.seen}}, True),
        ({"to_document": lambda row: {"name": row.name}, "watch": ["name"]}, False),
    ],
)
def test_what_when_and_to_document_may_look_at_counts(world: World_, given: dict[str, Any], noted: bool) -> None:
    made = world(Contact, **given)
    made.run(ADA)
    assert made.run("UPDATE contacts SET seen = 1") == ([("contacts", "1")] if noted else [])


# -- places -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tenancy", "old", "new"),
    [
        ("shared", ("contacts", "1"), ("contacts", "1")),
        ("prefixed", ("contacts", "2:t1:1"), ("contacts", "2:t2:1")),
        ("index", ("t1_contacts", "1"), ("t2_contacts", "1")),
    ],
)
def test_change_of_tenant_leaves_the_old_place_and_takes_the_new(
    world: World_, tenancy: str, old: Row, new: Row
) -> None:
    made = world(Contact, tenant="tenant_id", tenancy=tenancy)
    assert made.run(ADA) == [old]
    assert made.run("UPDATE contacts SET tenant_id = 't2'") == list(dict.fromkeys([old, new]))
    assert made.run("UPDATE contacts SET name = 'Grace'") == [new]
    assert made.run("DELETE FROM contacts") == [new]


def test_change_of_key_leaves_the_old_place_and_takes_the_new(world: World_) -> None:
    made = world(Contact)
    made.run(ADA)
    assert made.run("UPDATE contacts SET id = 2") == [("contacts", "1"), ("contacts", "2")]
    assert made.run("UPDATE contacts SET rowid = 3") == [("contacts", "2"), ("contacts", "3")]


def test_composite_key_with_a_uuid_makes_the_place_that_python_makes(world: World_) -> None:
    made = world(Part, tenant="tenant_id", tenancy="index")
    with Session(made.engine) as session, session.begin():
        session.add(Part(maker="a|b\\'c", serial=UUID(int=5), name="x", tenant_id=UUID(int=6)))
    place = made.registry["part"].key_of(("a|b\\'c", UUID(int=5)), UUID(int=6))
    assert made.rows() == [place[:2]]
    assert made.run("UPDATE parts SET maker = 'd'")[0] == place[:2]


@pytest.mark.parametrize("change", ["INSERT", "UPDATE"])
@pytest.mark.parametrize(
    ("tenancy", "tenant", "reason"),
    [
        ("index", "'*'", "part of an index name"),
        ("index", "'T1'", "1 to 63 lower-case letters"),
        ("index", "'a_b'", "part of an index name"),
        ("index", "''", "part of an index name"),
        ("prefixed", "''", "1 to 255 printable characters; "),
        ("prefixed", "'a' || char(10)", "1 to 255 printable characters; "),
        ("shared", "char(7)", "or NULL; "),
    ],
)
def test_row_of_a_hostile_tenant_is_refused(world: World_, tenancy: str, tenant: str, reason: str, change: str) -> None:
    made = world(Contact, tenant="tenant_id", tenancy=tenancy)
    if change == "UPDATE":
        made.run(ADA)
        statement = f"UPDATE contacts SET tenant_id = {tenant}"
    else:
        statement = f"INSERT INTO contacts (id, name, tenant_id) VALUES (1, 'Ada', {tenant})"
    with made.engine.connect() as connection:
        before = connection.execute(text("SELECT * FROM contacts")).all()
        with pytest.raises(IntegrityError, match=f"entity 'contact' can have no place.*{reason}"):
            connection.execute(text(statement))
        assert connection.execute(text("SELECT * FROM contacts")).all() == before


def test_row_that_had_no_place_can_be_mended_and_removed(database: Engine, world: World_) -> None:
    with database.begin() as connection:
        connection.execute(text("INSERT INTO contacts (id, name, tenant_id) VALUES (1, 'Ada', '*'), (2, 'Bob', '*')"))
    made = world(Contact, tenant="tenant_id", tenancy="index")
    assert made.run("UPDATE contacts SET tenant_id = 't1' WHERE id = 1") == [("t1_contacts", "1")]
    assert made.run("DELETE FROM contacts WHERE id = 2") == []


# -- what documents are made of beside their own row ------------------------------------------------------------


def test_ten_thousand_dependents_are_noted_by_one_statement(world: World_) -> None:
    made = world(Contact, fields=["name", "account.name"])
    made.run(
        "INSERT INTO accounts (id, name) VALUES (1, 'Acme'), (2, 'Other')",
        "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 10100) "
        "INSERT INTO contacts (id, name, account_id) SELECT n, 'x', 1 + (n > 10000) FROM n",
    )
    assert made.run("UPDATE accounts SET plan = 'free'") == []
    assert sorted(made.run("UPDATE accounts SET name = 'Acme Ltd' WHERE id = 1"), key=lambda row: int(row[1])) == [
        ("contacts", str(n)) for n in range(1, 10_001)
    ]


def test_rows_of_a_many_to_many_table_are_noted(world: World_) -> None:
    made = world(Contact, fields=["name", "tags.label"])
    made.run(ADA, "INSERT INTO contacts (id, name) VALUES (2, 'Bob')", "INSERT INTO tags VALUES (1, 'a'), (2, 'b')")
    assert made.run("INSERT INTO contact_tags VALUES (1, 1)") == [("contacts", "1")]
    assert made.run("UPDATE tags SET label = 'c' WHERE id = 1") == [("contacts", "1")]
    assert made.run("UPDATE contact_tags SET contact_id = 2") == [("contacts", "1"), ("contacts", "2")]
    assert made.run("DELETE FROM tags") == [("contacts", "2")]  # by way of the foreign key
    assert made.run("INSERT OR REPLACE INTO tags VALUES (1, 'x')") == []


def test_dependency_by_column_is_noted(world: World_) -> None:
    made = world(Contact, depends_on={Account: "account_id"})
    made.run("INSERT INTO accounts VALUES (1, 'Acme', NULL)", ADA, "UPDATE contacts SET account_id = 1")
    assert made.run("UPDATE accounts SET plan = 'gold'") == [("contacts", "1")]


def test_every_row_on_the_way_of_a_dependency_is_noted(world: World_) -> None:
    made = world(Person, fields=["tenant_id"], depends_on={Person: Dependency("chief.chief", watch=["name"])})
    made.run(
        "INSERT INTO people (id, kind, name, tenant_id, chief_id) VALUES (1, 'person', 'Ada', 't', NULL), "
        "(2, 'person', 'Bob', 't', 1), (3, 'person', 'Eve', 't', 2), (4, 'person', 'Joe', 't', NULL)"
    )
    assert set(made.run("UPDATE people SET chief_id = 4 WHERE id = 2")) == {("persons", "2"), ("persons", "3")}
    assert made.run("UPDATE people SET name = 'Jo' WHERE id = 4") == [("persons", "3")]
    assert made.run("UPDATE people SET name = 'Al' WHERE id IN (1, 2)") == []


def test_row_that_counts_twice_is_noted_once(world: World_) -> None:
    made = world(Contact, fields=["account.name"], depends_on={Account: Dependency("account", watch=["plan"])})
    made.run("INSERT INTO accounts VALUES (1, 'Acme', NULL)", ADA, "UPDATE contacts SET account_id = 1")
    assert made.run("UPDATE accounts SET plan = 'gold'") == [("contacts", "1")]
    assert made.run("UPDATE accounts SET name = 'Acme Ltd'") == [("contacts", "1")]
    assert made.run("UPDATE accounts SET name = 'Acme Inc', plan = 'free'") == [("contacts", "1")]


def test_model_that_depends_on_others_of_its_own_kind(world: World_) -> None:
    made = world(Person, fields=["name", "chief.name"])
    made.run("INSERT INTO people (id, kind, name, tenant_id, chief_id) VALUES (1, 'person', 'Ada', 't', NULL)")
    made.run("INSERT INTO people (id, kind, name, tenant_id, chief_id) VALUES (2, 'person', 'Bob', 't', 1)")
    assert sorted(made.run("UPDATE people SET name = 'Grace' WHERE id = 1")) == [("persons", "1"), ("persons", "2")]
    assert made.run("UPDATE people SET name = 'Bobby' WHERE id = 2") == [("persons", "2")]


def test_subclass_in_the_same_table_is_told_from_its_relatives(world: World_) -> None:
    made = world(Guest)
    with Session(made.engine) as session, session.begin():
        session.add_all([Guest(id=1, name="Ada"), Person(id=2, name="Bob")])
    assert made.rows() == [("guests", "1")]
    assert made.run("UPDATE people SET name = name || '!'") == [("guests", "1")]
    assert made.run("UPDATE people SET kind = 'person' WHERE id = 1") == [("guests", "1")]
    assert made.run("UPDATE people SET name = 'x'") == []


@pytest.mark.parametrize("tenancy", ["shared", "index"])
def test_subclass_in_a_table_of_its_own_is_noted_from_both(world: World_, tenancy: str) -> None:
    made = world(Engineer, tenant="tenant_id", tenancy=tenancy)
    place = ("engineers" if tenancy == "shared" else "t1_engineers", "1")
    with Session(made.engine) as session, session.begin():
        session.add_all([Engineer(id=1, name="Grace", language="COBOL"), Person(id=2, name="Bob")])
    assert made.rows() == [place]
    assert made.run("UPDATE people SET name = 'Ada'") == [place]
    assert made.run("UPDATE engineers SET language = 'Ada'") == [place]
    if tenancy == "index":
        assert made.run("UPDATE people SET tenant_id = 't2'") == [place, ("t2_engineers", "1")]
        made.run("UPDATE people SET tenant_id = 't1'")
        with pytest.raises(IntegrityError, match="can have no place"):
            made.run("UPDATE people SET tenant_id = '*' WHERE id = 1")
    assert set(made.run("DELETE FROM people")) == {place}  # and its part in the other table by the foreign key


def test_document_that_depends_on_a_subclass_is_noted_from_both_of_its_tables(database: Engine) -> None:
    class Team(Base):
        __tablename__ = "teams"
        id: Mapped[int] = mapped_column(primary_key=True)
        lead_id: Mapped[int] = mapped_column(ForeignKey("people.id"))
        lead: Mapped[Engineer] = relationship()

    try:
        Base.metadata.create_all(database)
        registry = EntityRegistry()
        registry.add(Team, index="teams", fields=["id", "lead.name", "lead.language"])
        made = World(database, registry)
        with Session(database) as session, session.begin():
            session.add(Team(id=1, lead=Engineer(id=1, name="Grace", language="COBOL")))
        made.rows()
        assert made.run("UPDATE people SET name = 'Ada'") == [("teams", "1")]
        assert made.run("UPDATE engineers SET language = 'Ada'") == [("teams", "1")]
        assert made.run("DELETE FROM engineers") == [("teams", "1")]
    finally:
        Base.metadata.remove(Base.metadata.tables["teams"])
        Base.registry._dispose_cls(Team)


# -- INSERT OR REPLACE ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tenancy", ["shared", "prefixed"])
def test_row_that_replace_removes_by_its_unique_key_is_noted(world: World_, tenancy: str) -> None:
    made = world(Contact, tenant="tenant_id", tenancy=tenancy)
    prefix = "2:t1:" if tenancy == "prefixed" else ""
    made.run(ADA)
    assert made.run("INSERT OR REPLACE INTO contacts (id, name, email) VALUES (2, 'A', 'ada@a.example')") == [
        ("contacts", f"{prefix}1"),
        ("contacts", f"{prefix}2"),
    ]
    made.run("INSERT INTO contacts (id, name, email) VALUES (3, 'Eve', 'eve@a.example')")
    assert set(made.run("UPDATE OR REPLACE contacts SET email = 'ada@a.example' WHERE id = 3")) == {
        ("contacts", f"{prefix}2"),
        ("contacts", f"{prefix}3"),
    }


def test_row_that_replace_removes_by_its_primary_key_is_noted_at_its_old_place(world: World_) -> None:
    made = world(Contact, tenant="tenant_id", tenancy="prefixed")
    made.run(ADA)
    assert made.run("REPLACE INTO contacts (id, name, tenant_id) VALUES (1, 'Ada', 't2')") == [
        ("contacts", "2:t1:1"),
        ("contacts", "2:t2:1"),
    ]


def test_upsert_brings_the_row_of_what_it_changed(world: World_) -> None:
    made = world(Contact)
    made.run(ADA)
    statement = "INSERT INTO contacts (id, name) VALUES (1, 'B') ON CONFLICT (id) DO UPDATE SET name = excluded.name"
    assert made.run(statement) == [("contacts", "1")]
    assert made.run(statement) == []


def test_unique_keys_of_every_kind_that_models_declare(database: Engine) -> None:
    class Other(DeclarativeBase):
        pass

    class Item(Other):
        __tablename__ = "items"
        id: Mapped[int] = mapped_column(primary_key=True)
        a: Mapped[str]
        b: Mapped[str | None]
        c: Mapped[str | None]
        gone: Mapped[int] = mapped_column(server_default="0")
        __table_args__ = (
            UniqueConstraint("a", "b"),
            Index("by_c", "c", unique=True, sqlite_where=text("gone = 0")),
        )

    Index("by_lower_b", func.lower(Item.b), unique=True)
    Other.metadata.create_all(database)
    registry = EntityRegistry()
    registry.add(Item, index="items", fields=["a"])
    made = World(database, registry)
    made.run("INSERT INTO items (id, a, b) VALUES (1, 'a', 'b')")
    assert made.run("REPLACE INTO items (id, a, b) VALUES (2, 'a', 'b')")[0] == ("items", "1")
    assert made.run("REPLACE INTO items (id, a, b) VALUES (3, 'x', 'B')")[0] == ("items", "2")
    assert made.run("REPLACE INTO items (id, a) VALUES (4, 'x'), (5, 'x')") == [("items", "4"), ("items", "5")]
    (warning,) = [each for each in check.triggers(database, registry) if each.level != "ok"]
    assert (warning.level, warning.name) == ("warn", "unique key")
    assert "by_c on items" in warning.found  # its condition is plain SQL
    assert "recursive_triggers = ON" in warning.remedy

    made.run("INSERT INTO items (id, a, c) VALUES (6, 'a', 'c')")
    with closing(sqlite3.connect(str(database.url.database))) as connection, connection:
        connection.execute("PRAGMA recursive_triggers = ON")
        connection.execute("REPLACE INTO items (id, a, c) VALUES (7, 'a', 'c')")
    assert ("items", "6") in made.rows()


# -- capture ----------------------------------------------------------------------------------------------------


def test_captured_session_leaves_to_the_triggers_what_they_note(world: World_) -> None:
    made = world(Contact, fields=["name", "account.name"], tenant="tenant_id", tenancy="prefixed")
    sessions = made.captured()
    with sessions.begin() as session:
        session.add(Contact(id=1, name="Ada", account=Account(id=1, name="Acme")))
    assert made.rows() == [("contacts", "2:t1:1")]
    with sessions.begin() as session:
        session.get_one(Account, 1).name = "Acme Ltd"
    assert made.rows() == [("contacts", "2:t1:1")]
    with sessions.begin() as session:
        session.execute(update(Contact).values(tenant_id="t2"))
    assert made.rows() == [("contacts", "2:t1:1"), ("contacts", "2:t2:1")]
    with sessions.begin() as session:
        session.delete(session.get_one(Contact, 1))
    assert made.rows() == [("contacts", "2:t2:1")]


def test_entity_without_all_of_its_triggers_stays_with_capture(world: World_) -> None:
    made = world(Contact, Account)
    sessions = made.captured()
    made.run("DROP TRIGGER outbox_accounts_account_delete")
    with sessions.begin() as session:
        session.add_all([Contact(id=1, name="Ada"), Account(id=1, name="Acme")])
    assert sorted(made.rows()) == [("accounts", "1"), ("accounts", "1"), ("contacts", "1")]
    with sessions.begin() as session:
        session.delete(session.get_one(Account, 1))
    assert made.rows() == [("accounts", "1")]


def test_capture_learns_of_triggers_that_come_and_go(database: Engine) -> None:
    registry = registered(Contact)
    sessions = registry.capture(sessionmaker(database))
    numbers = iter(range(1, 100))

    def rows_of_one_contact(session: Session) -> int:
        count = select(func.count()).select_from(text("outbox_events"))
        before = session.execute(count).scalar_one()
        session.add(Contact(id=next(numbers), name="Ada"))
        session.flush()
        return int(session.execute(count).scalar_one() - before)

    for change in (lambda _: None, lambda c: triggers.install(c, registry), triggers.remove):
        with sessions.begin() as session:
            change(session.connection())
            assert rows_of_one_contact(session) == 1
        with sessions.begin() as session:
            assert rows_of_one_contact(session) == 1


def test_triggers_that_others_install_and_remove_are_noticed_by_the_next_flush(database: Engine) -> None:
    registry = registered(Contact)
    sessions = registry.capture(sessionmaker(database))
    number = select(func.count()).select_from(text("outbox_events"))
    for at, change in enumerate((lambda _: None, lambda c: triggers.install(c, registry), triggers.remove), 1):
        with database.begin() as connection:
            change(connection)
        with sessions() as session:
            session.add(Contact(id=at, name="Ada"))
            session.commit()
            assert session.scalar(number) == at
            with pytest.raises(SyncTimeout, match="1 of 1 rows"):
                session.rollback()
                OutboxRepository(session).wait_until_synced(0.01)


def test_triggers_of_a_transaction_that_was_rolled_back_are_not_remembered(database: Engine) -> None:
    """SQLite gives the version of their schema to the next one."""
    registry = registered(Contact)
    sessions = registry.capture(sessionmaker(database))
    with sessions() as session:
        triggers.install(session.connection(), registry)
        session.add(Contact(id=1, name="Ada"))
        session.flush()
        version = session.execute(text("PRAGMA schema_version")).scalar_one()
        session.rollback()
        with database.begin() as connection:
            number = 0
            while connection.execute(text("PRAGMA schema_version")).scalar_one() < version:
                connection.execute(text(f"CREATE TABLE other_{number} (id)"))
                number += 1
            assert connection.execute(text("PRAGMA schema_version")).scalar_one() == version
        session.add(Contact(id=2, name="Grace"))
        session.commit()
        assert session.execute(text("SELECT document_id FROM outbox_events")).scalars().all() == ["2"]


def test_explicit_refresh_is_written_beside_triggers(world: World_) -> None:
    made = world(Contact)
    with made.captured().begin() as session:
        contact = Contact(id=1, name="Ada")
        session.add(contact)
        OutboxRepository(session, made.registry).refresh(contact)
    assert made.rows() == [("contacts", "1")] * 2


def test_async_session_leaves_to_the_triggers_what_they_note(world: World_) -> None:
    made = world(Contact)

    async def write() -> None:
        engine = create_async_engine(made.engine.url.set(drivername="sqlite+aiosqlite"))
        sqlite.prepare(engine)
        sessions = made.registry.capture(async_sessionmaker(engine))
        async with sessions.begin() as session:
            session.add(Contact(id=1, name="Ada"))
        await engine.dispose()

    asyncio.run(write())
    assert made.rows() == [("contacts", "1")]


# -- waiting ----------------------------------------------------------------------------------------------------


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[EmbeddedDestination]:
    made = EmbeddedDestination(tmp_path / "search.db")
    yield made
    made.close()


def write_object(session: Session) -> None:
    session.add(Contact(id=1, name="Ada"))


def write_plain_sql(session: Session) -> None:
    session.execute(text(ADA))


def write_on_the_connection(session: Session) -> None:
    session.connection().exec_driver_sql(ADA)


def write_after_a_savepoint(session: Session) -> None:
    with session.begin_nested() as savepoint:
        session.execute(text("INSERT INTO contacts (id, name) VALUES (2, 'Bob'), (3, 'Eve')"))
        savepoint.rollback()
    session.execute(text(ADA))


def write_beside_the_repository(session: Session) -> None:
    OutboxRepository(session).index("other", "7", {})
    session.add(Contact(id=1, name="Ada"))


THEIRS = [("other", "1"), ("other", "2")]


@pytest.mark.parametrize(
    "write",
    [
        write_object,
        write_plain_sql,
        write_on_the_connection,
        write_after_a_savepoint,
        write_beside_the_repository,
    ],
)
def test_rows_of_triggers_are_waited_for_and_nobody_elses(
    world: World_, outbox: Outbox, embedded: EmbeddedDestination, write: Callable[[Session], None]
) -> None:
    made = world(Contact)
    outbox.index(*THEIRS[0], {})
    with made.captured()() as session:
        write(session)
        session.commit()
        outbox.index(*THEIRS[1], {})
        rows = [row for row in made.full_rows() if (row.index_name, row.document_id) not in THEIRS]
        ours = {row.id: "applied" for row in rows}
        repo = OutboxRepository(session)
        with pytest.raises(SyncTimeout, match=f"{len(ours)} of {len(ours)} rows"):
            repo.wait_until_synced(0.01)
        relay = outbox.relay(embedded, registry=made.registry)
        while relay.run_once():
            pass
        assert repo.wait_until_synced(1) == ours
        session.execute(text("UPDATE contacts SET seen = 2"))
        session.commit()
        assert repo.wait_until_synced(0.01) == ours  # the last transaction that wrote rows


# -- installing -------------------------------------------------------------------------------------------------


def states(engine: Engine, registry: EntityRegistry) -> dict[str, str]:
    with engine.connect() as connection:
        return {each.name: each.state for each in triggers.status(connection, registry)}


def test_installing_again_changes_nothing(world: World_) -> None:
    made = world(Contact, fields=["name", "account.name", "tags.label"])
    with made.engine.begin() as connection:
        before = connection.execute(text("PRAGMA schema_version")).scalar_one()
        assert triggers.install(connection, made.registry) == []
        assert connection.execute(text("PRAGMA schema_version")).scalar_one() == before
    assert set(states(made.engine, made.registry).values()) == {"ok"}


@pytest.mark.parametrize(
    "given",
    [
        {"fields": ["name"]},
        {"tenant": "tenant_id", "tenancy": "index"},
        {"watch": ["seen"]},
        {"depends_on": {Account: "account_id"}},
    ],
)
def test_triggers_of_another_registration_are_stale_until_they_are_installed_again(
    world: World_, given: dict[str, Any]
) -> None:
    made = world(Contact)
    changed = registered(Contact, **given)
    assert {"stale", "missing"} & set(states(made.engine, changed).values())
    with made.engine.begin() as connection:
        assert triggers.install(connection, changed)
    assert set(states(made.engine, changed).values()) == {"ok"}


def test_column_that_no_document_has_makes_no_trigger_stale(world: World_) -> None:
    made = world(Contact, fields=["name", "account.name", "tags.label"])
    made.run("ALTER TABLE contacts ADD COLUMN extra", "ALTER TABLE accounts ADD COLUMN extra")
    assert set(states(made.engine, made.registry).values()) == {"ok"}


def test_trigger_of_an_entity_that_is_gone_is_stale_and_removed(world: World_) -> None:
    made = world(Contact, Account)
    fewer = registered(Contact)
    assert {name for name, state in states(made.engine, fewer).items() if state == "stale"} == {
        f"outbox_accounts_account_{operation}" for operation in ("insert", "update", "delete")
    }
    with made.engine.begin() as connection:
        triggers.install(connection, fewer)
    assert made.run("INSERT INTO accounts (id, name) VALUES (1, 'Acme')") == []


def test_trigger_that_is_not_ours_is_left_alone(world: World_) -> None:
    made = world(Contact)
    theirs = "CREATE TRIGGER {} AFTER DELETE ON contacts BEGIN SELECT 1; END"
    made.run(theirs.format("outbox_of_theirs"), "DROP TRIGGER outbox_contacts_contact_delete")
    made.run(theirs.format("outbox_contacts_contact_delete"))
    assert states(made.engine, made.registry)["outbox_contacts_contact_delete"] == "foreign"
    with made.engine.begin() as connection:
        with pytest.raises(ConfigurationError, match=r"outbox_contacts_contact_delete on contacts .* rename it"):
            triggers.install(connection, made.registry)
        assert len(triggers.remove(connection)) == 4
        assert not triggers.installed(connection)
        left = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all()
    assert sorted(left) == ["outbox_contacts_contact_delete", "outbox_of_theirs"]


def test_names_that_would_meet_are_kept_apart_and_odd_ones_are_quoted(database: Engine) -> None:
    class Other(DeclarativeBase):
        pass

    class Odd(Other):
        __tablename__ = 'it\'s "odd" 100% :x'
        id: Mapped[int] = mapped_column("the id:x %", primary_key=True)
        name: Mapped[str] = mapped_column('na"me')

    class One(Other):
        __tablename__ = "a_b"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Two(Other):
        __tablename__ = "a"
        id: Mapped[int] = mapped_column(primary_key=True)

    with database.begin() as connection:
        for table in ("a_b (id INTEGER PRIMARY KEY)", "a (id INTEGER PRIMARY KEY)"):
            connection.exec_driver_sql(f"CREATE TABLE {table}")
        connection.exec_driver_sql(
            'CREATE TABLE "it\'s ""odd"" 100% :x" ("the id:x %" INTEGER PRIMARY KEY, "na""me" TEXT)'
        )
    registry = EntityRegistry()
    registry.add(One, index="ones", fields=["id"], name="c")
    registry.add(Two, index="twos", fields=["id"], name="b_c")
    registry.add(Odd, index="odds", fields=["name"], name="100% :o'd")
    made = World(database, registry)
    assert made.run("INSERT INTO a_b VALUES (1)", "INSERT INTO a VALUES (2)") == [("ones", "1"), ("twos", "2")]
    with database.begin() as connection:
        connection.exec_driver_sql('INSERT INTO "it\'s ""odd"" 100% :x" VALUES (3, 4)')
    (row,) = made.full_rows()
    assert (row.index_name, row.document_id, row.entity) == ("odds", "3", "100% :o'd")


def test_table_in_an_attached_database_is_refused(database: Engine) -> None:
    class Other(DeclarativeBase):
        pass

    class Far(Other):
        __tablename__ = "far"
        __table_args__: ClassVar[Any] = {"schema": "elsewhere"}
        id: Mapped[int] = mapped_column(primary_key=True)

    registry = EntityRegistry()
    registry.add(Far, index="far", fields=["id"])
    with database.begin() as connection, pytest.raises(ConfigurationError, match=r"elsewhere\.far is in an attached"):
        triggers.install(connection, registry)


def test_table_that_is_missing_leaves_no_trigger_behind(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE accounts (id INTEGER PRIMARY KEY, name, plan)")
    with pytest.raises(ConfigurationError, match=r"no such table.*create the tables"), engine.begin() as connection:
        triggers.install(connection, registered(Account, Contact))
    with engine.connect() as connection:
        assert not triggers.installed(connection)


# -- migrations -------------------------------------------------------------------------------------------------


def rebuild(connection: Connection) -> Operations:
    """What a migration of the application does to change a column."""
    op = Operations(MigrationContext.configure(connection))
    with op.batch_alter_table("contacts", recreate="always") as batch:
        batch.alter_column("seen", nullable=True)
    return op


@pytest.fixture
def unenforced(engine: Engine) -> Engine:
    """Alembic's batches need foreign keys off."""
    Base.metadata.create_all(engine)
    return engine


def test_triggers_that_a_rebuilt_table_lost_are_missed(unenforced: Engine) -> None:
    made = World(unenforced, registered(Contact))
    with unenforced.begin() as connection:
        rebuild(connection)
    assert set(states(unenforced, made.registry).values()) == {"missing"}
    (found,) = check.triggers(unenforced, made.registry)
    assert (found.level, found.found) == (
        "fail",
        (
            "0 of 5 are as the registry says, e.g. outbox_contacts_contact_replace on contacts is missing: changes "
            "of contacts are not noted for contact"
        ),
    )
    with made.captured().begin() as session:
        session.add(Contact(id=1, name="Ada"))
    assert made.rows() == [("contacts", "1")]  # capture is there


def test_table_that_triggers_read_is_rebuilt_between_drop_and_create(unenforced: Engine) -> None:
    made = World(unenforced, registered(Contact, fields=["name", "account.name"]))
    with (
        pytest.raises(OperationalError, match="error in trigger outbox_accounts_contact"),
        unenforced.begin() as failing,
    ):
        rebuild(failing)
    with unenforced.begin() as connection:
        op = Operations(MigrationContext.configure(connection))
        triggers.drop(op, made.registry)
        rebuild(connection)
        triggers.create(op, made.registry)
    assert set(states(unenforced, made.registry).values()) == {"ok"}
    with unenforced.connect() as connection:
        assert triggers.installed(connection)
    assert made.run(ADA) == [("contacts", "1")]


def test_migration_without_a_database_writes_a_script(unenforced: Engine) -> None:
    registry = registered(Contact, tenant="tenant_id", tenancy="prefixed")
    script = io.StringIO()
    context = MigrationContext.configure(dialect_name="sqlite", opts={"as_sql": True, "output_buffer": script})
    triggers.create(Operations(context), registry)
    with closing(sqlite3.connect(str(unenforced.url.database))) as connection:
        connection.executescript(script.getvalue())
    assert set(states(unenforced, registry).values()) == {"ok"}
    with unenforced.begin() as connection:
        triggers.drop(connection, registry)
        assert not triggers.installed(connection)


# -- the commands -----------------------------------------------------------------------------------------------

APPLICATION = """
from outbox import EntityRegistry
from tests.test_triggers import Contact

registry = EntityRegistry()
registry.add(Contact, index="contacts", fields=["name"], watch={watch})
"""


@pytest.fixture
def command(database: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    monkeypatch.setenv("OUTBOX_DATABASE_URL", f"sqlite:///{database.url.database}")
    names: list[str] = []

    def run(*arguments: str, watch: list[str] | None = None) -> Result:
        names.append(f"shop_{len(names)}")
        (tmp_path / f"{names[-1]}.py").write_text(APPLICATION.format(watch=watch))
        monkeypatch.setenv("OUTBOX_ENTITIES", f"{names[-1]}:registry")
        return CliRunner().invoke(main, arguments)

    yield run
    for name in names:
        sys.modules.pop(name, None)


def test_commands_install_compare_and_remove(command: Callable[..., Result], database: Engine) -> None:
    result = command("triggers", "status")
    assert (result.exit_code, "5 triggers: 5 missing" in result.output) == (1, True)
    assert (
        command("triggers", "install").output == "5 triggers as the registry says: 5 created, 0 replaced or removed\n"
    )
    assert (
        command("triggers", "install").output == "5 triggers as the registry says: 0 created, 0 replaced or removed\n"
    )
    result = command("triggers", "status")
    assert (result.exit_code, result.output) == (0, "5 triggers: 5 ok\n")

    result = command("triggers", "status", "--json", watch=["seen"])
    assert result.exit_code == 1
    assert [each["name"] for each in json.loads(result.output) if each["state"] == "stale"] == [
        "outbox_contacts_contacts_update"
    ]
    result = command("triggers", "install", watch=["seen"])
    assert result.output == "5 triggers as the registry says: 0 created, 1 replaced or removed\n"
    assert command("triggers", "status", watch=["seen"]).exit_code == 0

    with database.begin() as connection:
        connection.execute(text("DROP TRIGGER outbox_contacts_contacts_delete"))
        connection.execute(
            text("CREATE TRIGGER outbox_contacts_contacts_delete AFTER DELETE ON contacts BEGIN SELECT 1; END")
        )
    result = command("triggers", "status", watch=["seen"])
    assert result.exit_code == 1
    assert result.output.startswith(
        "foreign  outbox_contacts_contacts_delete on contacts: outbox-relay did not make it"
    )
    assert command("triggers", "install", watch=["seen"]).exit_code == 2
    assert command("triggers", "remove").output == "4 triggers removed\n"
    assert command("triggers", "remove").output == "0 triggers removed\n"


def test_commands_need_a_registry(command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    command("triggers", "install")
    monkeypatch.delenv("OUTBOX_ENTITIES")
    for name in ("install", "status"):
        result = CliRunner().invoke(main, ["triggers", name])
        assert (result.exit_code, "set OUTBOX_ENTITIES" in result.output) == (2, True)


def test_check_says_what_became_of_the_triggers(command: Callable[..., Result], database: Engine) -> None:
    def findings(**given: Any) -> dict[str, str]:
        found = json.loads(command("check", "--json", **given).output)
        return {each["name"]: each["level"] for each in found}

    assert "triggers" not in findings()
    command("triggers", "install")
    assert findings()["triggers"] == "ok"
    assert findings(watch=["seen"])["triggers"] == "fail"
    with database.begin() as connection:
        for each in triggers.status(connection, registered()):
            connection.exec_driver_sql(f"DROP TRIGGER {each.name}")
    assert findings()["triggers"] == "fail"  # none is left, but the view remembers
    assert [each.level for each in check.triggers(database, None)] == ["warn"]
    command("triggers", "remove")
    assert "triggers" not in findings()


def test_nothing_is_said_of_the_triggers_of_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "letter.db").write_text("dear grandmother\n" * 100)
    engine = create_engine(f"sqlite:///{tmp_path / 'letter.db'}")
    assert check.triggers(engine, None) == []
    engine.dispose()
