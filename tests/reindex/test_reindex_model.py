"""Random histories of an index that is rebuilt, again and again, while its rows are written, delivered and delayed."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
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

from outbox import OutboxRepository, schema, sqlite
from outbox.entities import loader
from outbox.errors import ReindexFailed
from outbox.reindex import drop_old, roll_back
from outbox.reindex.selection import Selection
from outbox.reindex.work import Progress
from outbox.relay.requests import Answer, Request
from outbox.store import jobs, operators, upkeep
from outbox.store.models import now_ms
from tests.reindex.world import World
from tests.support import FACTOR
from tests.support.models import Contact
from tests.support.outbox import Outbox
from tests.support.places import ClusterPlace, EmbeddedPlace, Place

pytestmark = pytest.mark.slow

LEASE_MS = 60_000
SHRINK_FOR_S = 40
EXAMPLES = {"embedded": 25, "elasticsearch": 4}
numbers = st.integers(1, 5)
Steps = Iterator[Progress]


class Reading:
    """Pages of the scan, with something that happens after one was read and before it is sent."""

    def __init__(self) -> None:
        self.then: list[Callable[[], None]] = []
        self._page, self._patch = loader.page, pytest.MonkeyPatch()
        self._patch.setattr(loader, "page", self.page)

    def page(self, *arguments: Any) -> Any:
        found = self._page(*arguments)
        if self.then:
            self.then.pop()()
        return found

    def end(self) -> None:
        self._patch.undo()


class Rebuilt(RuleBasedStateMachine):
    """Contacts, a relay and one that falls asleep, and reindexes that are left, gone on with and taken back.

    Time is a number. `place_of` makes an empty destination; the test sets it, and the clock that reindexes read.
    """

    place_of: Callable[[Path], Place]
    clock: list[int]

    @initialize(skip=st.booleans())
    def begin(self, skip: bool) -> None:
        self._directory = tempfile.TemporaryDirectory()
        path = Path(self._directory.name)
        engine = create_engine(f"sqlite:///{path / 'app.db'}")
        sqlite.prepare(engine)
        schema.upgrade(engine)
        self.clock[:] = [now_ms()]
        self.outbox, self.place = Outbox(engine), type(self).place_of(path)
        self.world = World(self.outbox, self.place, skip_unchanged=skip)
        self.reading = Reading()
        self.sleeper = self.world.another_relay()
        self.asleep: list[Request] = []
        self.unrecorded: list[Answer] = []
        self.steps: Steps | None = None
        self.zombies: list[Steps] = []
        for number in (1, 2, 3):
            self.world.save(number, "first")
        self.deliver()

    @property
    def now(self) -> int:
        return self.clock[0]

    # -- the application, and its relays

    @rule(number=numbers, name=st.sampled_from("abc"), tenant=st.sampled_from(["t1", "t2"]), archived=st.booleans())
    def save(self, number: int, name: str, tenant: str, archived: bool) -> None:
        self.world.save(number, name, tenant=tenant, archived=archived)

    @rule(number=numbers)
    def delete(self, number: int) -> None:
        with suppress(Exception):  # there is no such contact
            self.world.delete(number)

    @rule()
    def deliver(self) -> None:
        while self.world.relay.run_once(self.now):
            pass

    @rule(seconds=st.sampled_from([1, 3, 9, 61]))
    def time_passes(self, seconds: int) -> None:
        self.clock[0] += seconds * 1_000

    @rule()
    def expired_leases_are_reaped(self) -> None:
        upkeep.reap(self.world.relay._store, self.now, LEASE_MS)

    @rule(number=numbers, name=st.sampled_from("abc"))
    def save_where_the_registry_is_not_known(self, number: int, name: str) -> None:
        """The row holds the document as it was then."""
        with self.outbox.sessions.begin() as session:
            found = session.get(Contact, number)
            if found is not None and not found.archived:
                found.name, tenant = name, found.tenant
                document = {"name": name, "tenantId": tenant}
                OutboxRepository(session).index("contacts", f"2:{tenant}:{number}", document, tenant_id=tenant)

    @rule()
    def operation_fails_by_itself(self) -> None:
        self.place.fail(times=1)

    @rule()
    def relay_falls_asleep_with_its_claim(self) -> None:
        if request := self.sleeper._next_request(self.now):
            self.asleep.append(request)

    @rule()
    def it_wakes_up_and_sends(self) -> None:
        if self.asleep:
            self.unrecorded.append(self.sleeper._send(self.asleep.pop()))

    @rule()
    def it_records(self) -> None:
        answers = [self.unrecorded.pop()] if self.unrecorded else []
        while answers:
            answers += [self.sleeper._send(each) for each in self.sleeper._settle(answers.pop(), self.now)]

    def _all_awake(self) -> None:
        while self.asleep or self.unrecorded:
            self.it_wakes_up_and_sends()
            self.it_records()

    # -- the reindexes

    @property
    def job(self) -> Any:
        return jobs.open_job(self.world.store, "contacts")

    @precondition(lambda self: self.steps is None)
    @rule(
        keep_old=st.booleans(),
        in_place=st.sampled_from([False, False, True]),
        between=st.lists(st.tuples(numbers, st.sampled_from(["change", "delete", "forget"])), max_size=3),
    )
    def reindex_begins_or_is_gone_on_with(self, keep_old: bool, in_place: bool, between: list[tuple[int, str]]) -> None:
        """`between`: what happens to contacts when a page of the scan has been read, and is not sent yet."""
        self.reading.then = [partial(self._change_between, *each) for each in between]
        job = self.job
        chosen = Selection("contacts", (), in_place=in_place, keep_old=keep_old and not in_place)
        if job is None and jobs.kept_index(self.world.store, "contacts"):
            self._all_awake()  # whoever removes an index waits for claims that knew it
        reindexer = self.world.reindexer()
        self.steps = reindexer.resume(job) if job else reindexer.run(reindexed(self.world, chosen))
        self.reindex_takes_steps(1)

    def _change_between(self, number: int, how: str) -> None:
        if how == "change":
            self.world.save(number, "between")
            self.deliver()
            return
        self.delete(number)
        self.deliver()
        if how == "forget" and self.place.wire is None and not self.asleep:  # what is in the air might come back
            for index in self.place.indexes():
                self.place.forget_deletes(index)

    @precondition(lambda self: self.steps is not None)
    @rule(number=st.integers(1, 12))
    def reindex_takes_steps(self, number: int) -> None:
        for _ in range(number):
            if self.steps is None:
                return
            if (job := self.job) is not None and job.state != "running":
                self._all_awake()  # as above
            try:
                next(self.steps)
            except StopIteration:
                self.steps = None
            except ReindexFailed as error:
                note(f"reindex: {error}")
                # The last check finds nothing; and what is refused for good only fails by itself.
                assert not re.search("differs|holds|would miss", str(error))
                self.steps = None

    @precondition(lambda self: self.steps is not None)
    @rule()
    def reindex_is_killed(self) -> None:
        assert self.steps is not None
        self.steps.close()  # type: ignore[attr-defined]
        self.steps = None

    @precondition(lambda self: self.steps is not None)
    @rule()
    def reindex_stalls_past_its_lease(self) -> None:
        assert self.steps is not None
        self.zombies.append(self.steps)
        self.steps = None
        self.clock[0] += LEASE_MS + 1

    @precondition(lambda self: self.zombies)
    @rule()
    def stalled_reindex_wakes_up(self) -> None:
        """It goes on only if nobody has taken its job."""
        stalled = self.zombies.pop()
        if self.steps is None and self.job is not None:
            self.steps = stalled
            self.reindex_takes_steps(1)
            return
        self._all_awake()
        with suppress(StopIteration, ReindexFailed):
            for _ in range(3):
                next(stalled)
        stalled.close()  # type: ignore[attr-defined]

    @precondition(lambda self: self.steps is None and self.job is not None and not self.zombies)
    @rule()
    def reindex_is_cancelled(self) -> None:
        self._all_awake()
        with suppress(ReindexFailed):  # too late
            self.world.reindexer().cancel(self.job.id)

    @precondition(lambda self: self.job is None and jobs.kept_index(self.world.store, "contacts"))
    @rule(back=st.booleans())
    def kept_index_is_returned_to_or_dropped(self, back: bool) -> None:
        self._all_awake()
        _, refused = jobs.kept_index(self.world.store, "contacts") or ("", 0)
        if back and not refused:
            roll_back(self.world.store, self.place.destination, "contacts")
        else:
            drop_old(self.world.store, self.place.destination, "contacts")

    # -- what must hold

    @invariant()
    def readers_have_one_index(self) -> None:
        if hasattr(self, "world"):
            assert len(self.world.readers()) == 1

    def _end(self) -> None:
        self.place.fail(times=0)
        self.reading.then.clear()
        for _ in range(8):
            self._all_awake()
            self.expired_leases_are_reaped()
            self.deliver()
            operators.retry_dead(self.world.relay._store, [row["id"] for row in self.outbox.dead()], self.now)
            self.clock[0] += LEASE_MS + 1

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self._end()
            if self.steps is None and self.job is not None:
                self.steps = self.world.reindexer().resume(self.job)
            while self.steps is not None:
                self.reindex_takes_steps(1)
                self.deliver()
            for each in self.zombies:
                each.close()  # type: ignore[attr-defined]
            self._end()
            note(f"{self.outbox.counts()}, {jobs.every(self.world.store)}")
            assert self.job is None
            assert self.outbox.counts()["pending"] == self.outbox.counts()["claimed"] == 0
            live, kept = self.world.store.targets()["contacts"], jobs.kept_index(self.world.store, "contacts")
            self.world.assert_in_step(live)
            assert self.place.indexes() == sorted([live, *([kept[0]] if kept else [])])
            if kept and not kept[1]:
                roll_back(self.world.store, self.place.destination, "contacts")
                self.world.assert_in_step(kept[0])
        finally:
            self.reading.end()
            self.world.store.close()
            self.outbox.close()
            self.outbox.engine.dispose()
            self._directory.cleanup()


def reindexed(world: World, chosen: Selection) -> Selection:
    """The same with its entities; unless an old index is still kept, which has to go before the next reindex."""
    if jobs.kept_index(world.store, "contacts"):
        drop_old(world.store, world.place.destination, "contacts")
    entities = tuple(world.registry.of_index("contacts"))
    return Selection("contacts", entities, in_place=chosen.in_place, keep_old=chosen.keep_old)


@pytest.mark.parametrize("kind", ["embedded", pytest.param("elasticsearch", marks=pytest.mark.elasticsearch)])
def test_any_history_with_reindexes_ends_with_index_and_database_equal(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hypothesis_engine, "MAX_SHRINKING_SECONDS", SHRINK_FOR_S)
    monkeypatch.setattr("outbox.reindex.steps.PAGE_ROWS", 2)
    monkeypatch.setattr("outbox.reindex.steps.LISTED_ROWS", 2)
    for module in ("steps", "work", "reindexer"):
        monkeypatch.setattr(f"outbox.reindex.{module}.LOOK_EVERY_S", 0.001)
    monkeypatch.setattr("outbox.reindex.writer.FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("outbox.reindex.writer.FAILED_PAUSE_S", 0.001)
    monkeypatch.setattr(Rebuilt, "clock", clock := [0], raising=False)
    for module in ("work", "reindexer"):
        monkeypatch.setattr(f"outbox.reindex.{module}.now_ms", lambda: clock[0])
    places: list[Place] = []

    def empty(path: Path) -> Place:
        if kind == "elasticsearch":
            parts = [request.getfixturevalue(name) for name in ("destination", "node", "proxy")]
            parts[1].wipe()
            parts[2].clear()
            return ClusterPlace(*parts)
        for each in places:
            each.destination.close()
        places[:] = [EmbeddedPlace(path / "search.db")]
        return places[0]

    monkeypatch.setattr(Rebuilt, "place_of", staticmethod(empty), raising=False)
    run_state_machine_as_test(
        Rebuilt,
        settings=settings(
            max_examples=FACTOR * EXAMPLES[kind],
            stateful_step_count=30,
            deadline=None,
            print_blob=True,
            phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
    for each in places:
        each.destination.close()
