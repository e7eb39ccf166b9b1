"""The write side: rows commit and roll back with the application's transaction, and only with it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from outbox import InvalidDocument, InvalidInput, InvalidName, OutboxRepository, sqlite
from outbox.settings import WriteSettings
from outbox.store import operators
from tests.support.models import Base, Contact
from tests.support.outbox import Outbox


@pytest.fixture
def sessions(engine: Engine) -> sessionmaker[Session]:
    Base.metadata.create_all(engine)
    return sessionmaker(engine)


def rows(engine: Engine, sql: str = "SELECT document_id FROM outbox_events ORDER BY id") -> list[Any]:
    with engine.connect() as connection:
        return [row[0] for row in connection.execute(text(sql))]


def test_row_commits_with_the_entity(sessions: sessionmaker[Session], engine: Engine) -> None:
    with sessions.begin() as session:
        contact = Contact(name="Ada")
        session.add(contact)
        repo = OutboxRepository(session)
        session.flush()
        repo.index("contacts", f"contact-{contact.id}", {"name": contact.name}, tenant_id="t1")
    assert rows(engine) == ["contact-1"]
    assert rows(engine, "SELECT document FROM outbox_documents") == ['{"name":"Ada"}']


def test_rollback_takes_row_and_entity_along(sessions: sessionmaker[Session], engine: Engine) -> None:
    with sessions() as session:
        session.add(Contact(name="Ada"))
        OutboxRepository(session).index("contacts", "c1", {})
        session.rollback()
    assert rows(engine) == []
    assert rows(engine, "SELECT event_id FROM outbox_documents") == []
    assert rows(engine, "SELECT id FROM contacts") == []


def test_savepoint_rollback_takes_only_its_rows(sessions: sessionmaker[Session], engine: Engine) -> None:
    with sessions.begin() as session:
        repo = OutboxRepository(session)
        repo.index("contacts", "kept", {})
        savepoint = session.begin_nested()
        repo.index("contacts", "dropped", {})
        savepoint.rollback()
        repo.delete("contacts", "kept-too")
    assert rows(engine) == ["kept", "kept-too"]


def test_outer_rollback_after_a_released_savepoint_keeps_nothing(
    sessions: sessionmaker[Session], engine: Engine
) -> None:
    with sessions() as session:
        with session.begin_nested():
            OutboxRepository(session).index("contacts", "c1", {})
        session.rollback()
    assert rows(engine) == []


def test_entity_is_flushed_before_its_row_is_inserted(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        session.add(Contact(name="Ada"))
        OutboxRepository(session).delete("contacts", "other")
        assert session.scalar(text("SELECT count(*) FROM contacts")) == 1


def test_refused_document_leaves_the_session_usable_and_stores_nothing(
    sessions: sessionmaker[Session], engine: Engine
) -> None:
    with sessions.begin() as session:
        repo = OutboxRepository(session)
        with pytest.raises(InvalidDocument):
            repo.index("contacts", "bad", {"n": float("nan")})
        with pytest.raises(InvalidName):
            repo.delete("Contacts", "bad")
        with pytest.raises(InvalidDocument, match=r"contacts/'bad'.*NUL"):
            repo.index_many("contacts", [("good", {}), ("bad", {"a": "\x00"})])
        repo.index("contacts", "after", {})
    assert rows(engine) == ["after"]


def test_index_many_keeps_order_and_content(sessions: sessionmaker[Session], engine: Engine) -> None:
    with sessions.begin() as session:
        repo = OutboxRepository(session)
        first = repo.index("contacts", "before", {})
        ids = repo.index_many("contacts", [(f"c{n}", {"n": n}) for n in range(5)], tenant_id="t1")
        last = repo.delete("contacts", "after")
    assert [first, *ids, last] == list(range(1, 8))
    assert rows(engine) == ["before", "c0", "c1", "c2", "c3", "c4", "after"]
    assert rows(engine, "SELECT document FROM outbox_documents ORDER BY event_id")[1:] == [
        f'{{"n":{n}}}' for n in range(5)
    ]


def test_index_many_of_nothing_writes_nothing(sessions: sessionmaker[Session], engine: Engine) -> None:
    with sessions.begin() as session:
        assert OutboxRepository(session).index_many("contacts", []) == []
    assert rows(engine) == []


def test_disabled_write_side_is_a_no_op(sessions: sessionmaker[Session], engine: Engine) -> None:
    with sessions.begin() as session:
        repo = OutboxRepository(session, settings=WriteSettings(enabled=False))
        assert repo.index("contacts", "c1", {}) is None
        assert repo.delete("contacts", "c1") is None
        assert repo.index_many("contacts", [("c1", {})]) == []
    assert rows(engine) == []


def test_ids_are_not_reused_after_rows_are_removed(outbox: Outbox) -> None:
    outbox.index("contacts", "c1", {})
    last = outbox.index("contacts", "c2", {})
    operators.purge(outbox.store(), operators.pending(outbox.store()))
    assert outbox.index("contacts", "c3", {}) == last + 1


def test_read_then_write_beside_a_busy_relay_is_not_refused(engine: Engine, outbox: Outbox) -> None:
    Base.metadata.create_all(engine)
    outbox.index("contacts", "c1", {})
    with outbox.sessions.begin() as session:
        session.scalar(text("SELECT count(*) FROM contacts"))  # without prepare(): a snapshot that soon is stale
        busy = create_engine(engine.url, connect_args={"timeout": 0.05})
        with busy.begin() as connection:
            connection.exec_driver_sql("UPDATE outbox_events SET deliveries = 1")
        busy.dispose()
        session.add(Contact(name="Ada"))
        OutboxRepository(session).index("contacts", "c2", {})
    assert rows(engine) == ["c1", "c2"]


def test_async_session_is_served(engine: Engine) -> None:
    async def write() -> None:
        async_engine = create_async_engine(f"sqlite+aiosqlite:///{engine.url.database}")
        sqlite.prepare(async_engine)
        sessions = async_sessionmaker(async_engine)
        async with sessions.begin() as session:
            with pytest.raises(InvalidInput, match="run_sync"):
                OutboxRepository(session)  # type: ignore[arg-type]
            await session.run_sync(lambda sync: OutboxRepository(sync).index("contacts", "c1", {"name": "Ada"}))
            await session.run_sync(lambda sync: OutboxRepository(sync).index_many("contacts", [("c2", {}), ("c3", {})]))
        async with sessions() as session:
            await session.run_sync(lambda sync: OutboxRepository(sync).index("contacts", "c4", {}))
            await session.rollback()
        await async_engine.dispose()

    asyncio.run(write())
    assert rows(engine) == ["c1", "c2", "c3"]


def test_write_side_loads_nothing_of_the_relay(tmp_path: Path) -> None:
    code = (
        "import sys, outbox; "
        "print([m for m in ('elasticsearch', 'apscheduler', 'click', 'alembic', 'rich') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert found.stdout.strip() == "[]"
