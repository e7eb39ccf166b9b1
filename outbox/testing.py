"""For the tests of an application: see what it put into the outbox, and deliver it without a relay process.

In `conftest.py`:

    pytest_plugins = ["outbox.testing"]

    @pytest.fixture
    def outbox_engine():
        return engine          # the application's own, on a database file or in memory

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
from typing import Any

import pytest
from sqlalchemy import Engine, inspect

from outbox.destinations.base import Hit
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.entities.registry import EntityRegistry
from outbox.entities.spelling import tenant_texts
from outbox.relay.relay import Relay
from outbox.settings import load
from outbox.store import operators
from outbox.store.models import metadata, now_ms
from outbox.store.store import Store


class OutboxTester:
    """An application's outbox with a search engine in a temporary file. Close it, or use it in a `with` block.

    Creates the outbox tables if the database has none.
    """

    def __init__(self, engine: Engine, registry: EntityRegistry | None = None) -> None:
        if not inspect(engine).has_table("outbox_events"):
            metadata.create_all(engine)
        self._directory = tempfile.TemporaryDirectory(prefix="outbox-testing-")
        self.destination = EmbeddedDestination(Path(self._directory.name) / "search.db")
        self._store, self._registry = Store(engine), registry
        self._settings = load()
        self._relay = Relay(self._store, self.destination, self._settings, registry=registry)
        self._now = now_ms()

    def rows(self, index: str | None = None, document_id: str | None = None) -> list[dict[str, Any]]:
        """The outbox rows in their order, each with its `document` (parsed), whatever became of them."""
        found = self._store.events(index=index, document_id=document_id)
        return [{**row, "document": None if row["document"] is None else json.loads(row["document"])} for row in found]

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
        dead = operators.dead(self._store)
        if dead and not allow_dead:
            raise AssertionError(f"row {_described(dead[0])}; {len(dead)} dead in all")
        if self._store.unfinished():
            waiting = next(row for row in self.rows() if row["state"] == "pending")
            raise AssertionError(f"row cannot be delivered: {_described(waiting)}")

    def document(self, index: str, document_id: str) -> dict[str, Any] | None:
        """What the index holds under an `_id`; None if nothing."""
        target = self._store.targets().get(index)
        found = self.destination.read(target, [document_id]) if target else {}
        return found[document_id].source if document_id in found else None

    def search(self, index: str, query: str, *, tenant: object = None, limit: int = 10) -> list[Hit]:
        """What a search finds, best first; of one tenant, if given."""
        entities = [] if self._registry is None else self._registry.of_index(index)
        held = next((text for each in entities if (text := each.tenant_meant(tenant)) is not None), tenant)
        return self.destination.search(index, query, tenant=held, limit=limit)

    def close(self) -> None:
        self._store.close()
        self.destination.close()
        self._directory.cleanup()

    def __enter__(self) -> OutboxTester:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _described(row: Mapping[str, Any]) -> str:
    return (
        f"{row['id']} ({row['action']} {row['index_name']}/{row['document_id']}): {row['error_type']}: {row['error']}"
    )


@pytest.fixture
def outbox_engine() -> Engine:
    """Override it: the engine of the application under test."""
    raise NotImplementedError("define a fixture 'outbox_engine' that returns the engine of the application under test")


@pytest.fixture
def outbox_registry() -> EntityRegistry | None:
    """Override it if the application has a registry of entities."""
    return None


@pytest.fixture
def outbox(outbox_engine: Engine, outbox_registry: EntityRegistry | None) -> Iterator[OutboxTester]:
    """The outbox of the application under test."""
    with OutboxTester(outbox_engine, outbox_registry) as made:
        yield made
