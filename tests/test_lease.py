"""Nothing is sent for rows that may be another relay's by now, however long what came before it took."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from outbox import EntityRegistry
from outbox.destinations.base import Operation, Outcome, OutcomeKind
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.store import operators, upkeep
from outbox.store.models import now_ms
from tests.support.outbox import Outbox

LEASE_MS = 60_000
TYPED = {"properties": {"n": {"type": "long"}}}


class Base(DeclarativeBase):
    pass


class Slow(EmbeddedDestination):
    """Some calls take longer than a lease; then another relay gives back what has expired."""

    def __init__(self, path: Path, outbox: Outbox) -> None:
        super().__init__(path)
        self._other, self._one_at_a_time = outbox.store(), threading.Lock()  # the relay's workers come here
        self.now = now_ms()
        self.slow_lookups = 0
        self.slow_requests: set[int] = set()  # by their number
        self.requests: list[list[str]] = []  # the rows of each
        self.unclaimed: list[str] = []  # rows that were sent without a claim

    def ensure_index(
        self, name: str, mappings: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> str:
        target = super().ensure_index(name, mappings, settings)
        if self.slow_lookups:
            self.slow_lookups -= 1
            self._take_long()
        return target

    def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        documents = [operation.document_id for operation in operations]
        with self._one_at_a_time:
            for each in documents:
                states = {row["state"] for row in self._other.events(document_id=each)}
                self.unclaimed += [] if "claimed" in states else [each]
        self.requests.append(documents)
        if len(self.requests) in self.slow_requests:
            self._take_long()
        return super().apply(operations)

    def _take_long(self) -> None:
        with self._one_at_a_time:
            self.now += LEASE_MS + 1
            upkeep.reap(self._other, self.now, 10 * LEASE_MS)


@pytest.fixture
def slow(outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    made = Slow(tmp_path / "search.db", outbox)
    monkeypatch.setattr("outbox.relay.relay.now_ms", lambda: made.now)
    yield made
    made.close()


def test_rows_whose_lease_ended_while_their_index_was_looked_up_are_not_sent(outbox: Outbox, slow: Slow) -> None:
    rows = outbox.index_many("contacts", [("c1", {}), ("c2", {})])
    slow.slow_lookups = 1
    outbox.relay(slow).run(drain=True)
    assert {outbox.state(row) for row in rows} == {"done"}
    assert slow.unclaimed == []


def test_rows_that_follow_a_slow_request_are_sent_only_under_a_lease_that_outlasts_it(
    outbox: Outbox, slow: Slow
) -> None:
    """Five documents, each with a bad row: five folds are refused together, and then go one by one."""
    slow.ensure_index("contacts", TYPED)
    outbox.index_many("contacts", [(f"c{n}", {"n": text}) for n in range(5) for text in ("bad", "worse")])
    slow.slow_requests = {4}
    relay = outbox.relay(slow, concurrency=1)
    relay.run(drain=True)
    assert outbox.counts() == {"pending": 0, "claimed": 0, "done": 0, "dead": 10}
    assert slow.unclaimed == []


def test_rows_that_would_follow_wait_when_the_destination_is_away(
    outbox: Outbox, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow.ensure_index("contacts", TYPED)
    rows = outbox.index_many("contacts", [(f"c{n}", {"n": text}) for n in range(5) for text in ("bad", "worse")])
    apply = slow.apply

    def away(operations: Sequence[Operation]) -> list[Outcome]:
        outcomes = apply(operations)
        lost = Outcome(OutcomeKind.UNAVAILABLE, "timeout", "Connection timeout")
        return outcomes if len(slow.requests) == 1 else [lost] * len(operations)

    monkeypatch.setattr(slow, "apply", away)
    outbox.relay(slow).run_once(slow.now)
    assert len(slow.requests) == 2  # the folds, and the first row; not one timeout for each document
    assert {(outbox.state(row), outbox.row(row)["attempts"]) for row in rows} == {("pending", 0)}


class Claims(Base):
    """An entity whose documents take long to make."""

    __tablename__ = "claims"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.mark.slow
def test_rows_whose_documents_take_longer_to_make_than_a_lease_are_delivered_once(
    outbox: Outbox, embedded: EmbeddedDestination
) -> None:
    Base.metadata.create_all(outbox.engine)

    def slowly(row: Claims) -> dict[str, Any]:
        time.sleep(0.06)  # another service is asked, say
        return {"id": row.id}

    registry = EntityRegistry()
    registry.add(Claims, index="claims", to_document=slowly)
    with registry.capture(sessionmaker(outbox.engine)).begin() as session:
        session.add_all(Claims() for _ in range(120))  # seven seconds
    store = outbox.store()
    store.register_index("claims", embedded.ensure_index("claims"))

    class Reaping:
        """Another relay has given back what has expired, before a request arrives."""

        def __getattr__(self, name: str) -> Any:
            return getattr(embedded, name)

        def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
            upkeep.reap(store, now_ms(), 10 * LEASE_MS)
            return embedded.apply(operations)

    relay: Any = outbox.relay(Reaping(), registry=registry, lease=6.1, request_timeout=1.0)  # type: ignore[arg-type]
    while relay.run_once():
        pass
    assert (relay.totals.done, relay.totals.lost_claims) == (120, 0)


def test_answer_that_comes_after_its_claim_was_lost_writes_nothing_more(
    outbox: Outbox, embedded: EmbeddedDestination
) -> None:
    """The rows of a refused fold would be sent one by one, with versions that are drawn then."""
    embedded.ensure_index("contacts", TYPED)
    outbox.index("contacts", "c1", {"n": "no number"})
    outbox.index("contacts", "c1", {"n": 1})
    outbox.update("contacts", "c1", {"n": "no number"})
    sent: list[list[int]] = []

    class Watched:
        """The epoch is advanced while the first request is answered, and a newer row is delivered."""

        def __getattr__(self, name: str) -> Any:
            return getattr(embedded, name)

        def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
            sent.append([operation.version for operation in operations])
            answered = embedded.apply(operations)
            if len(sent) == 1:
                operators.advance_epoch(outbox.store(), 0, now_ms())
                outbox.index("contacts", "c1", {"n": 2})
                outbox.drain(embedded, relay_id=2)
            return answered

    relay: Any = outbox.relay(Watched())  # type: ignore[arg-type]
    while relay.run_once():
        pass
    assert len(sent) == 1
    assert embedded.read("contacts-000001", ["c1"])["c1"].source == {"n": 2}
    assert outbox.counts() == {"pending": 0, "claimed": 0, "done": 4, "dead": 0}
