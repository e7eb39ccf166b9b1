"""The sessions that people have, with the real libraries: each is taken, or refused with what to write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlmodel
import transaction
import zope.sqlalchemy
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from outbox import ConfigurationError, EntityRegistry, InvalidInput, OutboxRepository, schema, sqlite
from outbox.store.store import Store
from outbox.testing import OutboxTester
from tests.write.models import Base, Contact


class OwnMaker(sessionmaker[Session]):
    pass


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    sqlite.prepare(made)
    schema.upgrade(made)
    Base.metadata.create_all(made)
    yield made
    made.dispose()


@pytest.fixture
def db(engine: Engine) -> Iterator[SQLAlchemy]:
    """In the context of a request."""
    app = Flask("app")
    app.config["SQLALCHEMY_DATABASE_URI"] = str(engine.url)
    extension = SQLAlchemy(app)
    with app.app_context():
        sqlite.prepare(extension.engine)
        yield extension
        extension.session.remove()
        extension.engine.dispose()


KINDS: dict[str, Callable[[Engine, Any], Any]] = {
    "session": lambda engine, _: Session(engine),
    "sqlmodel": lambda engine, _: sqlmodel.Session(engine),
    "made by a subclass of sessionmaker": lambda engine, _: OwnMaker(engine)(),
    "scoped": lambda engine, _: scoped_session(OwnMaker(engine)),
    "scoped sqlmodel": lambda engine, _: scoped_session(sessionmaker(engine, class_=sqlmodel.Session)),
    "flask": lambda _, db: db.session,
}


@pytest.mark.parametrize("kind", KINDS)
def test_session_is_taken_everywhere(engine: Engine, db: SQLAlchemy, kind: str) -> None:
    session, registry = KINDS[kind](engine, db), EntityRegistry()
    registry.add(Contact, index="contacts", fields=["name"])
    assert registry.capture(session) is session
    sqlite.lock(session)
    session.add(Contact(id=1, name="Ada"))
    repo = OutboxRepository(session)
    repo.index("notes", "1", {"text": "zebra"})
    session.commit()
    with OutboxTester(engine, registry) as tester:
        tester.drain()
        assert set(repo.wait_until_synced(5.0).values()) == {"applied"}
        assert tester.document("contacts", "1") == {"name": "Ada"}
    session.close()


WRITES: dict[str, Callable[[OutboxRepository], Any]] = {
    "index": lambda repo: repo.index("notes", "1", {"text": "zebra"}),
    "update": lambda repo: repo.update("notes", "1", {"text": "zebra"}),
    "delete": lambda repo: repo.delete("notes", "1"),
    "index_many": lambda repo: repo.index_many("notes", [("1", {"text": "zebra"})]),
    "refresh": lambda repo: repo.refresh("contacts", 1),
}


@pytest.mark.parametrize("write", WRITES)
def test_rows_that_are_all_a_transaction_of_zope_writes_are_committed(engine: Engine, write: str) -> None:
    """Its manager commits what it has seen a session write, and rolls back what else there is."""
    registry, manager = EntityRegistry(), transaction.TransactionManager(explicit=True)
    registry.add(Contact, index="contacts", fields=["name"])
    sessions = sessionmaker(engine)
    zope.sqlalchemy.register(sessions, transaction_manager=manager)
    registry.capture(sessions)
    with manager:
        WRITES[write](OutboxRepository(sessions(), registry))
    manager.begin()
    WRITES[write](OutboxRepository(sessions(), registry))
    manager.abort()
    with Session(engine) as beside:  # of no manager
        WRITES[write](OutboxRepository(beside, registry))
    with closing(Store(engine)) as store:
        assert store.run("SELECT count(*) FROM outbox_events").scalar_one() == 1


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        (lambda engine, _: sessionmaker(engine), "not sessionmaker; make one, and pass that: with Session"),
        (lambda engine, _: OwnMaker(engine), "not OwnMaker; make one"),
        (lambda *_: Session, "not Session; make one"),
        (lambda *_: sqlmodel.Session, "not Session; make one"),
        (
            lambda *_: AsyncSession(),
            r"not AsyncSession; for an AsyncSession: await session\.run_sync\(lambda session: ",
        ),
        (lambda *_: async_scoped_session(async_sessionmaker(), scopefunc=int), r"await scoped\(\)\.run_sync\(lambda"),
        (lambda _, db: db, r"not SQLAlchemy; pass its session: db\.session"),
        (lambda engine, _: engine, "needs a SQLAlchemy Session, not Engine"),
        (lambda *_: None, "needs a SQLAlchemy Session, not NoneType"),
    ],
)
@pytest.mark.parametrize("taker", [OutboxRepository, sqlite.lock])
def test_what_is_no_session_is_refused_with_what_to_write(
    engine: Engine, db: SQLAlchemy, taker: Any, given: Any, instead: str
) -> None:
    with pytest.raises(InvalidInput, match=instead):
        taker(given(engine, db))


@pytest.mark.parametrize(
    "given", [lambda engine, _: engine, lambda _, db: db, lambda *_: create_async_engine("sqlite+aiosqlite://")]
)
def test_what_makes_no_sessions_cannot_be_captured(engine: Engine, db: SQLAlchemy, given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"makes no sessions; capture a .* db\.session"):
        EntityRegistry().capture(given(engine, db))


def test_async_scoped_session_is_captured_and_served(engine: Engine) -> None:
    registry = EntityRegistry()
    registry.add(Contact, index="contacts", fields=["name"])

    async def write() -> None:
        asynchronous = create_async_engine(f"sqlite+aiosqlite:///{engine.url.database}")
        sqlite.prepare(asynchronous)
        scoped = async_scoped_session(async_sessionmaker(asynchronous), scopefunc=asyncio.current_task)
        assert registry.capture(scoped) is scoped
        scoped.add(Contact(id=1, name="Ada"))
        await scoped().run_sync(lambda session: OutboxRepository(session).index("notes", "1", {}))
        await scoped.commit()
        await scoped.remove()
        await asynchronous.dispose()

    asyncio.run(write())
    store = Store(engine)
    assert {row["index_name"] for row in store.events()} == {"contacts", "notes"}
    store.close()


def test_async_sessions_that_are_captured_again_are_captured_once(engine: Engine) -> None:
    registry = EntityRegistry()
    registry.add(Contact, index="contacts", fields=["name"])
    sessions = async_sessionmaker(create_async_engine(f"sqlite+aiosqlite:///{engine.url.database}"))
    registry.capture(sessions)
    inside = sessions.kw["sync_session_class"]
    assert registry.capture(sessions) is sessions
    assert sessions.kw["sync_session_class"] is inside
