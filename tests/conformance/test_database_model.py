"""Random histories of claims, on every database: a document is never in two claims, and its rows go in order.

`TEST_CLAIMS_SEED` repeats a history that failed.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine

from outbox.store import claims, operators, outcomes, upkeep
from outbox.store.claims import Claim
from outbox.store.models import Event, Result, State, Transition, now_ms
from outbox.store.store import Store
from tests.conformance.database import LEASE_MS, NOW, Database, applied, claim, in_threads
from tests.support import FACTOR

pytestmark = pytest.mark.slow

HISTORIES = 25
STEPS = 80
LONE_AFTER = 4
TENANTS = ("large", "small", None)


@pytest.fixture
def chance() -> random.Random:
    seed = os.environ.get("TEST_CLAIMS_SEED") or str(random.randrange(10**9))
    print(f"TEST_CLAIMS_SEED={seed}")
    return random.Random(seed)


class Interrupted(Store):
    """A store that others are faster than: `meanwhile` is called before its next write transaction, once."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.meanwhile: Callable[[], object] = lambda: None

    @contextmanager
    def write(self, *, durable: bool, alone: bool = False) -> Iterator[None]:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        with super().write(durable=durable, alone=alone):
            yield


class History:
    """Three relays, operators and an application; time is a number. `claims`: with the rows not yet recorded."""

    def __init__(self, database: Database, stores: list[Store], late: Interrupted, chance: random.Random) -> None:
        self.database, self.stores, self.late, self.chance = database, stores, late, chance
        self.now, self.others = NOW, 0
        self.claims: list[tuple[Claim, list[Event]]] = []
        self.removed = False  # rows of notes: nothing wakes what waited for them
        self.parts: dict[Callable[[], None], int] = {
            self.write: 6, self.fill_a_lane: 1, self.time_passes: 2, self.purge: 1, self.retry_the_dead: 2,
            self.claim: 5, self.claim_late: 4, self.record: 8, self.release: 1, self.reap: 2,
        }  # fmt: skip

    def step(self) -> str:
        """Something happens. Returns what."""
        (part,) = self.chance.choices([*self.parts], [*self.parts.values()])
        part()
        return part.__name__

    # -- what an application and operators do -------------------------------------------------------------------

    def write(self) -> None:
        index, names = self.chance.choice(["contacts"] * 3 + ["notes"]), self.chance.choices("ab", k=2)
        self.database.insert(*((index, name) for name in names), tenant=self.chance.choice(TENANTS))

    def fill_a_lane(self) -> None:
        """With other documents: what is written to it next waits in it."""
        names = [f"other-{self.others + n}" for n in range(6)]
        self.others += len(names)
        self.database.insert(*(("contacts", name) for name in names), tenant=self.chance.choice(TENANTS))

    def time_passes(self) -> None:
        self.now += self.chance.choice([1, 1_999, 2_000, LEASE_MS])

    def purge(self) -> None:
        up_to = self.stores[0].highest_id() - 3
        of_notes = operators.pending(self.stores[0], index="notes")
        operators.purge(self.stores[0], [each for each in of_notes if each <= up_to])
        self.removed = True

    def retry_the_dead(self) -> None:
        dead = [row["id"] for row in operators.dead(self.stores[0])]
        operators.retry_dead(self.stores[0], dead, self.now, lambda _: None)

    # -- what relays do -----------------------------------------------------------------------------------------

    def claim(self, store: Store | None = None) -> None:
        given: dict[str, Any] = self.chance.choice(
            [
                {},
                {},
                {},
                {"tenants_out": ["large"]},
                {"tenants_out": ["small", ""]},
                {"only": "contacts"},
                {"tenant_rows": 1},
            ]
        )
        rows = self.chance.randrange(1, 7)
        lone, lone_last = self.chance.choice([(True, False), (True, True), (False, False)])
        given = {"rows": rows, "lone_after": LONE_AFTER, "lone": lone, "lone_last": lone_last, **given}
        if found := claim(store or self.chance.choice(self.stores), now=self.now, **given):
            taken = {event.id for event in found.events}
            others = {event.id for other, left in self.claims for event in left if self._holds(other, event)}
            assert not taken & others, "claimed twice"
            self.claims.append((found, list(found.events)))
            if store is None and not found.more:
                left = claim(self.stores[0], now=self.now, **{**given, "lone": True})
                assert left is None, "it left out what was due, and said that there was no more"

    def claim_late(self) -> None:
        """Others are faster, between the look of a claim and its lock."""
        others = [self.write, self.claim, self.record, self.record, self.reap, self.retry_the_dead]
        self.late.meanwhile = self.chance.choice(others)
        self.claim(self.late)

    def record(self) -> None:
        """Some rows of a claim, which may be lost by now; of a document none after one that has to be tried again."""
        if not self.claims:
            return
        found, left = self.claims.pop(self.chance.randrange(len(self.claims)))
        some = left[: self.chance.randrange(1, len(left) + 1)]
        later = left[len(some) :]
        transitions, again = list[Transition](), set[tuple[str, str]]()
        for event in some:
            document = (event.index_name, event.document_id)
            fate = self.chance.choice([State.DONE, State.DONE, State.DEAD, State.PENDING])
            if document in again or (fate is State.PENDING and document not in {(e[2], e[3]) for e in later}):
                again.add(document)
                transitions.append(
                    Transition(event, State.PENDING, None, self.now + 2_000, event.attempts + 1, "x", "y")
                )
            elif fate is State.DEAD:
                transitions.append(Transition(event, State.DEAD, error_type="x", error="y"))
            else:
                transitions.append(Transition(event, State.DONE, Result.APPLIED))
        outcomes.record(self.stores[0], found, transitions, self.now)
        if later:
            self.claims.append((found, later))

    def release(self) -> None:
        if self.claims:
            found, left = self.claims.pop(self.chance.randrange(len(self.claims)))
            ids, undelivered = [event.id for event in left], self.chance.random() < 0.5
            claims.release(self.stores[0], found, ids, self.now, undelivered=undelivered)

    def reap(self) -> None:
        upkeep.reap(self.stores[0], self.now, LEASE_MS, lone_after=LONE_AFTER)

    def _holds(self, other: Claim, event: Event) -> bool:
        """Not one that it has lost meanwhile, and that may be purged since."""
        tokens = self.database.scalars(f"SELECT claim_token FROM outbox_events WHERE id = {event.id}")
        return list(tokens) == [other.token]

    # -- what has to hold ---------------------------------------------------------------------------------------

    def strays(self) -> list[int]:
        """Rows that wait neither for their own retry nor for an earlier row of their document."""
        found = self.database.scalars(
            "SELECT id FROM outbox_events AS w WHERE state = 'pending' AND attempts = 0"
            f" AND available_at > {self.now} AND NOT EXISTS (SELECT 1 FROM outbox_events AS e WHERE e.id < w.id"
            " AND e.index_name = w.index_name AND e.document_id = w.document_id AND e.state IN ('pending', 'claimed'))"
            + (" AND index_name <> 'notes'" if self.removed else "")
        )
        return list(found)

    def finish(self) -> None:
        """Whatever happened, everything is delivered within the time of a few leases."""
        for _ in range(3):
            self.now += LEASE_MS
            self.reap()
            while found := claim(self.stores[0], now=self.now, rows=5, lone_after=LONE_AFTER):
                outcomes.record(self.stores[0], found, applied(found), self.now)
        counts = self.stores[0].counts()
        assert (counts["pending"], counts["claimed"]) == (0, 0)


def test_any_history_of_claims_keeps_the_rows_of_a_document_in_order(database: Database, chance: random.Random) -> None:
    stores, late = [database.store() for _ in range(2)], Interrupted(database.engine)
    database.opened.callback(late.close)
    for _ in range(HISTORIES * FACTOR):
        history, steps = History(database, stores, late, chance), list[str]()
        for _ in range(STEPS):
            steps.append(history.step())
            assert (database.out_of_order(), history.strays()) == ([], []), steps
        history.finish()
        with database.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM outbox_events")


def test_claimers_side_by_side_keep_the_rows_of_a_document_in_order(database: Database, chance: random.Random) -> None:
    """Relays that fail, die and come late, beside an application that writes under any tenant."""
    over = time.monotonic() + 4 * FACTOR
    done: dict[str, list[int]] = {}
    lock, lease = threading.Lock(), 150
    first = chance.randrange(10**9)

    def write(seed: int) -> None:
        chance = random.Random(first + seed)
        while time.monotonic() < over:
            names = [f"c{chance.randrange(10)}" for _ in range(chance.randrange(1, 4))]
            database.insert(*(("contacts", name) for name in names), tenant=chance.choice(TENANTS))

    def deliver(seed: int) -> None:
        chance, store = random.Random(first + seed), database.store()
        while time.monotonic() < over:
            now = now_ms()
            upkeep.reap(store, now, 10 * lease)
            found = claim(store, relay=seed, now=now, rows=chance.randrange(1, 9), lease_ms=lease, lone_after=10**6)
            if not found or chance.random() < 0.1:  # it dies
                continue
            again = chance.random() < 0.2
            transitions = [
                Transition(event, State.PENDING, None, now + chance.randrange(40), 1, "x", "y")
                for event in found.events
            ]
            given = transitions if again else applied(found)
            with lock:  # in the order in which they are recorded
                lost = {each.event.id for each in outcomes.record(store, found, given, now_ms())}
                for event in () if again else found.events:
                    if event.id not in lost:
                        done.setdefault(event.document_id, []).append(event.id)

    def watch(_: int) -> None:
        while time.monotonic() < over:
            assert database.out_of_order() == []

    in_threads((write, 1), (deliver, 2), (deliver, 3), (deliver, 4), (watch, 5))
    assert len(done) == 10
    assert {name: ids for name, ids in done.items() if ids != sorted(ids)} == {}
    store, now = database.store(), now_ms() + LEASE_MS
    upkeep.reap(store, now, LEASE_MS)
    while found := claim(store, now=now):
        outcomes.record(store, found, applied(found), now)
    assert store.unfinished() == 0
