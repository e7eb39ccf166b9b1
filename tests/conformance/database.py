"""A database under test, and short words for what a relay does with it. Another one joins by a line in `DATABASES`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text

from outbox.store import claims
from outbox.store.claims import Claim, ClaimRequest
from outbox.store.models import (
    Result,
    State,
    Transition,
    unfinished,
)
from outbox.store.store import Store, dialect_of
from tests.support import LIMIT_S
from tests.support.postgres import Postgres

NOW = 1_700_000_000_000
LEASE_MS = 60_000
MINUTE = NOW - NOW % 60_000

Making = Callable[[pytest.FixtureRequest], Engine]


def sqlite_file(request: pytest.FixtureRequest) -> Engine:
    directory: Path = request.getfixturevalue("tmp_path")
    return create_engine(f"sqlite:///{directory / 'app.db'}")


def postgresql(request: pytest.FixtureRequest) -> Engine:
    server: Postgres = request.getfixturevalue("postgres")
    made = server.database()
    request.addfinalizer(lambda: made.__exit__(None, None, None))
    return create_engine(made.__enter__())


DATABASES: dict[str, Making] = {"sqlite": sqlite_file, "postgresql": postgresql}


@dataclass
class Database:
    """One database with empty outbox tables."""

    engine: Engine
    opened: ExitStack = field(default_factory=ExitStack)

    def store(self) -> Store:
        """One more connection, as another process has it."""
        made = Store(self.engine)
        self.opened.callback(made.close)
        return made

    def insert(self, *rows: tuple[str, str], action: str = "refresh", tenant: str | None = None) -> list[int]:
        """Rows of (index, document id), in a transaction of an application."""
        with self.engine.begin() as connection:
            given = [(action, index, document, tenant, None, 0, NOW) for index, document in rows]
            return list(dialect_of(connection).insert(connection, given))

    def row(self, event_id: int) -> dict[str, Any]:
        with self.engine.connect() as connection:
            found = connection.execute(text("SELECT * FROM outbox_events WHERE id = :id"), {"id": event_id})
            return dict(found.mappings().one())

    def out_of_order(self) -> list[Any]:
        """Claimed rows with an earlier row of their document that waits, or that another claim holds. One statement."""
        with self.engine.connect() as connection:
            found = connection.execute(
                text(
                    "SELECT c.index_name, c.document_id, c.id, e.id, e.state FROM outbox_events AS c"
                    f" JOIN outbox_events AS e {dialect_of(connection).indexed('held')}"
                    " ON e.index_name = c.index_name AND e.document_id = c.document_id"
                    f" WHERE c.state = 'claimed' AND e.id < c.id AND ({unfinished('e')})"
                    " AND (e.state = 'pending' OR e.state = 'claimed' AND e.claim_token <> c.claim_token)"
                )
            )
            return list(found)

    def scalars(self, sql: str) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(text(sql)).scalars())


def claim(store: Store, relay: int = 1, now: int = NOW, rows: int = 1_000, **given: Any) -> Claim | None:
    request = {"lease_ms": LEASE_MS, "longest_wait": LEASE_MS, "bytes_": 10**9, **given}
    return claims.claim(store, ClaimRequest(relay=relay, now=now, rows=rows, **request))


def claimed(store: Store, **given: Any) -> Claim:
    found = claim(store, **given)
    assert found is not None
    return found


def ids_of(claim: Claim | None) -> list[int]:
    return [event.id for event in claim.events] if claim else []


def applied(claim: Claim) -> list[Transition]:
    return [Transition(event, State.DONE, Result.APPLIED) for event in claim.events]


def in_threads(*calls: tuple[Callable[..., None], Any], limit_s: float = LIMIT_S) -> None:
    """Run them side by side, and raise what one of them raised."""
    raised: list[BaseException] = []

    def guarded(call: Callable[..., None], argument: Any) -> None:
        try:
            call(argument)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=each) for each in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(limit_s)
    assert raised == []
    assert not any(thread.is_alive() for thread in threads), "some do not end"
