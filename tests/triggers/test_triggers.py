"""Triggers: what no session sees becomes rows too, whichever program writes it, and once only."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, ForeignKey, Index, UniqueConstraint, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from outbox import Dependency, EntityRegistry, check
from tests.triggers.world import (
    ADA,
    Account,
    Base,
    Contact,
    Engineer,
    Guest,
    Part,
    Person,
    Row,
    World,
    World_,
    on_postgresql,
    other_program,
    registered,
)

ON_SQLITE = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
"""Of a test that is about what SQLite alone does."""

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
    with other_program(made.engine) as cursor:
        cursor.execute(ADA)
        cursor.execute("INSERT INTO contacts (id, name) VALUES (2, 'Bob'), (3, 'Eve')")
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


@ON_SQLITE
def test_key_may_be_changed_by_its_other_name(world: World_) -> None:
    made = world(Contact)
    made.run(ADA)
    assert made.run("UPDATE contacts SET rowid = 3") == [("contacts", "1"), ("contacts", "3")]


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
    if on_postgresql(made.engine):
        tenant = tenant.replace("char(", "chr(")
    if change == "UPDATE":
        made.run(ADA)
        statement = f"UPDATE contacts SET tenant_id = {tenant}"
    else:
        statement = f"INSERT INTO contacts (id, name, tenant_id) VALUES (1, 'Ada', {tenant})"
    with made.engine.connect() as connection:
        before = connection.execute(text("SELECT * FROM contacts")).all()
        with (
            pytest.raises(IntegrityError, match=f"entity 'contact' can have no place.*{reason}"),
            connection.begin_nested(),
        ):
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
        "INSERT INTO contacts (id, name, account_id) SELECT n, 'x', CASE WHEN n > 10000 THEN 2 ELSE 1 END FROM n",
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
    assert made.run("INSERT INTO tags VALUES (1, 'x')") == []


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


@ON_SQLITE
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


@ON_SQLITE
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


@ON_SQLITE
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
