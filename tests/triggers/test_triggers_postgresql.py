"""Triggers of PostgreSQL: statements that change many rows, TRUNCATE, partitions, schemas, programs with few rights."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Column, Engine, ForeignKey, Integer, Table, text
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from outbox import Dependency, EntityRegistry, check
from outbox.store.store import dialect_of
from outbox.triggers import installer as triggers
from tests.triggers.world import ADA, Account, Contact, Person, World, World_, registered

pytestmark = pytest.mark.parametrize("engine", ["postgresql"], indirect=True)


# -- names ------------------------------------------------------------------------------------------------------


class Names(DeclarativeBase):
    pass


class Translation(Names):
    __tablename__ = "translations"
    key: Mapped[str] = mapped_column(primary_key=True)  # a word that SQLite has a use for, and PostgreSQL has not
    text: Mapped[str]


class Product(Names):
    __tablename__ = "products"
    user: Mapped[int] = mapped_column(primary_key=True)  # and one the other way round
    new: Mapped[bool]
    old: Mapped[bool | None]
    title_key: Mapped[str | None] = mapped_column(ForeignKey("translations.key"))
    title: Mapped[Translation | None] = relationship()


def test_columns_with_the_names_of_something_else_are_followed(engine: Engine) -> None:
    Names.metadata.create_all(engine)
    registry = EntityRegistry()
    registry.add(Product, index="products", fields=["new", "old", "title.text"])
    made = World(engine, registry)
    made.run("INSERT INTO translations VALUES ('t1', 'Lamp')")
    product = ("products", "1")
    assert made.run("""INSERT INTO products ("user", new, title_key) VALUES (1, true, 't1')""") == [product]
    assert made.run("UPDATE products SET new = false, old = true") == [product]
    assert made.run("UPDATE products SET new = false") == []
    assert made.run("UPDATE translations SET text = 'Lantern'") == [product]
    assert made.run("DELETE FROM products") == [product]


# -- statements -------------------------------------------------------------------------------------------------


def test_each_row_of_a_statement_is_compared_with_itself(world: World_) -> None:
    made = world(Contact, tenant="tenant_id", tenancy="prefixed")
    made.run("INSERT INTO contacts (id, name) SELECT n, 'x' FROM generate_series(1, 5) AS n")
    assert made.run("UPDATE contacts SET name = CASE WHEN id = 3 THEN 'y' ELSE name END") == [("contacts", "2:t1:3")]
    assert made.run("UPDATE contacts SET tenant_id = 't2', seen = 1 WHERE id > 4 OR tenant_id <> 't1'") == [
        ("contacts", "2:t1:5"),
        ("contacts", "2:t2:5"),
    ]
    assert made.run("UPDATE contacts SET name = 'z' WHERE false") == []


def test_keys_that_change_all_at_once_are_noted_at_both_their_places(world: World_) -> None:
    made = world(Contact)
    made.run("INSERT INTO contacts (id, name) VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    assert sorted(set(made.run("UPDATE contacts SET id = id + 10"))) == [
        ("contacts", each) for each in ("1", "11", "12", "13", "2", "3")
    ]


def test_statement_that_changes_several_rows_of_a_path_leaves_no_document_out(world: World_) -> None:
    made = world(Person, fields=["name"], depends_on={Person: Dependency("chief.chief", watch=["name"])})
    made.run(
        "INSERT INTO people (id, kind, name, tenant_id, chief_id) VALUES (1, 'person', 'Ada', 't', NULL), "
        "(2, 'person', 'Bob', 't', 1), (3, 'person', 'Eve', 't', 2), (4, 'person', 'Joe', 't', NULL)"
    )
    found = set(made.run("UPDATE people SET name = name || '!', chief_id = CASE WHEN id = 2 THEN 4 ELSE chief_id END"))
    assert found == {("persons", each) for each in "1234"}
    assert set(made.run("UPDATE people SET chief_id = 1, name = 'x' WHERE id IN (2, 4)")) == {
        ("persons", "2"),
        ("persons", "3"),
        ("persons", "4"),
    }


def test_document_that_many_rows_of_a_statement_lead_to_is_noted_once(world: World_) -> None:
    made = world(Contact, fields=["name", "tags.label"])
    made.run(
        ADA,
        "INSERT INTO tags (id, label) SELECT n, 'x' FROM generate_series(1, 5) AS n",
        "INSERT INTO contact_tags (contact_id, tag_id) SELECT 1, n FROM generate_series(1, 5) AS n",
    )
    assert made.run("UPDATE tags SET label = 'y'") == [("contacts", "1")]


def test_upsert_and_merge_and_copy_are_noted(world: World_) -> None:
    made = world(Contact)
    assert made.run(ADA, "INSERT INTO contacts (id, name) VALUES (1, 'B') ON CONFLICT DO NOTHING") == [
        ("contacts", "1")
    ]
    upserted = made.run(
        "INSERT INTO contacts (id, name) VALUES (1, 'B'), (2, 'C') ON CONFLICT (id) DO UPDATE SET name = excluded.name"
    )
    assert sorted(upserted) == [("contacts", "1"), ("contacts", "2")]
    merged = made.run(
        "MERGE INTO contacts AS c USING (VALUES (1), (3)) AS v (id) ON v.id = c.id "
        "WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT (id, name) VALUES (v.id, 'new')"
    )
    assert sorted(merged) == [("contacts", "1"), ("contacts", "3")]
    connection: Any = made.engine.raw_connection()
    made.rows()
    with connection.cursor() as cursor, cursor.copy("COPY contacts (id, name) FROM STDIN") as copy:
        copy.write("7\tcopied\n8\tcopied\n")
    connection.commit()
    connection.close()
    assert made.rows() == [("contacts", "7"), ("contacts", "8")]


def test_table_without_a_key_and_a_type_without_equality_are_compared_by_their_bytes(database: Engine) -> None:
    class Other(DeclarativeBase):
        pass

    links = Table(
        "links",
        Other.metadata,
        Column("page_id", Integer, ForeignKey("pages.id")),
        Column("word_id", Integer, ForeignKey("words.id")),
    )

    class Word(Other):
        __tablename__ = "words"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Page(Other):
        __tablename__ = "pages"
        id: Mapped[int] = mapped_column(primary_key=True)
        content: Mapped[Any] = mapped_column(JSON)
        words: Mapped[list[Word]] = relationship(secondary=links)

    Other.metadata.create_all(database)
    registry = EntityRegistry()
    registry.add(Page, index="pages", fields=["content", "words.id"])
    made = World(database, registry)
    made.run(
        "INSERT INTO words VALUES (1), (2)",
        """INSERT INTO pages VALUES (1, '{"a": 1}'), (2, '{"a": 1}')""",
        "INSERT INTO links VALUES (1, 1), (2, 1), (2, 1)",
    )
    assert made.run("""UPDATE pages SET content = CASE WHEN id = 2 THEN '{"a":  1}'::json ELSE content END""") == [
        ("pages", "2")
    ]
    assert made.run("UPDATE links SET word_id = 2 WHERE page_id = 1")[-1] == ("pages", "1")
    assert made.run("UPDATE links SET word_id = word_id") == []


# -- TRUNCATE ---------------------------------------------------------------------------------------------------


def test_each_document_of_a_table_that_is_emptied_is_noted(world: World_) -> None:
    made = world(Contact, Account, fields=["name"])
    made.run(
        "INSERT INTO accounts (id, name) VALUES (1, 'Acme')", ADA, "INSERT INTO contacts (id, name) VALUES (2, 'B')"
    )
    assert set(made.run("TRUNCATE accounts CASCADE")) == {("accounts", "1"), ("contacts", "1"), ("contacts", "2")}


def test_documents_that_a_table_which_is_emptied_leads_to_are_noted_once(world: World_) -> None:
    made = world(Contact, fields=["name", "tags.label"])
    made.run(
        ADA,
        "INSERT INTO tags (id, label) VALUES (1, 'a'), (2, 'b')",
        "INSERT INTO contact_tags (contact_id, tag_id) VALUES (1, 1), (1, 2)",
    )
    assert made.run("TRUNCATE contact_tags") == [("contacts", "1")]


# -- partitions -------------------------------------------------------------------------------------------------


class Divided(DeclarativeBase):
    pass


class Reading(Divided):
    __tablename__ = "readings"
    __table_args__: ClassVar[Any] = {"postgresql_partition_by": "LIST (region)"}
    id: Mapped[int] = mapped_column(primary_key=True)
    region: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[int]
    seen: Mapped[int] = mapped_column(server_default="0")


@pytest.fixture
def readings(engine: Engine) -> World:
    Divided.metadata.create_all(engine)
    with engine.begin() as connection:
        for region in ("north", "south"):
            connection.exec_driver_sql(f"CREATE TABLE {region} PARTITION OF readings FOR VALUES IN ('{region}')")
    registry = EntityRegistry()
    registry.add(Reading, index="readings", fields=["value"])
    return World(engine, registry)


def test_rows_of_partitions_are_noted_whichever_table_is_written_to(readings: World) -> None:
    assert readings.run("INSERT INTO readings VALUES (1, 'north', 5)") == [("readings", "1|north")]
    assert readings.run("INSERT INTO south VALUES (2, 'south', 6)") == [("readings", "2|south")]
    assert readings.run("UPDATE south SET value = 7") == [("readings", "2|south")]
    assert readings.run("UPDATE readings SET seen = 1") == []
    assert set(readings.run("UPDATE readings SET region = 'south' WHERE id = 1")) == {
        ("readings", "1|north"),
        ("readings", "1|south"),
    }
    assert readings.run("DELETE FROM south WHERE id = 2") == [("readings", "2|south")]
    assert readings.run("TRUNCATE readings") == [("readings", "1|south")]


def test_partition_that_comes_later_is_noted_and_makes_no_trigger_stale(readings: World) -> None:
    readings.run("CREATE TABLE east PARTITION OF readings FOR VALUES IN ('east')")
    assert readings.run("INSERT INTO east VALUES (1, 'east', 5)") == [("readings", "1|east")]
    with readings.engine.begin() as connection:
        assert {each.state for each in triggers.status(connection, readings.registry)} == {"ok"}
        assert len(triggers.remove(connection)) == 4


def test_script_for_a_partitioned_table_is_what_a_connection_would_make(readings: World) -> None:
    with readings.engine.begin() as connection:
        triggers.remove(connection)
        for statement in triggers.create_sql(readings.registry, "postgresql"):
            connection.exec_driver_sql(statement)
        assert {each.state for each in triggers.status(connection, readings.registry)} == {"ok"}


# -- where they are, and who may write --------------------------------------------------------------------------


class Elsewhere(DeclarativeBase):
    pass


class Deal(Elsewhere):
    __tablename__ = "deals"
    __table_args__: ClassVar[Any] = {"schema": "crm"}
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@pytest.fixture
def deals(engine: Engine) -> World:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA crm")
        Elsewhere.metadata.create_all(connection)
    registry = EntityRegistry()
    registry.add(Deal, index="deals", fields=["name"])
    return World(engine, registry)


def test_triggers_live_in_the_schema_of_their_table(deals: World) -> None:
    assert deals.run("INSERT INTO crm.deals VALUES (1, 'a')") == [("deals", "1")]
    asked = "SELECT count(*) FROM pg_proc WHERE proname LIKE 'outbox%' AND pronamespace = 'crm'::regnamespace"
    with deals.engine.begin() as connection:
        assert connection.exec_driver_sql(asked.replace("%", "%%")).scalar_one() == 4
        assert len(triggers.remove(connection)) == 4
        assert connection.exec_driver_sql(asked.replace("%", "%%")).scalar_one() == 0


def test_program_with_another_search_path_and_few_rights_is_noted(world: World_) -> None:
    made = world(Contact, fields=["name", "account.name"])
    made.run(
        "INSERT INTO accounts (id, name) VALUES (1, 'Acme')",
        ADA,
        "UPDATE contacts SET account_id = 1",
        "DROP ROLE IF EXISTS clerk",
        "CREATE ROLE clerk",
        "GRANT USAGE ON SCHEMA public TO clerk",
        "GRANT SELECT, INSERT, UPDATE ON accounts TO clerk",
    )
    found = made.run(
        "SET LOCAL ROLE clerk",
        "SET LOCAL search_path = pg_temp",
        "CREATE TEMP TABLE outbox_events () ON COMMIT DROP",
        "CREATE TEMP TABLE contacts () ON COMMIT DROP",
        "UPDATE public.accounts SET name = 'Acme Ltd'",
    )
    made.run("DROP OWNED BY clerk", "DROP ROLE clerk")
    assert found == [("contacts", "1")]


def test_name_that_is_too_long_is_cut_and_stays_unique(engine: Engine) -> None:
    class Other(DeclarativeBase):
        pass

    class Long(Other):
        __tablename__ = "t" * 60
        id: Mapped[int] = mapped_column(primary_key=True)

    Other.metadata.create_all(engine)
    registry = EntityRegistry()
    registry.add(Long, index="longs", fields=["id"])
    made = World(engine, registry)
    assert (
        made.run(f"INSERT INTO {Long.__tablename__} VALUES (1)", f"DELETE FROM {Long.__tablename__}")
        == [("longs", "1")] * 2
    )
    with engine.connect() as connection:
        assert {each.state for each in triggers.status(connection, registry)} == {"ok"}


# -- what became of them ----------------------------------------------------------------------------------------


def test_disabled_trigger_is_stale_and_capture_takes_its_entity_up_at_the_next_flush(world: World_) -> None:
    made = world(Contact)
    sessions = made.captured()
    with sessions.begin() as session:
        session.add(Contact(id=1, name="Ada"))
    assert made.rows() == [("contacts", "1")]
    made.run("ALTER TABLE contacts DISABLE TRIGGER outbox_contacts_contact_insert")
    with sessions.begin() as session:
        session.add(Contact(id=2, name="Bob"))
    assert made.rows() == [("contacts", "2")]
    (found,) = check.triggers(made.engine, made.registry)
    assert (found.level, "outbox_contacts_contact_insert on contacts is stale: it is disabled" in found.found) == (
        "fail",
        True,
    )
    with made.engine.begin() as connection:
        assert len(triggers.install(connection, made.registry)) == 1
    assert made.run("INSERT INTO contacts (id, name) VALUES (3, 'Eve')") == [("contacts", "3")]


@pytest.mark.parametrize(
    "change",
    [
        "DROP TRIGGER outbox_contacts_contact_insert ON contacts",
        "DROP FUNCTION outbox_contacts_contact_insert CASCADE",
        "CREATE OR REPLACE FUNCTION outbox_contacts_contact_insert() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'",
        "COMMENT ON TRIGGER outbox_contacts_contact_insert ON contacts IS 'outbox-relay 000000000000'",
    ],
)
def test_trigger_that_was_changed_by_hand_is_found_and_mended(world: World_, change: str) -> None:
    made = world(Contact)
    made.run(change)
    with made.engine.begin() as connection:
        states = {each.name: each.state for each in triggers.status(connection, made.registry)}
        assert states.pop("outbox_contacts_contact_insert") in ("missing", "stale")
        assert set(states.values()) == {"ok"}
        assert len(triggers.install(connection, made.registry)) == 1
    assert made.run(ADA) == [("contacts", "1")]


def test_table_that_was_made_anew_is_missed(world: World_, database: Engine) -> None:
    made = world(Account)
    sessions = made.captured()
    with sessions.begin() as session:
        session.add(Account(id=1, name="Acme"))
    assert len(made.rows()) == 1
    made.run("DROP TABLE accounts CASCADE", "CREATE TABLE accounts (id INTEGER PRIMARY KEY, name TEXT, plan TEXT)")
    (found,) = check.triggers(database, made.registry)
    assert (found.level, "0 of 4 are as the registry says" in found.found) == ("fail", True)
    with sessions.begin() as session:
        session.add(Account(id=1, name="Acme"))
    assert len(made.rows()) == 1
    with database.begin() as connection:
        assert triggers.remove(connection) == []
        left = "SELECT count(*) FROM pg_proc WHERE proname LIKE 'outbox%%'"
        assert connection.exec_driver_sql(left).scalar_one() == 0


def test_migration_of_alembic_drops_and_creates_them(world: World_) -> None:
    made = world(Contact)
    with made.engine.begin() as connection:
        op = Operations(MigrationContext.configure(connection))
        triggers.drop(op, made.registry)
        assert not triggers.installed(connection)
        op.alter_column("contacts", "seen", nullable=True)
        triggers.create(op, made.registry)
        assert {each.state for each in triggers.status(connection, made.registry)} == {"ok"}
    assert made.run(ADA) == [("contacts", "1")]


def test_triggers_of_another_schema_are_left_alone(engine: Engine) -> None:
    """One database may hold several applications, each with an outbox in a schema of its own."""
    registry = registered(Account)
    with engine.begin() as connection:
        Account.__table__.create(connection)  # type: ignore[attr-defined]
        triggers.install(connection, registry)
        connection.exec_driver_sql("CREATE SCHEMA other")
        connection.exec_driver_sql("SET LOCAL search_path = other")
        assert not triggers.installed(connection)
        assert triggers.remove(connection) == []
    with engine.connect() as connection:
        assert {each.state for each in triggers.status(connection, registry)} == {"ok"}


def test_first_statement_of_a_session_is_the_first_of_its_transaction(world: World_) -> None:
    """Else `SET TRANSACTION` is refused, and `LOCK TABLE` comes after the snapshot."""
    made = world(Contact)
    sessions = made.registry.capture(sessionmaker(made.engine))
    for _ in range(2):
        with sessions.begin() as session:
            session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            session.add(Contact(name="Ada"))


def test_captured_session_of_a_role_without_rights_to_the_outbox_reads_and_writes(world: World_) -> None:
    made = world(Contact)
    made.run("DROP ROLE IF EXISTS clerk", "CREATE ROLE clerk", "GRANT SELECT, INSERT, UPDATE ON contacts TO clerk", ADA)
    sessions = made.registry.capture(sessionmaker(made.engine))
    with sessions.begin() as session:
        session.execute(text("SET LOCAL ROLE clerk"))
        assert [each.name for each in session.query(Contact)] == ["Ada"]
        session.get_one(Contact, 1).name = "Grace"
        session.flush()
        session.execute(text("UPDATE contacts SET name = 'Ada'"))
    assert made.run("DROP OWNED BY clerk", "DROP ROLE clerk") == [("contacts", "1")] * 2


def test_session_takes_rows_of_triggers_for_its_own(world: World_) -> None:
    made = world(Contact)
    sessions = made.registry.capture(sessionmaker(made.engine))
    with sessions.begin() as session:
        before = dialect_of(session.connection()).highest_id_in(session.connection())
        session.add(Contact(id=1, name="Ada"))
        session.flush()
        assert len(dialect_of(session.connection()).written_since(session.connection(), before)) == 1
    with Session(made.engine) as other:
        assert other.execute(text("SELECT count(*) FROM outbox_events")).scalar_one() == 1
