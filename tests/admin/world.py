"""An application, its admin server, and a client of its API."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from loguru import logger
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from outbox import EntityRegistry, schema, sqlite
from outbox.destinations.base import Destination
from tests.support import LIMIT_S
from tests.support.outbox import Outbox
from tests.support.relays import until
from tests.support.serving import TOKEN, Process, TestClient

API = "/api/v1/admin"
PAUSE = f"{API}/pause"


class Base(DeclarativeBase):
    pass


class Contact(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    tenant: Mapped[str] = mapped_column(default="t1")
    changed: Mapped[datetime] = mapped_column(default=datetime(2026, 1, 1))


class Company(Base):
    """Each tenant has an index of its own."""

    __tablename__ = "companies"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    tenant: Mapped[str] = mapped_column(default="t1")


def registered() -> EntityRegistry:
    registry = EntityRegistry()
    registry.add(Contact, name="Contact", index="contacts", fields=["name"], tenant="tenant", changed_at="changed")
    registry.add(Company, name="Company", index="companies", fields=["name"], tenant="tenant", tenancy="index")
    return registry


class World:
    """An application, a relay that the test drives, and a client of the admin server."""

    def __init__(self, outbox: Outbox, destination: Destination, client: TestClient, registry: EntityRegistry) -> None:
        self.outbox, self.destination, self.client, self.registry = outbox, destination, client, registry
        self.sessions: sessionmaker[Session] = registry.capture(sessionmaker(outbox.engine))
        self.relay = outbox.relay(destination, 2, registry)
        self.lines: list[str] = []
        logger.add(self.lines.append, format="{level} {message}", level="INFO")

    def save(self, *contacts: Base) -> None:
        with self.sessions.begin() as session:
            session.add_all(contacts)

    def drain(self) -> None:
        while self.relay.run_once():
            pass

    def delivered(self) -> None:
        """All of it, however long a busy Elasticsearch lets the first answers wait."""

        def done() -> bool:
            self.drain()
            counts = self.outbox.counts()
            return not counts["pending"] + counts["claimed"]

        until(done, "all rows are delivered")

    def get(self, path: str, expected: int = 200, **parameters: Any) -> Any:
        answer = self.client.get(f"{API}{path}", params=parameters)
        return checked(answer, expected)

    def post(self, path: str, body: Any = None, expected: int = 200) -> Any:
        return checked(self.client.post(f"{API}{path}", json=body), expected)

    def job(self, number: int, state: str = "done") -> Any:
        """Drive the relay until the job has come to that state."""

        def ended() -> Any:
            self.drain()
            found = self.get(f"/reindex/{number}")
            return found if found["status"] == state else None

        return until(ended, f"reindex {number} is {state}: {self.get(f'/reindex/{number}')}")

    @contextmanager
    def reindex_held(self) -> Iterator[None]:
        """A reindex that begins goes no further than to where it makes its new index."""
        destination: Any = self.destination
        create, may_go_on = destination.create_index, threading.Event()

        def waiting(*given: Any) -> None:
            assert may_go_on.wait(LIMIT_S)
            create(*given)

        destination.create_index = waiting
        try:
            yield
        finally:
            may_go_on.set()
            del destination.create_index

    def logged(self, text: str) -> bool:
        return any(text in line for line in self.lines)


def checked(answer: Any, expected: int) -> Any:
    assert answer.status_code == expected, answer.text
    body = answer.json()
    if expected >= 400:
        is_problem(answer, expected)
    return body


def is_problem(answer: Any, status: int) -> None:
    """RFC 9457, and something that a person can do something with."""
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["type"] == "about:blank" and body["title"] and body["detail"]


def kill(outbox: Outbox, row: int, error_type: str = "mapper_parsing_exception") -> None:
    outbox.raw(
        "UPDATE outbox_events SET state = 'dead', attempts = 4, deliveries = 4, error_type = :type,"
        " error = 'failed to parse', available_at = NULL, finished_at = created_at WHERE id = :row",
        type=error_type,
        row=row,
    )


def serving(directory: Path, before: str = "") -> Process:
    """`outbox-relay serve` with a token; `before`: what is done to it first."""
    engine = create_engine(f"sqlite:///{directory / 'app.db'}")
    sqlite.prepare(engine)
    schema.upgrade(engine)
    engine.dispose()
    return Process(
        directory,
        "serve",
        command=[sys.executable, "-c", f"{before}from outbox.cli import main; main()"],
        OUTBOX_DATABASE_URL=f"sqlite:///{directory / 'app.db'}",
        OUTBOX_DESTINATION="embedded",
        OUTBOX_EMBEDDED_PATH=str(directory / "search.db"),
        OUTBOX_ADMIN_TOKEN=TOKEN,
    )
