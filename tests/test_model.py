"""Random histories on real parts: whatever happens, after a drain the index equals what the rows say."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import engine as hypothesis_engine
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import create_engine

from outbox import schema, sqlite
from outbox.relay import plan
from outbox.relay.relay import Relay
from outbox.relay.requests import Answer, Request
from outbox.store import claims, operators, upkeep
from outbox.store.claims import Claim
from outbox.store.models import now_ms
from outbox.store.store import Store
from tests.support import FACTOR
from tests.support.outbox import Outbox
from tests.support.places import Place
from tests.support.proxy import FaultProxy, bulk, refuse, reply, swallow

pytestmark = pytest.mark.slow

LEASE_MS = 60_000
SHRINK_FOR_S = 40
MAPPINGS = {"properties": {"n": {"type": "long"}}}
document_ids = st.sampled_from(["a", "b", "c"])
names = itertools.count()


class History(RuleBasedStateMachine):
    """Two relays, one database, one index; time is a number. `place` is set by the test."""

    place: Place

    @property
    def wire(self) -> FaultProxy:
        assert self.place.wire is not None
        return self.place.wire

    @initialize()
    def begin(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        engine = create_engine(f"sqlite:///{Path(self._directory.name) / 'app.db'}")
        sqlite.prepare(engine)
        schema.upgrade(engine)
        self.destination = self.place.destination
        self.outbox, self.now = Outbox(engine), now_ms()
        self.index = f"model-{next(names)}"
        self.relays: list[Relay] = [self.outbox.relay(self.destination, n, batch_rows=4) for n in (1, 2)]
        self.dying: Store = self.outbox.store()
        self.zombies: list[list[plan.Fold]] = []
        self.sleeper = self.outbox.relay(self.destination, 4, batch_rows=4)
        self.unrecorded: list[Answer] = []
        self.expected: dict[str, Any] = {"first": {"n": 0}}
        self.bad: set[int] = set()
        self.destination.ensure_index(self.index, MAPPINGS)
        self.outbox.index(self.index, "first", {"n": 0})
        self.outbox.drain(self.destination, self.now)

    @rule(document_id=document_ids, n=st.integers(0, 99))
    def write(self, document_id: str, n: int) -> None:
        self.outbox.index(self.index, document_id, {"n": n})
        self.expected[document_id] = {"n": n}

    @rule(document_id=document_ids)
    def write_what_the_mapping_refuses(self, document_id: str) -> None:
        self.bad.add(self.outbox.index(self.index, document_id, {"n": "no number"}))

    @rule(document_id=document_ids, n=st.integers(0, 99), field=st.sampled_from(["x", "y"]))
    def update(self, document_id: str, n: int, field: str) -> None:
        """Two fields, one of them inside an object; dead if there is no document to merge it into.

        Never `n`: folded with a row that the mapping refuses, it would mend that one before anybody sees it.
        """
        changes = {field: n, "o": {field: n}}
        row = self.outbox.update(self.index, document_id, changes)
        if document_id in self.expected:
            held = self.expected[document_id]
            self.expected[document_id] = held | changes | {"o": held.get("o", {}) | {field: n}}
        else:
            self.bad.add(row)

    @rule(document_id=document_ids, n=st.integers(0, 99))
    def upsert(self, document_id: str, n: int) -> None:
        """The upsert and the changes differ: applied twice, or both, it would be seen."""
        self.outbox.update(self.index, document_id, {"u": n, "o": {"u": n}}, upsert={"made": n})
        held = self.expected.get(document_id)
        self.expected[document_id] = (
            {"made": n} if held is None else {**held, "u": n, "o": {**held.get("o", {}), "u": n}}
        )

    @rule(document_id=document_ids)
    def update_what_the_mapping_refuses(self, document_id: str) -> None:
        self.bad.add(self.outbox.update(self.index, document_id, {"n": "no number", "lost": True}))

    @rule()
    def dead_rows_are_retried(self) -> None:
        """They die again, or their documents have moved on: the index must not change."""
        operators.retry_dead(self.relays[0]._store, [row["id"] for row in self.outbox.dead()], self.now)

    @rule(document_id=document_ids)
    def delete(self, document_id: str) -> None:
        self.outbox.delete(self.index, document_id)
        self.expected.pop(document_id, None)

    @rule(which=st.integers(0, 1))
    def deliver(self, which: int) -> None:
        self.relays[which].run_once(self.now)

    @rule(seconds=st.sampled_from([1, 3, 9, 31, 61]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds * 1_000

    @rule()
    def expired_leases_are_reaped(self) -> None:
        upkeep.reap(self.relays[0]._store, self.now, LEASE_MS)

    @precondition(lambda self: self.place.wire)
    @rule()
    def requests_of_several_operations_are_too_large(self) -> None:
        self.wire.on(lambda request: request.is_bulk and request.body.count(b'"_id"') > 1, reply(413), times=1)

    @precondition(lambda self: self.place.wire)
    @rule(fault=st.sampled_from([refuse, swallow, reply(503)]), times=st.integers(1, 3))
    def requests_fail(self, fault: Any, times: int) -> None:
        self.wire.on(bulk, fault, times=times)

    @rule(applied=st.booleans())
    def relay_dies_after_its_claim(self, applied: bool) -> None:
        """…and before it records anything; its request may still be in the air."""
        claim: Claim | None = claims.claim(
            self.dying,
            claims.ClaimRequest(relay=3, now=self.now, lease_ms=LEASE_MS, longest_wait=LEASE_MS, rows=4, bytes_=10**6),
        )
        if claim:
            folds = plan.fold(claim.events, claims.load(self.dying, claim), claim.targets, claim.version)
            if applied:
                self.destination.apply([fold.operation for fold in folds])
            self.zombies.append(folds)

    @rule()
    def relay_falls_asleep_between_answer_and_record(self) -> None:
        if request := self.sleeper._next_request(self.now):
            self.unrecorded.append(self.sleeper._send(request))

    @rule(too_late=st.booleans())
    def it_wakes_up_and_records(self, too_late: bool) -> None:
        """Rows that another relay has settled meanwhile stay as they are."""
        if not self.unrecorded:
            return
        if too_late:
            self.now += LEASE_MS + 1
            self.expired_leases_are_reaped()
            self.deliver(0)
        before = self._settled()
        self._finish(self.sleeper, self.unrecorded.pop(), {})
        assert before.items() <= self._settled().items()

    @rule()
    def late_request_of_a_dead_relay_arrives(self) -> None:
        if self.zombies:
            folds = self.zombies.pop()
            self.destination.apply([fold.operation for fold in folds])

    @rule(which=st.integers(0, 1))
    def power_fails_before_outcomes_are_on_disk(self, which: int) -> None:
        """Claims are durable, outcomes may be lost: the rows are claimed again, as if never recorded."""
        relay = self.relays[which]
        if not (request := relay._next_request(self.now)):
            return
        on_disk: dict[int, int | None] = {}
        self._finish(relay, self._send(relay, request, on_disk), on_disk)
        for row, version in on_disk.items():
            if self.outbox.state(row) == "done":
                self.outbox.raw(
                    "UPDATE outbox_events SET state = 'claimed', claim_token = 'lost', lease_expires_at = :lease,"
                    " outcome = NULL, finished_at = NULL, version = :version WHERE id = :id",
                    lease=self.now + LEASE_MS,
                    version=version,
                    id=row,
                )

    @invariant()
    def no_good_row_is_dead(self) -> None:
        if hasattr(self, "outbox"):
            assert {row["id"] for row in self.outbox.dead()} <= self.bad

    def _send(self, relay: Relay, request: Request, on_disk: dict[int, int | None]) -> Answer:
        """Note also from which version on, by what is on disk then, the index may have each row."""
        on_disk |= {row: self.outbox.row(row)["version"] for row in request.rows}
        return relay._send(request)

    def _finish(self, relay: Relay, answer: Answer, on_disk: dict[int, int | None]) -> None:
        """Record what an answer means, and send what has to follow it."""
        relay._following += relay._settle(answer, self.now)
        while request := relay._next_following(self.now):
            relay._following += relay._settle(self._send(relay, request, on_disk), self.now)

    def _settled(self) -> dict[int, tuple[Any, ...]]:
        with self.outbox.engine.connect() as connection:
            found = connection.exec_driver_sql(
                "SELECT id, state, outcome, finished_at, attempts, deliveries FROM outbox_events"
                " WHERE state IN ('done', 'dead')"
            )
            return {id_: tuple(rest) for id_, *rest in found}

    def teardown(self) -> None:
        if not hasattr(self, "outbox"):
            return
        try:
            if self.place.wire:
                self.place.wire.clear()
            for _ in range(12):
                self.now += 61_000
                upkeep.reap(self.relays[0]._store, self.now, LEASE_MS)
                while sum(relay.run_once(self.now) for relay in self.relays):
                    pass
            counts = self.outbox.counts()
            note(f"{counts}, bad rows {self.bad}")
            assert counts["pending"] == counts["claimed"] == 0
            assert self.place.documents(self.index) == self.expected
        finally:
            self.place.drop(self.index)
            self.outbox.close()
            self.outbox.engine.dispose()
            self._directory.cleanup()


def test_any_history_ends_with_index_and_rows_equal(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    # A failing history is made shorter for five minutes otherwise; the one that is found is printed in any case, with
    # the line that replays it.
    monkeypatch.setattr(hypothesis_engine, "MAX_SHRINKING_SECONDS", SHRINK_FOR_S)
    History.place = place
    run_state_machine_as_test(
        History,
        settings=settings(
            max_examples=FACTOR * (30 if place.wire else 70),
            stateful_step_count=25,
            deadline=None,
            print_blob=True,
            phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
