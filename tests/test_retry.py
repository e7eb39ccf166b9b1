"""Dead rows are retried in steps: whatever happens between two of them, no change is lost and none comes too late."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise

import pytest

from outbox.store import operators
from outbox.store.models import now_ms
from outbox.store.operators import Retried
from outbox.store.sqlite.dialect import STEP_ROWS
from tests.support.outbox import Outbox
from tests.support.places import EmbeddedPlace


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPlace]:
    made = EmbeddedPlace(tmp_path_factory.mktemp("place") / "search.db")
    yield made
    made.destination.close()


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for database in ("sqlite", "postgresql"):
        monkeypatch.setattr(f"outbox.store.{database}.dialect.STEP_ROWS", 1)


def die(outbox: Outbox, *rows: int) -> None:
    for row in rows:
        outbox.raw(
            "UPDATE outbox_events SET state = 'dead', available_at = NULL, error_type = 'document_parsing_exception',"
            " error = 'failed to parse', finished_at = 1 WHERE id = :row",
            row=row,
        )


def retry(outbox: Outbox, rows: list[int], between: Callable[[], object]) -> Retried:
    return operators.retry_dead(outbox.store(), rows, now_ms(), lambda _: between())


def test_lock_is_free_between_the_steps_of_a_long_retry(outbox: Outbox) -> None:
    rows = outbox.index_many("contacts", [(f"c{n}", {}) for n in range(3 * STEP_ROWS + 1)])
    outbox.raw("UPDATE outbox_events SET state = 'dead', finished_at = 1")
    left = [len(rows)]
    with closing(sqlite3.connect(str(outbox.engine.url.database), timeout=0)) as other:

        def between() -> None:
            other.execute("CREATE TABLE IF NOT EXISTS writes (n)")  # fails at once if the lock is held
            left.append(outbox.counts()["dead"])

        assert retry(outbox, rows, between) == Retried(len(rows), 0, {})
    assert [before - after for before, after in pairwise(left)] == [STEP_ROWS] * 3
    assert outbox.counts()["pending"] == len(rows)


@pytest.mark.usefixtures("one_by_one")
def test_updates_of_one_document_that_are_delivered_between_the_steps_keep_their_order(
    outbox: Outbox, place: EmbeddedPlace
) -> None:
    outbox.index("contacts", "c1", {"n": 0})
    outbox.drain(place.destination)
    rows = [outbox.update("contacts", "c1", {"n": n, f"f{n}": n}) for n in range(1, 4)]
    die(outbox, *rows)
    retried = retry(outbox, [rows[2], rows[0], rows[1]], lambda: outbox.drain(place.destination))
    outbox.drain(place.destination)
    assert (retried.pending, retried.overtaken) == (3, {})
    assert place.get("contacts", "c1") == {"n": 3, "f1": 1, "f2": 2, "f3": 3}


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("written", ["before", "meanwhile"])
def test_later_row_that_is_delivered_between_the_steps_decides(
    outbox: Outbox, place: EmbeddedPlace, written: str
) -> None:
    """One that waited already when the retry began, or one that was written only then."""
    other, whole, part = (outbox.index("contacts", name, {"a": 1}) for name in ("other", "whole", "part"))
    outbox.drain(place.destination)
    first, history, lost = (outbox.update("contacts", name, {"b": 1}) for name in ("other", "whole", "part"))
    die(outbox, first, history, lost)
    later: list[int] = []

    def write() -> None:
        later.extend((outbox.index("contacts", "whole", {"a": 2}), outbox.update("contacts", "part", {"a": 2})))

    def between() -> None:
        if not later:
            write()
        outbox.drain(place.destination)

    if written == "before":
        write()
    assert retry(outbox, [first, history, lost], between) == Retried(1, 1, {lost: later[1]})
    outbox.drain(place.destination)
    assert [outbox.state(row) for row in (other, whole, part, first, history, lost)] == ["done"] * 5 + ["dead"]
    assert outbox.row(lost)["error_type"] == "overtaken"
    assert place.get("contacts", "other") == {"a": 1, "b": 1}
    assert place.get("contacts", "whole") == place.get("contacts", "part") == {"a": 2}


@pytest.mark.usefixtures("one_by_one")
def test_row_that_somebody_else_retried_and_that_was_delivered_between_the_steps_counts_as_later(
    outbox: Outbox, place: EmbeddedPlace
) -> None:
    outbox.index("contacts", "c1", {})
    outbox.drain(place.destination)
    first = outbox.index("contacts", "other", {})
    early, late = (outbox.update("contacts", "c1", {f"f{n}": n}) for n in range(2))
    die(outbox, first, early, late)

    def between() -> None:
        operators.retry_dead(outbox.store(), [late], now_ms())
        outbox.drain(place.destination)

    assert retry(outbox, [first, early], between) == Retried(1, 0, {early: late})


@pytest.mark.usefixtures("one_by_one")
def test_row_that_was_claimed_when_the_retry_began_and_has_died_since_overtakes_nothing(outbox: Outbox) -> None:
    first, early, late = (outbox.update("contacts", name, {"n": 1}) for name in ("other", "c1", "c1"))
    die(outbox, first, early)
    outbox.raw("UPDATE outbox_events SET state = 'claimed' WHERE id = :id", id=late)
    assert retry(outbox, [first, early], lambda: die(outbox, late)) == Retried(2, 0, {})


@pytest.mark.usefixtures("one_by_one")
def test_retry_that_was_interrupted_is_repeated(outbox: Outbox, place: EmbeddedPlace) -> None:
    rows = [outbox.update("contacts", name, {f"f{n}": n}) for n, name in enumerate(("c1", "c2", "c1", "c2"))]
    die(outbox, *rows)
    place.destination.ensure_index("contacts")
    for name in ("c1", "c2"):
        place.tamper("contacts", name, {"late": True}, version=1)  # it was to come from elsewhere
    steps = iter((False, True))

    def between() -> None:
        outbox.drain(place.destination)
        if next(steps, False):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retry(outbox, rows, between)
    dead = [row["id"] for row in outbox.dead()]
    assert dead == rows[2:]
    assert retry(outbox, dead, between) == Retried(2, 0, {})
    outbox.drain(place.destination)
    assert outbox.counts() == {"pending": 0, "claimed": 0, "done": 4, "dead": 0}
    assert place.get("contacts", "c1") == {"late": True, "f0": 0, "f2": 2}
    assert place.get("contacts", "c2") == {"late": True, "f1": 1, "f3": 3}
