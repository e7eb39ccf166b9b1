"""Random histories of claims, on every database: a document is never in two claims, and its rows go in order."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import Engine

from outbox.store import claims, operators, outcomes, upkeep
from outbox.store.claims import Claim
from outbox.store.models import Event, Result, State, Transition, now_ms
from outbox.store.store import Store
from tests.conformance.database import LEASE_MS, NOW, Database, applied, claim, in_threads
from tests.support import FACTOR

pytestmark = pytest.mark.slow

TENANTS = ("large", "small", None)
documents = st.sampled_from(["a", "b", "c"])
tenants = st.sampled_from(TENANTS)
indexes = st.sampled_from(["contacts", "contacts", "notes"])
sizes = st.integers(1, 6)


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


class History(RuleBasedStateMachine):
    """Three relays and an application; time is a number. `database` and its stores are set by the test."""

    database: Database
    stores: list[Store]
    late: Interrupted

    @initialize()
    def begin(self) -> None:
        with self.database.engine.begin() as connection:
            for table in ("events", "stats", "control"):
                connection.exec_driver_sql(f"DELETE FROM outbox_{table}")
        self.late.meanwhile = lambda: None
        self.now, self.others = NOW, 0
        self.held: list[tuple[Claim, list[Event]]] = []
        self.cut_short: set[str] = set()  # documents of which rows were removed: nothing wakes what waited for them

    # -- what an application and operators do -------------------------------------------------------------------

    @rule(index=indexes, names=st.lists(documents, min_size=1, max_size=3), tenant=tenants)
    def write(self, index: str, names: list[str], tenant: str | None) -> None:
        self.database.insert(*((index, name) for name in names), tenant=tenant)

    @rule(tenant=tenants, rows=sizes)
    def fill_a_lane(self, tenant: str | None, rows: int) -> None:
        self.database.insert(*(("contacts", f"other-{self.others + n}") for n in range(rows)), tenant=tenant)
        self.others += rows

    @rule(step=st.sampled_from([1, 1_999, 2_000, LEASE_MS]))
    def time_passes(self, step: int) -> None:
        self.now += step

    @rule()
    def purge_an_index(self) -> None:
        operators.purge(self.stores[0], "notes", up_to=self._some_id())
        self.cut_short.add("notes")

    @rule()
    def retry_the_dead(self) -> None:
        dead = [row["id"] for row in operators.dead(self.stores[0])]
        operators.retry_dead(self.stores[0], dead, self.now, lambda _: None)

    # -- what relays do -----------------------------------------------------------------------------------------

    @rule(relay=st.integers(0, 2), rows=sizes, tenants_out=st.sampled_from([(), ("large",), ("small", "")]))
    def claim(self, relay: int, rows: int, tenants_out: tuple[str, ...]) -> None:
        self._claim(self.stores[relay], relay, rows=rows, tenants_out=tenants_out)

    @rule(rows=sizes, only=st.sampled_from(["contacts", "notes"]), tenant_rows=st.sampled_from([None, 1, 2]))
    def claim_some(self, rows: int, only: str, tenant_rows: int | None) -> None:
        self._claim(self.stores[1], 1, rows=rows, only=only, tenant_rows=tenant_rows)

    @rule(data=st.data(), what=st.sampled_from(["write", "claim", "record", "reap", "retry"]))
    def claim_while_something_happens(self, data: st.DataObject, what: str) -> None:
        self.late.meanwhile = {
            "write": lambda: self.write("contacts", data.draw(st.lists(documents, max_size=3)), data.draw(tenants)),
            "claim": lambda: self._claim(self.stores[0], 0, rows=data.draw(sizes)),
            "record": lambda: self.record(data),
            "reap": self.reap,
            "retry": self.retry_the_dead,
        }[what]
        self._claim(self.late, 2, rows=data.draw(sizes))

    def _claim(self, store: Store, relay: int, **given: Any) -> None:
        if found := claim(store, relay=relay, now=self.now, lone_after=4, **given):
            self.held.append((found, list(found.events)))

    @rule(data=st.data())
    def record(self, data: st.DataObject) -> None:
        """Some rows of a claim, which may be lost by now; of a document none after one that has to be tried again."""
        if not self.held:
            return
        at = data.draw(st.integers(0, len(self.held) - 1))
        found, left = self.held[at]
        some = left[: data.draw(st.integers(1, len(left)))]
        self.held[at] = (found, left[len(some) :])
        transitions, again = list[Transition](), set[tuple[str, str]]()
        for event in some:
            fate = data.draw(st.sampled_from([State.DONE, State.DONE, State.DEAD, State.PENDING]))
            document = (event.index_name, event.document_id)
            if fate is State.PENDING and any((e.index_name, e.document_id) == document for e in self.held[at][1]):
                fate = State.DONE
            if fate is State.PENDING or document in again:
                again.add(document)
                transitions.append(
                    Transition(event, State.PENDING, None, self.now + 2_000, event.attempts + 1, "x", "y")
                )
            elif fate is State.DEAD:
                transitions.append(Transition(event, fate, error_type="x", error="y"))
            else:
                transitions.append(Transition(event, fate, Result.APPLIED))
        outcomes.record(self.stores[0], found, transitions, self.now)
        if not self.held[at][1]:
            del self.held[at]

    @rule(data=st.data(), undelivered=st.booleans())
    def release(self, data: st.DataObject, undelivered: bool) -> None:
        if self.held:
            found, left = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
            ids = [event.id for event in left]
            claims.release(self.stores[0], found, ids, self.now, undelivered=undelivered)

    @rule()
    def reap(self) -> None:
        upkeep.reap(self.stores[0], self.now, LEASE_MS, lone_after=4)

    # -- what has to hold ---------------------------------------------------------------------------------------

    @invariant()
    def each_document_is_in_one_claim_and_in_order(self) -> None:
        assert self.database.out_of_order() == []

    @invariant()
    def whatever_waits_waits_for_its_own_retry_or_for_an_earlier_row(self) -> None:
        with self.database.engine.connect() as connection:
            strays = connection.exec_driver_sql(
                "SELECT * FROM outbox_events AS w WHERE state = 'pending' AND attempts = 0"
                f" AND available_at > {self.now} AND NOT EXISTS (SELECT 1 FROM outbox_events AS e WHERE e.id < w.id"
                " AND e.index_name = w.index_name AND e.document_id = w.document_id"
                " AND e.state IN ('pending', 'claimed'))"
            )
            assert [row for row in strays.mappings() if row["index_name"] not in self.cut_short] == []

    def teardown(self) -> None:
        """Whatever happened, everything is delivered within the time of a few leases."""
        if not hasattr(self, "held"):
            return
        for _ in range(3):
            self.now += LEASE_MS
            self.reap()
            while found := claim(self.stores[0], now=self.now, rows=5, lone_after=4):
                outcomes.record(self.stores[0], found, applied(found), self.now)
        counts = self.stores[0].counts()
        assert (counts["pending"], counts["claimed"]) == (0, 0)

    def _some_id(self) -> int:
        return self.stores[0].highest_id() - 3


def test_any_history_of_claims_keeps_the_rows_of_a_document_in_order(database: Database) -> None:
    History.database, History.stores = database, [database.store() for _ in range(3)]
    History.late = Interrupted(database.engine)
    database.opened.callback(History.late.close)
    run_state_machine_as_test(
        History,
        settings=settings(
            max_examples=FACTOR * 60,
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_claimers_side_by_side_keep_the_rows_of_a_document_in_order(database: Database) -> None:
    """Relays that fail, die and come late, beside an application that writes under any tenant."""
    over = time.monotonic() + 4 * FACTOR
    done: dict[str, list[int]] = {}
    lock, lease = threading.Lock(), 150
    first = random.randrange(10**9)
    print(f"seeds from {first}")

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
