"""A claim looks without the lock: what happens between its look and the lock must not make it claim what it may not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine

from outbox.errors import DatabaseUnavailable
from outbox.relay.decide import Policy
from outbox.relay.health import Health
from outbox.relay.settle import Settler
from outbox.store import claims, operators, outcomes, pauses
from outbox.store.claims import Claim, ClaimRequest
from outbox.store.models import Event, Result, State, Transition, now_ms
from outbox.store.sqlite import dialect, lock
from outbox.store.store import Store
from tests.support.outbox import Outbox, settings


class Interrupted(Store):
    """A store that others are faster than: `meanwhile` is called before its next write transaction, once."""

    def __init__(self, engine: Engine, meanwhile: Callable[[], object] = lambda: None) -> None:
        super().__init__(engine)
        self.meanwhile = meanwhile

    @contextmanager
    def write(self, *, durable: bool, alone: bool = False) -> Iterator[None]:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        with super().write(durable=durable, alone=alone):
            yield


@pytest.fixture
def late(outbox: Outbox) -> Iterator[Interrupted]:
    store = Interrupted(outbox.engine)
    yield store
    store.close()


@pytest.fixture
def small_steps(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """As beside an application that had to wait for the lock."""
    monkeypatch.setattr(dialect, "STEP_ROWS_BESIDE_WRITERS", 2)
    with lock.waiting(Path(str(outbox.engine.url.database))):
        pass


def claim(store: Store, rows: int = 100, relay: int = 1) -> Claim | None:
    later = now_ms() + 30_000  # what is put back while it looks is due for it
    request = ClaimRequest(relay=relay, now=later, lease_ms=60_000, longest_wait=60_000, rows=rows, bytes_=10**9)
    return claims.claim(store, request)


def ids(claimed: Claim | None) -> list[int]:
    return [event.id for event in claimed.events] if claimed else []


def done(event: Event) -> Transition:
    return Transition(event, State.DONE, Result.APPLIED, attempts=event.attempts)


def kill(outbox: Outbox, row: int) -> None:
    outbox.raw(
        "UPDATE outbox_events SET state = 'dead', attempts = 1, deliveries = 1, error_type = 'x', error = 'x',"
        " available_at = NULL, finished_at = created_at WHERE id = :row",
        row=row,
    )


def test_two_relays_that_looked_at_the_same_rows_claim_each_row_once(outbox: Outbox, late: Interrupted) -> None:
    rows = outbox.index_many("contacts", [(f"c{n}", {}) for n in range(10)])
    others: list[int] = []
    late.meanwhile = lambda: others.extend(ids(claim(outbox.store(), rows=4, relay=2)))
    assert (others, ids(claim(late))) == (rows[:4], rows[4:])


@pytest.mark.usefixtures("small_steps")
def test_rows_that_another_relay_claims_between_two_steps_are_left_to_it(outbox: Outbox, late: Interrupted) -> None:
    rows = outbox.index_many("contacts", [(f"c{n}", {}) for n in range(6)])
    others: list[int] = []

    def after_the_first_step() -> None:
        late.meanwhile = lambda: others.extend(ids(claim(outbox.store(), rows=1, relay=2)))

    late.meanwhile = after_the_first_step
    assert (ids(claim(late)), others) == (rows[:2], rows[2:3])
    assert ids(claim(late)) == rows[3:]


def test_row_does_not_go_before_an_earlier_one_that_an_operator_has_just_put_back(
    outbox: Outbox, late: Interrupted
) -> None:
    first = outbox.update("contacts", "c1", {"name": "Ada"})
    kill(outbox, first)
    second = outbox.update("contacts", "c1", {"town": "London"})
    late.meanwhile = lambda: operators.retry_dead(outbox.store(), [first], now_ms())
    assert ids(claim(late)) == [first, second]


def test_row_whose_earlier_one_is_finished_after_the_look_goes_at_once(outbox: Outbox, late: Interrupted) -> None:
    outbox.update("contacts", "c1", {"name": "Ada"})
    other = outbox.store()
    first = claim(other, relay=2)
    assert first is not None
    second = outbox.update("contacts", "c1", {"town": "London"})
    late.meanwhile = lambda: outcomes.record(other, first, [done(event) for event in first.events], now_ms())
    assert ids(claim(late)) == [second]


def test_row_that_was_given_back_meanwhile_is_claimed_as_it_is_now(outbox: Outbox, late: Interrupted) -> None:
    (row,) = outbox.index_many("contacts", [("c1", {})])

    def another_fails() -> None:
        store = outbox.store()
        claimed = claim(store, relay=2)
        assert claimed is not None
        event = claimed.events[0]
        failed = Transition(event, State.PENDING, available_at=now_ms(), attempts=1, error_type="x", error="x")
        outcomes.record(store, claimed, [failed], now_ms())

    late.meanwhile = another_fails
    claimed = claim(late)
    assert claimed is not None
    assert [(event.id, event.attempts, event.deliveries) for event in claimed.events] == [(row, 1, 2)]


@pytest.mark.parametrize("paused", [None, "contacts"])
def test_pause_between_the_look_and_the_lock_is_obeyed(outbox: Outbox, late: Interrupted, paused: str | None) -> None:
    outbox.index("contacts", "c1", {})
    late.meanwhile = lambda: pauses.pause(outbox.store(), "an incident", "ops", now_ms(), index=paused)
    assert claim(late) is None
    assert outbox.counts()["claimed"] == 0


@pytest.mark.usefixtures("small_steps")
def test_pause_between_two_steps_ends_the_claim_there(outbox: Outbox, late: Interrupted) -> None:
    rows = outbox.index_many("contacts", [(f"c{n}", {}) for n in range(6)])

    def after_the_first_step() -> None:
        late.meanwhile = lambda: pauses.pause(outbox.store(), "an incident", "ops", now_ms())

    late.meanwhile = after_the_first_step
    assert ids(claim(late)) == rows[:2]
    assert (outbox.counts()["claimed"], outbox.counts()["pending"]) == (2, 4)


@pytest.mark.usefixtures("small_steps")
def test_rows_of_one_document_in_several_steps_stay_together(outbox: Outbox) -> None:
    rows = [outbox.update("contacts", "c1", {"n": n}) for n in range(7)]
    assert ids(claim(outbox.store())) == rows


@pytest.mark.usefixtures("small_steps")
def test_record_that_was_cut_short_between_two_steps_loses_no_claim_when_it_is_repeated(
    outbox: Outbox, late: Interrupted
) -> None:
    settler = Settler(late, None, Policy(), Health(settings(), late.unfinished))
    rows = outbox.index_many("contacts", [(f"c{n}", {}) for n in range(6)])
    claimed = claim(outbox.store())
    assert claimed is not None
    transitions = [done(event) for event in claimed.events]

    def locked() -> None:
        raise DatabaseUnavailable("database is locked")

    def after_the_first_step() -> None:
        late.meanwhile = locked

    late.meanwhile = after_the_first_step
    with pytest.raises(DatabaseUnavailable):
        settler.record(claimed, transitions, now_ms())
    assert outbox.counts()["done"] == 2
    settler.record(claimed, transitions, now_ms())
    assert [outbox.state(row) for row in rows] == ["done"] * 6
    assert (settler.totals.done, settler.totals.lost_claims, settler.recorded) == (6, 0, set())


def test_relay_works_in_large_steps_until_a_writer_had_to_wait(outbox: Outbox) -> None:
    store = outbox.store()
    assert [len(step) for step in store.in_steps(range(1_500))] == [1_000, 500]
    with lock.waiting(Path(str(outbox.engine.url.database))):
        pass
    assert {len(step) for step in store.in_steps(range(1_000))} == {dialect.STEP_ROWS_BESIDE_WRITERS}
