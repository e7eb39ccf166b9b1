"""Random histories of an entity with `skip_unchanged`: whatever comes late, the index ends as the database."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import engine as hypothesis_engine
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from sqlalchemy import create_engine

from outbox import schema, sqlite
from outbox.destinations.base import Operation
from outbox.relay.requests import Answer, Request
from outbox.store import operators
from tests.support import FACTOR
from tests.support.models import Contact
from tests.support.outbox import Outbox
from tests.support.places import Place
from tests.support.proxy import bulk, refuse, reply, swallow
from tests.support.touching import TARGET, Touched

pytestmark = pytest.mark.slow

SHRINK_FOR_S = 40
MAPPINGS = {"properties": {"name": {"type": "boolean"}}}
numbers = st.integers(1, 2)
names = st.sampled_from(["true", "false"])  # so few that documents come to be as they were
BAD = "neither"  # the mapping refuses it


class History(RuleBasedStateMachine):
    """Two relays and one that falls asleep; time is a number. `place` is set by the test."""

    place: Place
    skipped = 0

    @initialize()
    def begin(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        engine = create_engine(f"sqlite:///{Path(self._directory.name) / 'app.db'}")
        sqlite.prepare(engine)
        schema.upgrade(engine)
        self.outbox = Outbox(engine)
        self.app = Touched(self.outbox, self.place, mappings=MAPPINGS)
        self.sleeper = self.app.another_relay()
        self.asleep: list[Request] = []
        self.unrecorded: list[Answer] = []
        self.in_the_air: list[Sequence[Operation]] = []
        for number in (1, 2):
            self.app.save(number, "true")
        self.deliver()
        unchanged = self.app.touch(1)
        self.deliver()
        assert self.app.ends(unchanged) == ["unchanged"]  # so that there is something to go wrong

    @rule(number=numbers, name=names)
    def save(self, number: int, name: str) -> None:
        self.app.save(number, name)

    @rule(number=numbers)
    def touch(self, number: int) -> None:
        self.app.touch(number)

    @rule(number=numbers)
    def save_what_the_mapping_refuses(self, number: int) -> None:
        self.app.save(number, BAD)

    @rule(number=numbers)
    def delete(self, number: int) -> None:
        with suppress(Exception):  # there is no such contact
            self.app.delete(number)

    @rule()
    def deliver(self) -> None:
        self.app.deliver()

    @rule(seconds=st.sampled_from([1, 3, 9, 61]))
    def time_passes(self, seconds: int) -> None:
        self.app.now += seconds * 1_000

    @rule()
    def leases_end(self) -> None:
        self.app.lease_ends()

    @rule()
    def relay_dies_with_its_request_in_the_air(self) -> None:
        self.in_the_air.append(self.app.relay_dies())

    @rule()
    def late_request_arrives(self) -> None:
        if self.in_the_air:
            self.app.arrives(self.in_the_air.pop(0))

    @rule()
    def relay_falls_asleep_with_its_claim(self) -> None:
        if request := self.sleeper._next_request(self.app.now):
            self.asleep.append(request)

    @rule()
    def it_wakes_up_and_sends(self) -> None:
        if self.asleep:
            self.unrecorded.append(self.sleeper._send(self.asleep.pop()))

    @rule()
    def it_records(self) -> None:
        answers = [self.unrecorded.pop()] if self.unrecorded else []
        while answers:
            answers += [self.sleeper._send(each) for each in self.sleeper._settle(answers.pop(), self.app.now)]

    @rule(number=numbers)
    def pending_rows_are_purged_and_their_contact_is_written_once_more(self, number: int) -> None:
        """Of those that were sent the request may come late."""
        operators.purge(self.app.store, operators.pending(self.app.store, document=str(number)))
        self.app.touch(number)

    @rule(discard=st.booleans())
    def dead_rows_are_discarded_or_retried(self, discard: bool) -> None:
        ids = [row["id"] for row in self.outbox.dead()]
        if discard:
            operators.discard_dead(self.app.store, ids)
        else:
            operators.retry_dead(self.app.store, ids, self.app.now)

    @rule()
    def request_dies_of_its_answer(self) -> None:
        """A row ends as dead, whatever became of its request."""
        self.in_the_air.append(self.app.relay_dies())
        self._let_die()
        for number in (1, 2):
            self.app.touch(number)

    @rule(number=numbers, name=names, end=st.sampled_from(["claimed", "dead", "gone"]))
    def change_is_sent_and_taken_back(self, number: int, name: str, end: str) -> None:
        """So that a document comes to be as it was. The request may come late, whatever has become of its row."""
        self.app.save(number, name)
        self.in_the_air.append(self.app.relay_dies())
        if end == "dead":
            self._let_die()
        elif end == "gone":
            self.app.lease_ends()
            operators.purge(self.app.store, operators.pending(self.app.store, document=str(number)))
        self.app.save(number, "false" if name == "true" else "true")

    def _let_die(self) -> None:
        self.outbox.raw(
            "UPDATE outbox_events SET state = 'dead', claim_token = NULL, claimed_by = NULL, lease_expires_at = NULL,"
            " error_type = 'poison', error = '', finished_at = 1 WHERE state = 'claimed' AND claimed_by = 3"
        )

    @precondition(lambda self: self.place.wire)
    @rule()
    def requests_of_several_operations_are_too_large(self) -> None:
        """One that is too large by itself dies, and its document is not as the database says any more."""
        assert self.place.wire
        self.place.wire.on(lambda request: request.is_bulk and request.body.count(b'"_id"') > 1, reply(413), times=1)

    @precondition(lambda self: self.place.wire)
    @rule(fault=st.sampled_from([refuse, swallow, reply(503)]), times=st.integers(1, 2))
    def requests_fail(self, fault: Any, times: int) -> None:
        assert self.place.wire
        self.place.wire.on(bulk, fault, times=times)

    @precondition(lambda self: self.place.wire)
    @rule(fault=st.sampled_from([refuse, reply(503), reply(403)]))
    def reads_fail(self, fault: Any) -> None:
        assert self.place.wire
        self.place.wire.on(lambda request: request.path.startswith("/_mget"), fault, times=1)

    def teardown(self) -> None:
        if not hasattr(self, "app"):
            return
        try:
            if self.place.wire:
                self.place.wire.clear()
            self._end()
            assert self.outbox.counts()["pending"] == self.outbox.counts()["claimed"] == 0
            with self.app.sessions() as session:
                expected = {str(each.id): each.name for each in session.query(Contact) if each.name != BAD}
                refused = {str(each.id) for each in session.query(Contact) if each.name == BAD}
            held = {each: found["name"] for each, found in self.place.documents("contacts").items()}
            note(f"{self.outbox.counts()}")
            assert {each: name for each, name in held.items() if each not in refused} == expected
        finally:
            self.place.destination.drop_index(TARGET)  # first: a history after this one that failed is one of its own
            type(self).skipped += self._count_skipped()
            self.app.close()
            self.outbox.close()
            self.outbox.engine.dispose()
            self._directory.cleanup()

    def _end(self) -> None:
        while self.asleep or self.unrecorded:
            self.it_wakes_up_and_sends()
            self.it_records()
        for _ in range(8):
            self.app.lease_ends()
            self.deliver()
        while self.in_the_air:
            self.late_request_arrives()

    def _count_skipped(self) -> int:
        with self.outbox.engine.connect() as connection:
            found = "SELECT count(*) FROM outbox_events WHERE outcome = 'unchanged'"
            return int(connection.exec_driver_sql(found).scalar_one())


def test_any_history_ends_with_index_and_database_equal(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypothesis_engine, "MAX_SHRINKING_SECONDS", SHRINK_FOR_S)
    History.place, History.skipped = place, 0
    run_state_machine_as_test(
        History,
        settings=settings(
            max_examples=FACTOR * (6 if place.wire else 60),
            stateful_step_count=30,
            deadline=None,
            print_blob=True,
            phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"{History.skipped} rows were done as unchanged")
