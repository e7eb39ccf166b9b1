"""For the tests of an application: see what it put into the outbox, and deliver it without a relay process.

In `conftest.py`:

    pytest_plugins = ["outbox.testing"]

    @pytest.fixture
    def outbox_engine():
        return engine          # the application's own, or the connection whose transaction the test rolls back

    @pytest.fixture
    def outbox_registry():
        return registry        # only where there is one

In a test:

    def test_new_contact_is_found(outbox):
        create_contact(name="Ada")                       # code of the application, with its own session
        outbox.assert_enqueued("contacts", action="index")
        outbox.drain()
        assert outbox.document("contacts", "1") == {"name": "Ada"}
        assert [hit.document_id for hit in outbox.search("contacts", "ada")] == ["1"]
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

import pytest
from sqlalchemy import Connection, Engine, inspect
from sqlalchemy.pool import SingletonThreadPool, StaticPool

from outbox.destinations.base import Found
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.destinations.query import Options
from outbox.entities.registry import EntityRegistry
from outbox.entities.spelling import tenant_texts
from outbox.errors import InvalidInput
from outbox.relay.relay import Relay
from outbox.settings import load
from outbox.store import operators
from outbox.store.models import metadata, now_ms
from outbox.store.store import Store, dialect_of


class OutboxTester:
    """An application's outbox with a search engine in a temporary file. Close it, or use it in a `with` block.

    `engine`: the application's; or a connection, for tests that roll its transaction back at their end: all that is
    delivered is undone with it. Creates the outbox tables if the database has none.

    Speaks of the rows that were written since it was made. Earlier ones, of other tests, are delivered before them and
    fail nothing.
    """

    def __init__(self, engine: Engine | Connection, registry: EntityRegistry | None = None) -> None:
        self._shared, engine = _of_its_own(engine)
        if not inspect(engine).has_table("outbox_events"):
            metadata.create_all(engine)
        self._directory = tempfile.TemporaryDirectory(prefix="outbox-testing-")
        self.destination = EmbeddedDestination(Path(self._directory.name) / "search.db")
        self._store, self._registry = Store(engine), registry
        self._settings = load()
        self._relay = Relay(self._store, self.destination, self._settings, registry=registry)
        self._now = now_ms()
        self._before = self._store.highest_id()
        self._make_indexes()

    def rows(self, index: str | None = None, document_id: str | None = None) -> list[dict[str, Any]]:
        """The outbox rows in their order, each with its `document` (parsed), whatever became of them."""
        found = [row for row in self._store.events(index=index, document_id=document_id) if self._is_ours(row)]
        return [{**row, "document": None if row["document"] is None else json.loads(row["document"])} for row in found]

    def _is_ours(self, row: Mapping[str, Any]) -> bool:
        return bool(row["id"] > self._before)

    def _make_indexes(self) -> None:
        """Where the rows go, by what another test has left: this destination is a new one."""
        for name, target in self._store.targets().items():
            options = (self._registry and self._registry.index_options(name)) or ({}, {})
            if target != name and (made := self.destination.ensure_index(name, *options)) == target:
                continue
            self.destination.create_index(target, *options)
            if target != name:
                self.destination.swap(name, made, target)

    def assert_enqueued(
        self,
        index: str,
        document_id: str | None = None,
        *,
        action: str | None = None,
        tenant_id: object = None,
        document: Mapping[str, Any] | None = None,
        times: int | None = None,
    ) -> None:
        """Fail unless such a row was written; what is None may be anything. `times`: exactly so many of them."""
        wanted = {"document_id": document_id, "action": action, "document": document, "tenant_id": tenant_id}
        given = {name: value for name, value in wanted.items() if value is not None}
        exact = {name: value for name, value in given.items() if name != "tenant_id"}
        tenants = None if tenant_id is None else tenant_texts(tenant_id, self._registry or ())
        rows = self.rows(index)
        matching = [
            row
            for row in rows
            if all(row[name] == value for name, value in exact.items())
            and (tenants is None or row["tenant_id"] in tenants)
        ]
        if len(matching) == times or (times is None and matching):
            return
        what = " ".join(f"{name}={value!r}" for name, value in given.items())
        there = (
            "".join(f"\n  {row['action']} {row['document_id']} {row['document']}" for row in rows[:20]) or " nothing"
        )
        expected = "no row" if not matching else f"{len(matching)} rows instead of {times}"
        raise AssertionError(f"{expected} for index {index} {what}; of this index there is:{there}")

    def assert_nothing_enqueued(self, index: str | None = None) -> None:
        """Fail if a row was written (for that index)."""
        rows = self.rows(index)
        assert not rows, f"{len(rows)} rows were written, the first: {rows[0]}"

    def drain(self, *, allow_dead: bool = False) -> None:
        """Deliver everything that waits, retries included, without waiting for them.

        Raises `AssertionError` if a row died, or cannot be delivered, and says why; dead rows pass with `allow_dead`.
        """
        for _ in range(self._settings.max_retries + 2):
            while self._relay.run_once(self._now):
                pass
            if not self._store.unfinished():
                break
            self._now += 3_600_000  # as if the pause of each retry were over
        dead = list(filter(self._is_ours, operators.dead(self._store)))
        if dead and not allow_dead:
            raise AssertionError(f"row {_described(dead[0])}; {len(dead)} dead in all")
        if waiting := next((row for row in self.rows() if row["state"] in ("pending", "claimed")), None):
            raise AssertionError(f"row cannot be delivered: {_described(waiting)}")

    def document(self, index: str, document_id: str) -> dict[str, Any] | None:
        """What the index holds under an `_id`; None if nothing."""
        target = self._store.targets().get(index)
        found = self.destination.read(target, [document_id]) if target else {}
        return found[document_id].source if document_id in found else None

    def search(self, index: str, query: str | None, **options: Unpack[Options]) -> Found:
        """What a search finds, best first; the options are those of `outbox.Search`."""
        tenant = options.get("tenant")
        entities = [] if self._registry is None else self._registry.of_index(index)
        held = next((text for each in entities if (text := each.tenant_meant(tenant)) is not None), tenant)
        options["tenant"] = held
        return self.destination.search(index, query, **options)

    def close(self) -> None:
        self._store.close()
        self.destination.close()
        self._directory.cleanup()
        if self._shared is not None:
            self._shared.close()

    def __enter__(self) -> OutboxTester:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _of_its_own(bind: object) -> tuple[Connection | None, Engine]:
    """The engine to work with, and a connection to close in the end. Raises `InvalidInput` for what is neither."""
    if isinstance(bind, Connection):
        if not bind.in_transaction():
            raise InvalidInput(
                "the connection has no transaction that could be rolled back: begin it (connection.begin()) before "
                "OutboxTester, or pass the engine"
            )
        return None, dialect_of(bind).engine_within(bind)
    if not isinstance(bind, Engine):
        raise InvalidInput(
            f"OutboxTester needs an Engine or a Connection, not {type(bind).__name__}: of a session "
            "session.get_bind(), of Flask-SQLAlchemy db.engine, of an AsyncEngine another one on the same file, "
            "create_engine('sqlite:///…')"
        )
    if not isinstance(bind.pool, (StaticPool, SingletonThreadPool)):
        return None, bind
    connection = bind.connect()  # a database in memory: the application's own connection
    return connection, dialect_of(connection).engine_within(connection)


def _described(row: Mapping[str, Any]) -> str:
    return (
        f"{row['id']} ({row['action']} {row['index_name']}/{row['document_id']}): {row['error_type']}: {row['error']}"
    )


@pytest.fixture
def outbox_engine() -> Engine | Connection:
    """Override it: the engine of the application under test, or the connection whose transaction is rolled back."""
    raise NotImplementedError("define a fixture 'outbox_engine' that returns the engine of the application under test")


@pytest.fixture
def outbox_registry() -> EntityRegistry | None:
    """Override it if the application has a registry of entities."""
    return None


@pytest.fixture
def outbox(outbox_engine: Engine | Connection, outbox_registry: EntityRegistry | None) -> Iterator[OutboxTester]:
    """The outbox of the application under test."""
    with OutboxTester(outbox_engine, outbox_registry) as made:
        yield made
