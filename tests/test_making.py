"""How many documents a relay makes for one request: as many as there is room and time for, and the others later."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from outbox import EntityRegistry, OutboxRepository
from outbox.relay import load
from outbox.relay.intake import Intakes
from outbox.store import claims
from outbox.store.claims import ClaimRequest
from outbox.store.models import now_ms
from tests.support.outbox import Outbox

ROWS = 200


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)


class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def made() -> list[int]:
    """The notes that documents were made of."""
    return []


@pytest.fixture
def registry(outbox: Outbox, made: list[int]) -> EntityRegistry:
    def of_note(note: Note) -> dict[str, Any]:
        made.append(note.id)
        return {"text": "x" * 10_000}

    Base.metadata.create_all(outbox.engine)
    registry = EntityRegistry()
    registry.add(Note, index="notes", to_document=of_note)
    registry.add(Tag, index="tags", fields=["id"])
    with registry.capture(sessionmaker(outbox.engine)).begin() as session:
        session.add(Tag(id=1))
        session.flush()
        session.add_all(Note() for _ in range(ROWS))
    return registry


def change_all(outbox: Outbox, registry: EntityRegistry) -> None:
    with outbox.sessions.begin() as session:
        for note in session.query(Note):
            OutboxRepository(session, registry).refresh(note)


def left_over(outbox: Outbox, registry: EntityRegistry, intakes: Intakes) -> int:
    """How many rows of a claim are given back, for which no document was made."""
    store = outbox.store()
    for index in ("notes", "tags"):
        store.register_index(index, f"{index}-000001")
    claim = claims.claim(store, ClaimRequest(1, now_ms(), 60_000, 60_000, rows=1_000, bytes_=10**9))
    assert claim is not None
    _, unmade = load.contents(store, registry, claim, intakes)
    return len(unmade)


def test_documents_of_a_size_that_nobody_knows_are_made_some_at_a_time_beside_known_ones(
    outbox: Outbox, registry: EntityRegistry, made: list[int]
) -> None:
    intakes = Intakes(200_000, 1_000, 30_000, longest_making_s=60.0)
    for known in ("tags", "others"):
        intakes.of(known).made(1, 10)
    assert left_over(outbox, registry, intakes) == ROWS + 1 - load.FIRST_ROWS
    assert len(made) == load.FIRST_ROWS - 1  # and the tag


def test_no_more_documents_are_made_than_there_is_time_for(
    outbox: Outbox, registry: EntityRegistry, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.relay.load.time.monotonic", lambda: len(made) * 0.125)  # each note takes so long
    intakes = Intakes(10**9, 1_000, 30_000, longest_making_s=0.5)
    intakes.of("tags").made(1, 10)
    intakes.of("notes").made(1, 10_000)
    assert left_over(outbox, registry, intakes) == ROWS - 4
    assert len(made) == 4


@pytest.mark.usefixtures("registry")
def test_documents_that_fail_slowly_take_the_time_of_others_no_longer_than_there_is(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were quick so far: what they take now is known only while they are made."""
    tried: list[int] = []

    def times_out(note: Note) -> dict[str, Any]:
        tried.append(note.id)
        raise TimeoutError("no answer of the price list")

    failing = EntityRegistry()
    failing.add(Note, index="notes", to_document=times_out)
    failing.add(Tag, index="tags", fields=["id"])
    monkeypatch.setattr("outbox.relay.load.time.monotonic", lambda: len(tried) * 5.0)
    intakes = Intakes(10**9, 1_000, 30_000, longest_making_s=20.0)
    intakes.of("notes").made(1, 10)
    assert left_over(outbox, failing, intakes) == ROWS - 4
    assert len(tried) == 4


def test_document_that_changes_faster_than_all_can_be_made_goes_with_all_of_its_rows(
    outbox: Outbox, registry: EntityRegistry, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given back for its later rows, it would be made again and again, and never sent."""
    change_all(outbox, registry)
    change_all(outbox, registry)
    monkeypatch.setattr("outbox.relay.load.time.monotonic", lambda: len(made) * 0.125)
    intakes = Intakes(10**9, 1_000, 30_000, longest_making_s=0.5)
    intakes.of("tags").made(1, 10)
    intakes.of("notes").made(1, 10_000)
    assert left_over(outbox, registry, intakes) == 3 * (ROWS - 4)
    assert len(made) == 4
