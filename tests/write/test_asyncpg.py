"""An application on PostgreSQL whose sessions are async, with asyncpg."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import Engine, delete, insert, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from outbox import EntityRegistry, OutboxRepository
from outbox.errors import ConfigurationError
from outbox.store.store import Store
from tests.write.models import Account, Base, Contact

Work = Callable[[AsyncEngine, async_sessionmaker[AsyncSession]], Awaitable[None]]


@pytest.fixture
def engine(postgresql_engine: Engine) -> Engine:
    Base.metadata.create_all(postgresql_engine)
    return postgresql_engine


def written_by(engine: Engine, work: Work) -> list[str]:
    """The rows that come in while it works with such an engine, and captured sessions of it, as `action index/_id`."""
    registry = EntityRegistry()
    registry.add(Contact, index="contacts", fields=["name", "account.name"])

    async def working() -> None:
        made = create_async_engine(engine.url.set(drivername="postgresql+asyncpg"))
        try:
            await work(made, registry.capture(async_sessionmaker(made)))
        finally:
            await made.dispose()

    store = Store(engine)
    before = store.highest_id()
    asyncio.run(working())
    rows = [row for row in store.events() if row["id"] > before]
    store.close()
    return [f"{row['action']} {row['index_name']}/{row['document_id']} {row['document'] or ''}".strip() for row in rows]


def test_rows_of_a_repository_and_their_documents_are_stored(engine: Engine) -> None:
    async def write(_engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]) -> None:
        async with sessions.begin() as session:
            outbox = await session.run_sync(OutboxRepository)
            ids = [
                await session.run_sync(lambda _: outbox.index("notes", "1", {"text": "ä"})),
                *await session.run_sync(lambda _: outbox.index_many("notes", [("2", {"n": 1}), ("3", {"n": 2})])),
                await session.run_sync(lambda _: outbox.update("notes", "2", {"n": 3})),
                await session.run_sync(lambda _: outbox.delete("notes", "3")),
            ]
            assert ids == sorted(set(ids))
        async with sessions() as session:
            await session.run_sync(lambda sync: OutboxRepository(sync).index("notes", "4", {}))
            await session.rollback()

    assert written_by(engine, write) == [
        'index notes/1 {"text":"ä"}',
        'index notes/2 {"n":1}',
        'index notes/3 {"n":2}',
        'update notes/2 {"n":3}',
        "delete notes/3",
    ]


def test_what_a_session_changes_is_noted_objects_statements_and_savepoints_alike(engine: Engine) -> None:
    async def write(_engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]) -> None:
        async with sessions.begin() as session:
            session.add_all(Contact(id=n, name="Ada") for n in (1, 2))
        async with sessions.begin() as session:
            async with session.begin_nested():
                (await session.get_one(Contact, 1)).name = "Grace"
            await session.execute(insert(Contact), [{"id": 3, "name": "Alan"}, {"id": 4, "name": "Kurt"}])
        async with sessions.begin() as session:
            await session.execute(update(Contact).where(Contact.id > 2).values(name="Emmy"))
        async with sessions.begin() as session:
            await session.execute(delete(Contact).where(Contact.id == 2))

    ids = [1, 2, 1, 3, 4, 3, 4, 2]
    assert written_by(engine, write) == [f"refresh contacts/{id_}" for id_ in ids]


def test_change_of_what_documents_are_made_of_is_noted_for_each_of_them(engine: Engine) -> None:
    async def write(_engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]) -> None:
        async with sessions.begin() as session:
            account = Account(id=1, name="Acme")
            session.add_all(Contact(id=n, name="Ada", account=account) for n in (1, 2))
        async with sessions.begin() as session:
            (await session.get_one(Account, 1)).name = "Acme Ltd"
        async with sessions.begin() as session:
            await session.execute(update(Account).values(name="Acme"))

    assert written_by(engine, write) == [f"refresh contacts/{id_}" for id_ in (1, 2, 1, 2, 1, 2)]


def test_transaction_whose_connection_was_lost_is_tried_again_as_any_other(engine: Engine) -> None:
    async def write(_engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]) -> None:
        async with sessions() as session:
            session.add(Contact(id=1, name="Ada"))
            pid = (await (await session.connection()).exec_driver_sql("SELECT pg_backend_pid()")).scalar_one()
            with engine.connect() as connection:
                connection.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 10000)")
            with pytest.raises(DBAPIError) as lost:
                await session.commit()
            assert lost.value.connection_invalidated
            await session.rollback()
            session.add(Contact(id=1, name="Ada"))
            await session.commit()

    assert written_by(engine, write) == ["refresh contacts/1"]


def test_session_that_commits_each_statement_by_itself_is_refused(engine: Engine) -> None:
    async def write(made: AsyncEngine, _sessions: async_sessionmaker[AsyncSession]) -> None:
        async with AsyncSession(made.execution_options(isolation_level="AUTOCOMMIT")) as session:
            with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
                await session.run_sync(lambda sync: OutboxRepository(sync).index("notes", "1", {}))

    assert written_by(engine, write) == []
