"""What companies set on a PostgreSQL, and do to it while relays run: policies, defaults, types, read-only times."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Connection, Engine, ForeignKey, create_engine, event, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker
from sqlalchemy.pool import NullPool

from outbox import EntityRegistry, OutboxRepository, schema
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.errors import ConfigurationError, DatabaseUnavailable
from outbox.reindex.reindexer import Reindexer
from outbox.reindex.selection import Selection
from outbox.relay.relay import Relay
from outbox.store import jobs
from outbox.store.store import Store, dialect_of
from outbox.verify.verification import Drift, Verification
from tests.support.outbox import settings
from tests.support.postgres import Postgres
from tests.support.relays import until


class Base(DeclarativeBase):
    pass


class Company(Base):
    __tablename__ = "companies"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]


class Contact(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]
    born: Mapped[datetime | None]
    company_id: Mapped[int | None] = mapped_column(ForeignKey("companies.id"))
    company: Mapped[Company | None] = relationship()


registry = EntityRegistry()
registry.add(Contact, index="contacts", fields=["name", "born", "company.name"])
Sessions = sessionmaker()
registry.capture(Sessions)


@pytest.fixture
def engine(postgresql_engine: Engine) -> Engine:
    """That of an application."""
    Base.metadata.create_all(postgresql_engine)
    return postgresql_engine


@pytest.fixture
def url(engine: Engine) -> URL:
    return engine.url


@pytest.fixture
def store(url: URL) -> Iterator[Store]:
    """A relay's."""
    opened = Store(prepared(url))
    yield opened
    opened.close()
    opened.connection.engine.dispose()


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[EmbeddedDestination]:
    with closing(EmbeddedDestination(tmp_path / "search.db")) as opened:
        yield opened


def prepared(url: URL) -> Engine:
    made = create_engine(url)
    dialect_of(made).prepare(made)
    return made


def administer(url: URL, *statements: str) -> None:
    owner = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with owner.connect() as connection:
        connection.exec_driver_sql("SET default_transaction_read_only = off")
        for statement in statements:
            connection.exec_driver_sql(statement.format(database=url.database))


def end_other_sessions(url: URL) -> None:
    administer(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )


def deliver(store: Store, destination: EmbeddedDestination) -> None:
    relay = Relay(store, destination, settings(), relay_id=1, registry=registry)
    while relay.run_once():
        pass


def names(destination: EmbeddedDestination, *ids: str) -> dict[str, str]:
    found = destination.read("contacts", ids)
    return {id_: each.source["name"] for id_, each in found.items() if each.source}


def add(engine: Engine, *contacts: Contact) -> None:
    with Sessions(bind=engine) as session, session.begin():
        session.add_all(contacts)


def test_rows_that_a_policy_hides_from_relays_wait_instead_of_being_deleted(
    url: URL, engine: Engine, store: Store, destination: EmbeddedDestination
) -> None:
    add(engine, Contact(id=1, name="Ada"))
    deliver(store, destination)
    role = f"hidden_{url.database}"
    administer(
        url,
        f"CREATE ROLE {role} LOGIN",
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}",
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}",
        "ALTER TABLE contacts ENABLE ROW LEVEL SECURITY",
    )
    restricted = Store(prepared(url.set(username=role)))
    try:
        with Session(engine) as session, session.begin():
            OutboxRepository(session, registry).refresh("contacts", 1)
        deliver(restricted, destination)
        (row,) = restricted.run("SELECT state FROM outbox_events WHERE state <> 'done'")
        assert row[0] == "pending"
        with pytest.raises(DatabaseUnavailable, match="row-level security"):
            list(Verification(restricted, destination, registry).run())
        assert names(destination, "1") == {"1": "Ada"}
    finally:
        restricted.close()
        restricted.connection.engine.dispose()
        administer(url, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_relays_read_what_others_have_committed_whatever_the_database_has_for_a_default(url: URL) -> None:
    administer(url, "ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'")
    store = Store(prepared(url))
    with closing(store), store.write(durable=False, alone=True):
        assert store.run("SHOW transaction_isolation").scalar_one() == "read committed"
    store.connection.engine.dispose()


def test_applications_that_read_one_snapshot_migrate_side_by_side(postgres: Postgres) -> None:
    def start(url: URL) -> tuple[str | None, str]:
        engine = create_engine(url, isolation_level="REPEATABLE READ")
        try:
            return schema.upgrade(engine)
        finally:
            engine.dispose()

    with postgres.database(empty=True) as url, ThreadPoolExecutor(4) as threads:
        assert {after for _, after in threads.map(start, [url] * 4)} == {schema.head()}


def test_migration_that_ends_half_way_leaves_nothing_even_of_an_engine_in_autocommit(postgres: Postgres) -> None:
    with postgres.database(empty=True) as url:
        engine = create_engine(url, isolation_level="AUTOCOMMIT")

        @event.listens_for(engine, "after_cursor_execute")
        def on_executed(_connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
            if "CREATE INDEX" in statement:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            schema.upgrade(engine)
        event.remove(engine, "after_cursor_execute", on_executed)
        assert schema.upgrade(engine) == (None, schema.head())
        engine.dispose()


def test_id_that_no_column_can_hold_delays_no_other_document(
    engine: Engine, store: Store, destination: EmbeddedDestination
) -> None:
    add(engine, Contact(id=1, name="Ada"))
    with Session(engine) as session, session.begin():
        OutboxRepository(session, registry).refresh("contacts", 3_000_000_000)
        OutboxRepository(session).index("contacts", "4000000000", {"name": "of nobody"})
    deliver(store, destination)
    rows = store.run("SELECT document_id, state, outcome FROM outbox_events ORDER BY id")
    assert [tuple(row) for row in rows] == [
        ("1", "done", "applied"),
        ("3000000000", "done", "deleted"),
        ("4000000000", "done", "applied"),
    ]
    assert names(destination, "1") == {"1": "Ada"}
    found = list(Verification(store, destination, registry, patience=0).run())
    assert [(each.kind, each.document_id) for each in found if isinstance(each, Drift)] == [("extra", "4000000000")]


def test_row_with_an_id_beyond_that_of_its_model_is_delivered(
    url: URL, engine: Engine, store: Store, destination: EmbeddedDestination
) -> None:
    administer(
        url,
        "ALTER TABLE contacts ALTER COLUMN id TYPE BIGINT",
        "INSERT INTO contacts (id, name) VALUES (3000000000, 'Ada')",
    )
    with Session(engine) as session, session.begin():
        OutboxRepository(session, registry).refresh("contacts", 3_000_000_000)
    deliver(store, destination)
    assert names(destination, "3000000000") == {"3000000000": "Ada"}


def test_value_that_the_driver_cannot_read_fails_its_own_row_alone(
    url: URL, engine: Engine, store: Store, destination: EmbeddedDestination
) -> None:
    add(engine, *(Contact(id=id_, name=f"Contact {id_}") for id_ in range(1, 6)))
    administer(url, "UPDATE contacts SET born = 'infinity' WHERE id = 3")
    deliver(store, destination)
    assert names(destination, *"12345") == {id_: f"Contact {id_}" for id_ in "1245"}
    ((id_, kind, error),) = store.run("SELECT document_id, error_type, error FROM outbox_events WHERE state <> 'done'")
    assert (id_, kind) == ("3", "load_failed")
    assert "too large" in error


def test_relay_waits_while_the_server_takes_no_writes(
    url: URL, engine: Engine, store: Store, destination: EmbeddedDestination
) -> None:
    add(engine, Contact(id=1, name="Ada"))
    engine.dispose()
    administer(url, "ALTER DATABASE {database} SET default_transaction_read_only = on")
    end_other_sessions(url)
    relay = Relay(store, destination, settings(), relay_id=1, registry=registry)
    for _ in range(2):  # the first finds its session ended
        with pytest.raises(DatabaseUnavailable, match=r"read-only transaction|terminat|closed"):
            relay.run_once()
    administer(url, "ALTER DATABASE {database} RESET default_transaction_read_only")
    end_other_sessions(url)
    with pytest.raises(DatabaseUnavailable):
        relay.run_once()
    while relay.run_once():
        pass
    assert names(destination, "1") == {"1": "Ada"}


def test_column_of_another_type_blocks_no_relay_that_has_read_it_before(
    url: URL, engine: Engine, store: Store, destination: EmbeddedDestination
) -> None:
    relay = Relay(store, destination, settings(breaker_first_pause=0.01), relay_id=1, registry=registry)
    for id_ in range(1, 9):  # the driver prepares what it has carried out five times
        add(engine, Contact(id=id_, name=f"Contact {id_}"))
        relay.run_once()
    administer(url, "ALTER TABLE contacts ALTER COLUMN name TYPE VARCHAR(200)")
    add(engine, Contact(id=9, name="Ada"))
    until(lambda: relay.run_once() is not None and names(destination, "9") == {"9": "Ada"}, "it is delivered")


def test_process_is_alive_for_roles_that_have_other_search_paths(url: URL) -> None:
    administer(url, "CREATE SCHEMA other")
    one, other = prepared(url), prepared(url.set(query={"options": "-c search_path=other,public"}))
    held = dialect_of(one).presence(one).hold("relay", 7)
    try:
        assert dialect_of(other).presence(other).live("relay", [7]) == [7]
        assert dialect_of(other).presence(other).dead("relay", [7]) == []
    finally:
        held.end()
        one.dispose()
        other.dispose()


def test_rebuild_whose_session_was_ended_is_not_taken_for_a_killed_one(
    engine: Engine, store: Store, destination: EmbeddedDestination
) -> None:
    add(engine, *(Contact(id=id_, name=f"Contact {id_}") for id_ in range(1, 50)))
    deliver(store, destination)
    steps = Reindexer(store, destination, registry).run(Selection("contacts", tuple(registry.of_index("contacts"))))
    next(steps)
    with engine.connect() as connection:
        connection.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid IS NOT NULL")
        )
    next(steps)
    (job,) = jobs.open_jobs(store)
    assert store.presence.live("reindex", [job.lease_token]) == [job.lease_token]
    steps.close()


def test_transaction_whose_connection_was_lost_is_tried_again_as_any_other(engine: Engine) -> None:
    with Sessions(bind=engine) as session:
        session.add(Contact(id=1, name="Ada"))
        pid = session.connection().exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        administer(engine.url, f"SELECT pg_terminate_backend({pid}, 10000)")
        with pytest.raises(OperationalError) as lost:
            session.commit()
        assert lost.value.connection_invalidated
        session.rollback()
        session.add(Contact(id=1, name="Ada"))
        session.commit()


def test_serialization_failure_of_an_outbox_statement_is_that_of_the_application(engine: Engine) -> None:
    with Sessions(bind=engine) as session, session.begin():
        session.add_all([Contact(id=1, name="Ada"), Contact(id=2, name="Grace")])
    serializable = engine.execution_options(isolation_level="SERIALIZABLE")
    with Session(serializable) as first, Sessions(bind=serializable) as second:
        for session in (first, second):
            session.scalars(select(Contact)).all()

        @event.listens_for(serializable, "after_cursor_execute")
        def on_executed(_connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
            if statement.startswith("UPDATE contacts") and first.in_transaction():
                first.execute(text("UPDATE ONLY contacts SET name = 'Augusta' WHERE id = 1"))
                first.commit()

        second.get_one(Contact, 2).name = "Hopper"
        with pytest.raises(OperationalError) as refused:
            second.commit()
        assert getattr(refused.value.orig, "sqlstate", None) == "40001"


def test_session_in_autocommit_changes_nothing_that_other_documents_are_made_of(engine: Engine) -> None:
    with Sessions(bind=engine) as session, session.begin():
        session.add(Contact(id=1, name="Ada", company=Company(id=1, name="Analytical Engines")))
    with (
        Sessions(bind=engine.execution_options(isolation_level="AUTOCOMMIT")) as session,
        pytest.raises(ConfigurationError, match="AUTOCOMMIT"),
    ):
        session.get_one(Company, 1).name = "Babbage & Co."
        session.commit()
