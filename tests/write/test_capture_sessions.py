"""Which sessions can be captured, by whom, and how often."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, create_engine, delete, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
)

from outbox import ConfigurationError, EntityRegistry, OutboxRepository, sqlite
from outbox.testing import OutboxTester
from tests.support.watching import Rows
from tests.write import ON_SQLITE
from tests.write.models import Account, Base, Contact, Deal, deal_document


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
@ON_SQLITE
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
def test_session_in_autocommit_is_refused(database: Engine, registry: EntityRegistry) -> None:
    """What it notes once would be delivered, and a later change of the same transaction not be noted again."""
    sessions = registry.capture(sessionmaker(database.execution_options(isolation_level="AUTOCOMMIT")))
    with sessions() as session, pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        session.add(Contact(id=1, name="Ada", tenant_id="t1"))
        session.flush()


def change_by_flush(session: Session) -> None:
    session.get_one(Contact, 1).name = "Grace"
    session.flush()


def change_by_update(session: Session) -> None:
    session.execute(update(Contact).values(name="Grace"))


def change_by_delete(session: Session) -> None:
    session.execute(delete(Contact))


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
@pytest.mark.usefixtures("contacts")
@pytest.mark.parametrize("change", [change_by_flush, change_by_update, change_by_delete])
def test_session_in_autocommit_is_refused_before_its_change_is_committed(
    change: Callable[[Session], None], database: Engine, registry: EntityRegistry
) -> None:
    sessions = registry.capture(sessionmaker(database))
    with sessions.begin() as session:
        session.add(Contact(id=1, name="Ada", tenant_id="t1"))
    with (
        sessions(bind=database.execution_options(isolation_level="AUTOCOMMIT")) as session,
        pytest.raises(ConfigurationError, match="AUTOCOMMIT"),
    ):
        change(session)
    with sessions() as session:
        assert session.scalars(select(Contact.name)).all() == ["Ada"]


@pytest.mark.usefixtures("contacts")
def test_session_in_autocommit_may_write_what_is_in_no_document(database: Engine, registry: EntityRegistry) -> None:
    sessions = registry.capture(sessionmaker(database.execution_options(isolation_level="AUTOCOMMIT")))
    with sessions.begin() as session:
        session.add(Account(id=1, name="Acme"))
    with sessions() as session:
        assert session.scalars(select(Account.name)).all() == ["Acme"]


def test_models_that_are_imported_twice_are_noted_once(
    database: Engine, sessions: sessionmaker[Session], new: Rows
) -> None:
    for _ in range(2):  # as by a test runner that loads a module under two names, with one session for both

        class Again(DeclarativeBase):
            pass

        class Note(Again):
            __tablename__ = "notes_again"
            id: Mapped[int] = mapped_column(primary_key=True)

        Again.metadata.create_all(database)
        registry = EntityRegistry()
        registry.add(Note, index="notes", fields=["id"])
        registry.capture(sessions)
        registry.capture(sessions)
        with sessions.begin() as session:
            session.add(Note())
    assert new() == ["notes/1", "notes/2"]


@pytest.mark.parametrize("mode", ["create_savepoint", "conditional_savepoint", "rollback_only"])
def test_change_after_a_delivery_in_the_same_transaction_of_the_connection_is_noted_anew(
    registry: EntityRegistry, database: Engine, mode: Any
) -> None:
    registry.add(Contact, index="contacts", fields=["name", "account.name"])
    sessions = registry.capture(sessionmaker(join_transaction_mode=mode))
    with database.connect() as connection, connection.begin() as transaction:
        with OutboxTester(connection, registry) as outbox, sessions(bind=connection) as session:
            session.add(Contact(id=1, name="Ada", account=Account(id=1, name="Acme")))
            session.commit()
            outbox.drain()
            session.get_one(Account, 1).name = "Acme Ltd"
            session.commit()
            outbox.drain()
            assert outbox.document("contacts", "1") == {"name": "Ada", "account": {"name": "Acme Ltd"}}
            session.get_one(Contact, 1).name = "Grace"
            session.commit()
            outbox.drain()
            assert outbox.document("contacts", "1") == {"name": "Grace", "account": {"name": "Acme Ltd"}}
        transaction.rollback()


def test_row_of_a_released_savepoint_that_was_delivered_already_keeps_no_later_change_from_being_noted(
    registry: EntityRegistry, database: Engine
) -> None:
    """As a relay does where Python's sqlite3 commits with the release."""
    registry.add(Contact, index="contacts", fields=["name", "account.name"])
    sessions = registry.capture(sessionmaker(database))
    with sessions() as session:
        connection = session.connection()
        with OutboxTester(connection, registry) as outbox:
            with session.begin_nested():
                session.add(Contact(id=1, name="Ada", account=Account(id=1, name="Acme")))
            outbox.drain()
            session.get_one(Account, 1).name = "Acme Ltd"
            session.flush()
            outbox.drain()
            assert outbox.document("contacts", "1") == {"name": "Ada", "account": {"name": "Acme Ltd"}}
        session.rollback()


@contextmanager
def counted_calls() -> Iterator[Callable[[], int]]:
    """How many functions Python has called meanwhile."""
    calls = 0

    def called(_frame: Any, what: str, _argument: Any) -> None:
        nonlocal calls
        calls += what in ("call", "c_call")

    sys.setprofile(called)
    try:
        yield lambda: calls
    finally:
        sys.setprofile(None)


@contextmanager
def counted_work(session: Session) -> Iterator[Callable[[], int]]:
    """What the database has done meanwhile: instructions of SQLite, or rows of the outbox that PostgreSQL has read."""
    connection = session.connection()
    if connection.dialect.name == "postgresql":
        asked = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'outbox_events'"
        before: int = connection.execute(text(asked)).scalar_one()
        yield lambda: connection.execute(text(asked)).scalar_one() - before
        return
    driver: Any = connection.connection.driver_connection
    instructions = 0

    def carried_out() -> None:
        nonlocal instructions
        instructions += 1

    driver.set_progress_handler(carried_out, 1)
    try:
        yield lambda: instructions
    finally:
        driver.set_progress_handler(None, 0)


@pytest.mark.parametrize("savepoints", [False, True])
@pytest.mark.parametrize("counted", [counted_calls, counted_work])
def test_flush_costs_the_same_however_much_its_transaction_has_noted_before(
    registry: EntityRegistry, sessions: sessionmaker[Session], counted: Callable[..., Any], savepoints: bool
) -> None:
    registry.add(Contact, index="contacts", fields=["name", "account.name"])
    costs = []
    with sessions.begin() as session:
        session.execute(text("CREATE INDEX contacts_of_accounts ON contacts (account_id)"))
        for at in range(1, 121):
            with counted(*[session][: counted is counted_work]) as cost:
                with session.begin_nested() if savepoints else nullcontext():
                    session.add(Contact(id=at, name="Ada", account=Account(id=at, name="Acme")))
                    session.flush()
                costs.append(cost())
            session.expunge_all()
    assert max(costs[-10:]) < max(costs[10:20]) + 50
