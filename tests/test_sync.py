"""Rows of registered entities, and waiting until what was committed can be found."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from outbox import (
    ConfigurationError,
    EntityRegistry,
    InvalidName,
    OutboxRepository,
    SyncFailed,
    SyncTimeout,
    sqlite,
)
from outbox.destinations.elasticsearch.destination import ElasticsearchDestination
from tests.support.node import Node
from tests.support.outbox import Outbox


class Base(DeclarativeBase):
    pass


class Contact(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    tenant_id: Mapped[str | None]


class Part(Base):
    __tablename__ = "parts"
    maker: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def sessions(engine: Engine) -> sessionmaker[Session]:
    Base.metadata.create_all(engine)
    return sessionmaker(engine)


@pytest.fixture
def registry() -> EntityRegistry:
    made = EntityRegistry()
    made.add(Contact, index="contacts", fields=["name"], tenant="tenant_id", tenancy="prefixed")
    made.add(Part, index="parts", fields=["maker"])
    return made


def rows(engine: Engine) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        sql = "SELECT action, index_name, document_id, tenant_id, entity FROM outbox_events ORDER BY id"
        return [tuple(row) for row in connection.execute(text(sql))]


# -- rows of registered entities --------------------------------------------------------------------------------


def test_what_is_said_of_a_registered_document_becomes_a_refresh_row(
    sessions: sessionmaker[Session], registry: EntityRegistry, engine: Engine
) -> None:
    with sessions.begin() as session:
        repo = OutboxRepository(session, registry)
        repo.index("contacts", "2:t1:7", {"name": float("nan")}, tenant_id="t1")  # the document is not looked at
        repo.update("parts", "acme|1", {"maker": "acme"})
        assert repo.index_many("parts", [("acme|1", {}), ("acme|2", {})]) == [3, 4]
        repo.index("other", "7", {"name": "Ada"})
        repo.delete("parts", "acme|1")
    assert rows(engine) == [
        ("refresh", "contacts", "2:t1:7", "t1", "contacts"),
        ("refresh", "parts", "acme|1", None, "parts"),
        ("refresh", "parts", "acme|1", None, "parts"),
        ("refresh", "parts", "acme|2", None, "parts"),
        ("index", "other", "7", None, None),
        ("delete", "parts", "acme|1", None, None),
    ]
    with engine.connect() as connection:
        assert connection.execute(text("SELECT event_id FROM outbox_documents")).scalars().all() == [5]


def test_id_that_the_entity_does_not_make_is_refused(
    sessions: sessionmaker[Session], registry: EntityRegistry, engine: Engine
) -> None:
    with sessions.begin() as session:
        repo = OutboxRepository(session, registry)
        for write in (repo.index, repo.update):
            with pytest.raises(InvalidName, match=r"none of entity 'contacts' .*'prefixed'.*use refresh\(\)"):
                write("contacts", "contact-7", {"name": "Ada"})
        with pytest.raises(InvalidName, match="none of entity 'parts'"):
            repo.index_many("parts", [("acme|1", {}), ("acme", {})])
    assert rows(engine) == []


def test_object_or_name_and_key_are_refreshed(
    sessions: sessionmaker[Session], registry: EntityRegistry, engine: Engine
) -> None:
    registry.add(Part, index="catalogue", fields=["number"], name="catalogue")
    with sessions.begin() as session:
        repo = OutboxRepository(session, registry)
        contact = Contact(name="Ada", tenant_id="t1")
        session.add(contact)
        assert repo.refresh(contact) == [1]
        assert repo.refresh(Part(maker="a|b", number=1)) == [2, 3]
        assert repo.refresh("contacts", 8, tenant_id="t2") == [4]
        assert repo.refresh("parts", ("a", 2)) == [5]
    assert rows(engine) == [
        ("refresh", "contacts", "2:t1:1", "t1", "contacts"),
        ("refresh", "parts", "a\\|b|1", None, "parts"),
        ("refresh", "catalogue", "a\\|b|1", None, "catalogue"),
        ("refresh", "contacts", "2:t2:8", "t2", "contacts"),
        ("refresh", "parts", "a|2", None, "parts"),
    ]


@pytest.mark.parametrize(
    ("call", "error", "reason"),
    [
        (lambda repo: repo.refresh("parts", 1), InvalidName, "primary key maker, number; pass all of it"),
        (lambda repo: repo.refresh("parts"), InvalidName, "pass all of it"),
        (lambda repo: repo.refresh("contacts", 1), InvalidName, "^a document of contacts has no tenant"),
        (
            lambda repo: repo.refresh("contacts", "ada"),
            InvalidName,
            "'ada' is no primary key of entity 'contacts' \\(id\\)",
        ),
        (lambda repo: repo.refresh(Contact(name="x", tenant_id="t")), InvalidName, "no primary key yet; add it"),
        (lambda repo: repo.refresh("contact", 1), ConfigurationError, "did you mean 'contacts'"),
        (lambda repo: repo.refresh(object()), ConfigurationError, "of no registered entity"),
        (lambda repo: OutboxRepository(repo._session).refresh("parts", 1), ConfigurationError, "registry"),
    ],
)
def test_what_cannot_be_refreshed_is_named(
    sessions: sessionmaker[Session],
    registry: EntityRegistry,
    call: Callable[[OutboxRepository], Any],
    error: type[Exception],
    reason: str,
) -> None:
    with sessions() as session, pytest.raises(error, match=reason):
        call(OutboxRepository(session, registry))


def test_id_says_which_of_two_entities_of_an_index_is_meant(
    sessions: sessionmaker[Session], registry: EntityRegistry, engine: Engine
) -> None:
    registry.add(Contact, index="parts", fields=["name"], name="people")
    with sessions.begin() as session:
        repo = OutboxRepository(session, registry)
        repo.index("parts", "a|1", {})
        repo.index_many("parts", [("7", {}), ("b|2", {})])
        with pytest.raises(InvalidName, match=r"'x' is none of entity 'parts' .* or entity 'people' \(primary key id"):
            repo.update("parts", "x", {"name": "Ada"})
    assert [row[2:] for row in rows(engine)] == [
        ("a|1", None, "parts"),
        ("7", None, "people"),
        ("b|2", None, "parts"),
    ]


# -- waiting ----------------------------------------------------------------------------------------------------


@pytest.fixture
def settle(engine: Engine) -> Callable[..., None]:
    """What a relay writes when it is done with rows."""

    def write(*ids: int, state: str = "done", outcome: str | None = "applied", error: str | None = None) -> None:
        sql = "UPDATE outbox_events SET state = :s, outcome = :o, error_type = 'bad', error = :e WHERE id = :i"
        with engine.begin() as connection:
            for event_id in ids:
                connection.execute(
                    text(sql),
                    {"s": state, "o": outcome, "e": error, "i": event_id},
                )

    return write


def test_waits_for_the_rows_of_the_last_transaction_and_no_others(
    sessions: sessionmaker[Session], settle: Callable[..., None], outbox: Outbox
) -> None:
    with sessions() as session:
        repo = OutboxRepository(session)
        repo.index("contacts", "earlier", {})
        session.commit()
        repo.index("contacts", "a", {})
        repo.index_many("contacts", [("b", {}), ("c", {})])
        session.commit()
        outbox.index("contacts", "someone else's", {})
        later = threading.Timer(0.1, settle, (2, 3, 4))
        later.start()
        assert repo.wait_until_synced(timeout=60) == {2: "applied", 3: "applied", 4: "applied"}
        later.join()
        assert repo.wait_until_synced(timeout=0) == {2: "applied", 3: "applied", 4: "applied"}


def test_wait_that_takes_too_long_says_how_many_rows_are_left(
    sessions: sessionmaker[Session], settle: Callable[..., None]
) -> None:
    with sessions() as session:
        repo = OutboxRepository(session)
        repo.index_many("contacts", [("a", {}), ("b", {})])
        session.commit()
        settle(1)
        with pytest.raises(SyncTimeout, match=r"1 of 2 rows are not delivered after 0.05 s; is a relay running\?"):
            repo.wait_until_synced(timeout=0.05)


def test_dead_row_ends_the_wait_at_once(sessions: sessionmaker[Session], settle: Callable[..., None]) -> None:
    with sessions() as session:
        repo = OutboxRepository(session)
        repo.index_many("contacts", [("a", {}), ("b", {})])
        session.commit()
        settle(2, state="dead", outcome=None, error="no number")
        with pytest.raises(
            SyncFailed, match=r"1 of 2 rows are dead, the first is 2 of contacts/'b' \(bad: no number\)"
        ):
            repo.wait_until_synced()


@pytest.mark.sqlite
def test_wait_before_the_commit_is_refused(sessions: sessionmaker[Session], engine: Engine) -> None:
    with sessions() as session:
        repo = OutboxRepository(session)
        repo.index("contacts", "a", {})
        with pytest.raises(SyncFailed, match="not committed"):
            repo.wait_until_synced()
        session.commit()
        session.execute(text("DELETE FROM outbox_relays"))
        with pytest.raises(SyncFailed, match="begun another one"):
            repo.wait_until_synced()
    with engine.connect() as connection, connection.begin(), Session(connection) as session:
        repo = OutboxRepository(session)
        repo.index("contacts", "b", {})
        session.commit()  # joined into a transaction of the caller's, which is still open
        with pytest.raises(SyncFailed, match="not committed"):
            repo.wait_until_synced()


def test_nothing_written_is_nothing_to_wait_for(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        repo = OutboxRepository(session)
        assert repo.wait_until_synced() == {}
        repo.index("contacts", "a", {})
        session.rollback()
        assert repo.wait_until_synced() == {}


@pytest.mark.sqlite
def test_row_of_a_savepoint_that_was_rolled_back_is_not_waited_for(
    sessions: sessionmaker[Session], settle: Callable[..., None], outbox: Outbox
) -> None:
    with sessions() as session:
        repo = OutboxRepository(session)
        repo.index("contacts", "kept", {})
        savepoint = session.begin_nested()
        repo.index("contacts", "dropped", {})
        savepoint.rollback()
        session.commit()
        time.sleep(0.002)
        assert outbox.index("contacts", "takes the id of the dropped one", {}) == 2
        settle(1)
        assert repo.wait_until_synced(timeout=0.5) == {1: "applied"}


def test_waiting_takes_no_write_lock(sessions: sessionmaker[Session], engine: Engine) -> None:
    with sessions() as session:
        repo = OutboxRepository(session)
        repo.index("contacts", "a", {})
        session.commit()
        with engine.connect() as writer:
            writer.execute(text("UPDATE outbox_events SET deliveries = 1"))  # holds the lock
            start = time.monotonic()
            with pytest.raises(SyncTimeout):
                repo.wait_until_synced(timeout=0.05)
            assert time.monotonic() - start < 25  # the lock is waited for 30 s
            writer.execute(text("UPDATE outbox_events SET state = 'done', outcome = 'applied'"))
            writer.commit()
        assert repo.wait_until_synced() == {1: "applied"}


@pytest.mark.sqlite
def test_waiting_in_an_async_session_lets_others_run(
    engine: Engine, settle: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def block(_seconds: float) -> None:
        raise AssertionError("the event loop stands still")

    monkeypatch.setattr("outbox.write.sync.time.sleep", block)

    async def write() -> Any:
        async_engine = create_async_engine(f"sqlite+aiosqlite:///{engine.url.database}")
        sqlite.prepare(async_engine)
        async with async_sessionmaker(async_engine)() as session:
            await session.run_sync(lambda sync: OutboxRepository(sync).index("contacts", "c1", {}))
            await session.commit()

            async def deliver() -> None:
                await asyncio.sleep(0.05)
                settle(1)

            waiting = session.run_sync(lambda sync: OutboxRepository(sync).wait_until_synced())
            outcomes, _ = await asyncio.gather(waiting, deliver())
        await async_engine.dispose()
        return outcomes

    assert asyncio.run(write()) == {1: "applied"}


@pytest.mark.elasticsearch
def test_searchable_means_that_a_search_finds_it(
    sessions: sessionmaker[Session],
    outbox: Outbox,
    destination: ElasticsearchDestination,
    clean_node: Node,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hits() -> Any:
        return clean_node.request("GET", "/contacts/_search?q=name:ada")[1]["hits"]["total"]["value"]

    monkeypatch.setenv("OUTBOX_ELASTICSEARCH_URL", clean_node.url)
    clean_node.request("PUT", "/contacts", {"settings": {"index.refresh_interval": "-1"}})
    with sessions() as session:
        repo = OutboxRepository(session)
        repo.index("contacts", "c1", {"name": "Ada"})
        session.commit()
        outbox.drain(destination)
        assert repo.wait_until_synced() == {1: "applied"}
        assert hits() == 0
        repo.wait_until_synced(searchable=True)
        assert hits() == 1


def test_searchable_without_a_destination_says_what_to_set(
    sessions: sessionmaker[Session], settle: Callable[..., None]
) -> None:
    with sessions() as session:
        repo = OutboxRepository(session)
        repo.index("contacts", "c1", {"name": "Ada"})
        session.commit()
        settle(1)
        with pytest.raises(ConfigurationError, match="set OUTBOX_ELASTICSEARCH_URL"):
            repo.wait_until_synced(searchable=True)
