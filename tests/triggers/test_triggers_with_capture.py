"""A session that is captured leaves to triggers what they note; both together lose nothing and note nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from outbox import OutboxRepository, SyncTimeout, sqlite
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.triggers import installer as triggers
from tests.support.outbox import Outbox
from tests.triggers.world import ADA, Account, Contact, World_, dropped, on_postgresql, registered


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
    made.run(dropped(made.engine, "outbox_accounts_account_delete", "accounts"))
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


def test_table_that_takes_the_place_of_the_one_with_triggers_is_noticed_by_the_next_flush(database: Engine) -> None:
    if not on_postgresql(database):
        pytest.skip("SQLite counts each change of its schema")
    registry = registered(Contact)
    sessions = registry.capture(sessionmaker(database))
    with database.begin() as connection:
        triggers.install(connection, registry)
        connection.execute(text("CREATE TABLE contacts_new (LIKE contacts INCLUDING ALL)"))
    number = select(func.count()).select_from(text("outbox_events"))
    with sessions.begin() as session:
        session.add(Contact(id=1, name="Ada"))
    with database.begin() as connection:
        connection.execute(text("ALTER TABLE contacts RENAME TO contacts_old"))
        connection.execute(text("ALTER TABLE contacts_new RENAME TO contacts"))
    with sessions.begin() as session:
        session.add(Contact(id=2, name="Grace"))
    with sessions() as session:
        assert session.scalar(number) == 2


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


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
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
        url = made.engine.url
        engine = create_async_engine(url if on_postgresql(made.engine) else url.set(drivername="sqlite+aiosqlite"))
        if not on_postgresql(made.engine):
            sqlite.prepare(engine)
        sessions = made.registry.capture(async_sessionmaker(engine))
        async with sessions.begin() as session:
            session.add(Contact(id=1, name="Ada"))
        await engine.dispose()

    asyncio.run(write())
    assert made.rows() == [("contacts", "1")]


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
