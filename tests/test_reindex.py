"""An index is rebuilt under traffic, and holds what the database says at every step of it; on both destinations."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from loguru import logger
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from outbox import ConfigurationError, EntityRegistry
from outbox.destinations.base import Destination, Listed, Operation, Outcome, OutcomeKind
from outbox.entities.registry import Part
from outbox.errors import DatabaseUnavailable, DestinationError, DestinationUnanswered, ReindexFailed
from outbox.maintenance.scheduler import Maintenance
from outbox.reindex import reindexer as rebuilding
from outbox.reindex.reindexer import Progress, Reindexer, Selection, reindex
from outbox.reindex.writer import Pace
from outbox.relay.relay import Relay
from outbox.store import jobs, operators, verifications
from outbox.store.jobs import Job, JobLost
from outbox.store.models import JobState, now_ms, version
from outbox.store.store import Store
from tests.support import LIMIT_S
from tests.support.outbox import Outbox, settings
from tests.support.places import Place
from tests.support.relays import until

FIRST, SECOND = "contacts-000001", "contacts-000002"


class Base(DeclarativeBase):
    pass


class Contact(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    tenant: Mapped[str] = mapped_column(default="t1")
    archived: Mapped[bool] = mapped_column(default=False)
    changed: Mapped[datetime] = mapped_column(default=datetime(2026, 1, 1))


class Company(Base):
    __tablename__ = "companies"
    code: Mapped[str] = mapped_column(primary_key=True)
    region: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class World:
    """An application with contacts and companies, a relay that the test drives, and reindexes."""

    def __init__(self, outbox: Outbox, place: Place, *, tenancy: str = "prefixed", **options: Any) -> None:
        Base.metadata.create_all(outbox.engine)
        self.outbox, self.place = outbox, place
        self.registry = self.registered(tenancy=tenancy, **options)
        self.sessions: sessionmaker[Session] = self.registry.capture(sessionmaker(outbox.engine))
        self.store = Store(outbox.engine)
        self.relay = self.another_relay()

    @staticmethod
    def registered(**options: Any) -> EntityRegistry:
        registry = EntityRegistry()
        registry.add(
            Contact,
            index="contacts",
            fields=["name"],
            tenant="tenant",
            when=lambda contact: not contact.archived,
            watch=["archived"],
            changed_at="changed",
            **options,
        )
        return registry

    def another_relay(self, destination: Destination | None = None) -> Relay:
        return self.outbox.relay(destination or self.place.destination, 2, self.registry)

    def save(self, number: int, name: str, **values: Any) -> None:
        with self.sessions.begin() as session:
            session.merge(Contact(id=number, name=name, **values))

    def delete(self, number: int) -> None:
        with self.sessions.begin() as session:
            session.delete(session.get_one(Contact, number))

    def deliver(self) -> None:
        while self.relay.run_once():
            pass

    def filled(self, rows: int = 5) -> World:
        with self.sessions.begin() as session:
            session.add_all(Contact(id=number, name=f"Ada {number}") for number in range(1, rows + 1))
        self.deliver()
        return self

    def reindexer(self, destination: Destination | None = None, registry: EntityRegistry | None = None) -> Reindexer:
        return Reindexer(self.store, destination or self.place.destination, registry or self.registry)

    def rebuild(self, at: dict[str, Callable[[], object]] | None = None, **given: Any) -> list[Progress]:
        """Reindex contacts to the end; `at`: what else happens when a step has begun. The relay works all the while."""
        return list(self.steps(at or {}, **given))

    def steps(self, at: dict[str, Callable[[], object]], **given: Any) -> Iterator[Progress]:
        phase = ""
        given = {"entities": ["contacts"]} | given
        for progress in reindex(self.store, self.place.destination, self.registry, **given):
            if progress.phase != phase:
                phase = progress.phase
                at.get(phase, lambda: None)()
            yield progress
            self.deliver()

    @property
    def job(self) -> Job:
        return jobs.every(self.store)[-1]

    def expected(self) -> dict[str, Any]:
        found = {}
        for entity in self.registry.of_index("contacts"):
            rows = self.registry.page(self.store.connection, entity, Part(), None, 10_000)
            for row in rows:
                if row.place and isinstance(row.document, bytes):
                    found[row.place.document_id] = json.loads(row.document)
        return found

    def readers(self) -> tuple[str, ...]:
        return self.place.destination.inspect_index("contacts", FIRST).readers

    def assert_in_step(self, live: str = SECOND) -> None:
        self.deliver()
        assert self.place.documents("contacts") == self.expected()
        assert self.readers() == (live,)
        assert self.store.targets()["contacts"] == live
        assert self.outbox.counts()["dead"] == 0


class Backup:
    """Of the application's database."""

    def __init__(self, outbox: Outbox) -> None:
        self._file = Path(str(outbox.engine.url.database))
        self._copy = self._file.with_name("backup.db")

    def take(self) -> None:
        self._copied(self._file, self._copy)

    def restore(self) -> None:
        self._copied(self._copy, self._file)

    @staticmethod
    def _copied(from_: Path, to: Path) -> None:
        with closing(sqlite3.connect(from_)) as source, closing(sqlite3.connect(to)) as target:
            source.backup(target)


@pytest.fixture
def said() -> list[str]:
    lines: list[str] = []
    logger.add(lambda line: lines.append(str(line).strip()), format="{level} {message}")
    return lines


@pytest.fixture
def world(outbox: Outbox, place: Place) -> Iterator[World]:
    made = World(outbox, place)
    yield made
    made.store.close()


def test_rebuilt_index_holds_what_the_database_says_and_nothing_else(world: World) -> None:
    world.filled()
    world.outbox.raw("UPDATE contacts SET name = 'Grace' WHERE id = 1")  # past the outbox, as are these:
    world.outbox.raw("DELETE FROM contacts WHERE id = 2")
    world.outbox.raw("INSERT INTO contacts VALUES (9, 'Alan', 't2', false, '2026-01-01')")
    progress = world.rebuild()
    assert progress[-1].phase == "drop"
    assert (world.job.state, world.job.documents, world.job.total) == ("done", 5, 5)
    assert world.place.get("contacts", "2:t1:1") == {"name": "Grace", "tenantId": "t1"}
    world.assert_in_step()
    assert world.place.indexes() == [SECOND]
    assert world.store.copies() == {}
    world.save(1, "Ada")
    world.assert_in_step()
    world.rebuild()
    world.assert_in_step("contacts-000003")


def test_changes_at_every_step_arrive(world: World) -> None:
    world.filled(8)
    at: dict[str, Callable[[], object]] = {}
    for number, phase in enumerate(["create", "scan", "wait", "sweep", "check", "swap", "drop"], 1):

        def change(number: int = number) -> None:
            world.save(number, f"changed {number}")
            world.save(20 + number, "new")
            world.save(40 + number, "short-lived")
            world.delete(40 + number)

        at[phase] = change
    world.rebuild(at)
    assert world.job.state == "done"
    world.assert_in_step()


# -- the order of things -------------------------------------------------------------------------------------------


def test_row_that_waits_for_its_retry_while_the_index_is_rebuilt_brings_nothing_old_back(world: World) -> None:
    world.filled(3)
    world.save(1, "late")
    world.place.fail(times=1)
    world.relay.run_once(now := now_ms())
    assert world.outbox.counts()["pending"] == 1  # until its retry, two seconds from now
    world.delete(1)
    seen: list[str] = []
    for progress in reindex(world.store, world.place.destination, world.registry, entities=["contacts"]):
        if "not delivered yet" in progress.note:
            seen.append(progress.phase)
            if seen.count("wait") == 3:
                world.relay.run_once(now + 3_000)
                world.deliver()
    assert seen.count("wait") >= 3
    world.assert_in_step()
    assert world.place.get("contacts", "2:t1:1") is None


def test_claim_from_before_both_that_is_delivered_after_the_scan(world: World) -> None:
    """Its relay knows the old index only, and is slow: the swap waits for it."""
    world.filled(3)
    world.save(1, "claimed before")
    slow = world.another_relay()
    request = slow._next_request(now_ms())
    assert request is not None
    assert request.claim.copies == {}
    waited = 0
    for progress in reindex(world.store, world.place.destination, world.registry, entities=["contacts"]):
        if progress.phase == "wait":
            waited += 1
            assert world.readers() == (FIRST,)
            if waited == 3:
                slow._settle(slow._send(request), now_ms())
    assert waited >= 3
    world.assert_in_step()


def test_claim_from_before_the_swap_is_delivered_after_it(world: World) -> None:
    """The old index stays until nobody sends to it, and what the claim says is in the new one."""
    world.filled(3)
    slow = world.another_relay()
    requests: list[Any] = []

    def claim() -> None:
        world.save(1, "in flight")
        requests.append(slow._next_request(now_ms()))

    waited = 0
    for progress in world.steps({"swap": claim}):
        if "still under way" in progress.note:
            waited += 1
            assert world.readers() == (SECOND,)
            assert FIRST in world.place.indexes()
            if waited == 3:
                (request,) = requests
                assert request.claim.targets["contacts"] == FIRST
                assert request.claim.copies["contacts"] == (SECOND,)
                slow._settle(slow._send(request), now_ms())
    assert waited >= 3
    assert world.place.get("contacts", "2:t1:1") == {"name": "in flight", "tenantId": "t1"}
    assert slow.breakers() == []
    world.assert_in_step()


def test_document_that_was_changed_by_hand_is_mended(world: World) -> None:
    world.filled(3)
    version = (world.place.version("contacts", "2:t1:1") or 0) + 40
    forged = Operation("contacts", FIRST, "2:t1:1", version, b'{"name":"forged","tenantId":"t1"}')
    world.place.destination.apply([forged, Operation("contacts", FIRST, "stray", version + 1, b'{"name":"stray"}')])
    assert "stray" in world.place.documents("contacts")
    world.rebuild(in_place=True)
    assert (world.job.state, world.job.removed) == ("done", 1)
    world.assert_in_step(FIRST)
    world.save(1, "after")  # newer than the version that was found
    world.assert_in_step(FIRST)


def test_epoch_that_a_repair_raises_while_the_index_is_rebuilt(world: World) -> None:
    world.filled(3)

    def advance() -> None:
        world.save(1, "before")
        assert verifications.raise_above(world.store, version(2, 1), now_ms()) == 3
        world.save(2, "after")

    world.rebuild({"sweep": advance})
    world.assert_in_step()


class Reading:
    """The registry, with something that happens after a page was read and before it is written."""

    def __init__(self, registry: EntityRegistry, then: Callable[[], None]) -> None:
        self._registry, self._then = registry, then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._registry)

    def page(self, *arguments: Any) -> Any:
        found = self._registry.page(*arguments)
        then, self._then = self._then, lambda: None
        then()
        return found


def test_delete_between_reading_and_writing_whose_tombstone_is_forgotten(world: World) -> None:
    """The document comes back with the page, below anybody's version; the sweep finds it."""
    world.filled(3)

    def delete() -> None:
        world.delete(1)
        world.save(2, "changed")
        world.save(3, "Ada 3", tenant="t2")
        world.deliver()
        world.place.forget_deletes(SECOND)

    registry: Any = Reading(world.registry, delete)
    for _ in reindex(world.store, world.place.destination, registry, entities=["contacts"]):
        world.deliver()
    assert world.job.removed == 2
    world.assert_in_step()


def test_create_while_the_sweep_looks_stays(world: World) -> None:
    world.filled(3)
    destination = world.place.destination
    pages, relay = destination.pages, world.another_relay()  # one of its own: the list is read by another thread

    def create(number: int, name: str) -> None:
        world.save(number, name)
        while relay.run_once():
            pass

    def slow(name: str, size: int, **given: Any) -> Iterator[Any]:
        for page in pages(name, size, **given):
            create(9, "just created")
            yield {**page, "2:t1:9": Listed(1, "t1")}  # as if it had been there when the page was made
        create(8, "and one more")

    destination.pages = slow  # type: ignore[method-assign,assignment]
    world.rebuild()
    world.assert_in_step()


def test_document_that_is_excluded_archived_or_another_tenants_is_not_in_the_new_index(world: World) -> None:
    world.filled(4)
    world.rebuild(
        {
            "scan": lambda: world.save(1, "archived", archived=True),
            "wait": lambda: world.save(2, "moved", tenant="t2"),
            "sweep": lambda: world.delete(3),
        }
    )
    world.assert_in_step()
    assert sorted(world.place.documents("contacts")) == ["2:t1:4", "2:t2:2"]


def test_partial_update_reaches_an_index_that_has_not_got_the_document_yet(world: World) -> None:
    """Of an application that writes without the registry: what came of it in the live index goes to the other too."""
    world.filled(2)

    def update() -> None:
        world.outbox.raw("UPDATE contacts SET name = 'by hand' WHERE id = 1")
        world.outbox.update("contacts", "2:t1:1", {"name": "by hand"})
        world.deliver()

    registry: Any = Reading(world.registry, update)
    for _ in reindex(world.store, world.place.destination, registry, entities=["contacts"]):
        world.deliver()
    world.assert_in_step()


def test_partial_update_that_the_live_index_fails_at_first_is_in_the_new_one_in_the_end(world: World) -> None:
    """What the live index holds without it must not come to the other one under its version: nothing would mend it."""
    world.filled(2)
    fails: Any = _Refusing(world.place.destination, FIRST, OutcomeKind.FAILED)
    rows: list[int] = []

    def update() -> None:
        world.outbox.raw("UPDATE contacts SET name = 'by hand' WHERE id = 1")
        rows.append(world.outbox.update("contacts", "2:t1:1", {"name": "by hand"}))
        world.another_relay(fails).run_once()
        assert world.outbox.row(rows[0])["attempts"] == 1
        while world.relay.run_once(now_ms() + 10_000):
            pass
        assert world.outbox.outcome(rows[0]) == "applied"

    world.rebuild({"swap": update})
    world.assert_in_step()


def test_partial_update_that_an_index_rebuilt_in_place_holds_already_is_history_and_not_dead(world: World) -> None:
    """It waited when the scan read what it says from the database, and gave the document a higher version."""
    world.filled(2)
    world.outbox.raw("UPDATE contacts SET name = 'by hand' WHERE id = 1")
    row = world.outbox.update("contacts", "2:t1:1", {"name": "by hand"})
    for progress in reindex(world.store, world.place.destination, world.registry, entities=["contacts"], in_place=True):
        if progress.phase == "wait":
            world.deliver()
    assert (world.outbox.state(row), world.outbox.outcome(row)) == ("done", "superseded")
    world.assert_in_step(FIRST)


# -- several entities, tenants and parts ---------------------------------------------------------------------------


def test_entities_that_share_an_index_are_rebuilt_together(outbox: Outbox, place: Place) -> None:
    world = World(outbox, place, tenancy="shared")
    world.registry.add(Company, index="contacts", fields=["name"])
    world.filled(3)
    with world.sessions.begin() as session:
        session.add_all(Company(code=f"c|{n}", region=n, name="Acme") for n in range(4))
    world.rebuild()
    assert len(world.place.documents("contacts")) == 7
    world.assert_in_step()
    world.store.close()


def test_pages_end_in_the_middle_of_equal_first_columns(
    outbox: Outbox, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.reindex.steps.PAGE_ROWS", 2)
    world = World(outbox, place, tenancy="shared")
    world.registry.add(Company, index="contacts", fields=["name"])
    world.filled(5)
    with world.sessions.begin() as session:
        session.add_all(Company(code=code, region=n, name="Acme") for code in ("a", "b") for n in (10, 9, 2))
    assert world.rebuild()[-1].rows == 11
    world.assert_in_step()
    world.store.close()


def test_tenant_alone_is_rebuilt_in_place_and_others_are_not_touched(world: World) -> None:
    world.filled(2)
    world.save(3, "of t2", tenant="t2")
    world.save(4, "of t2", tenant="t2")
    world.deliver()
    world.outbox.raw("UPDATE contacts SET name = 'new'")
    world.outbox.raw("DELETE FROM contacts WHERE id IN (2, 4)")
    world.rebuild(tenant="t1")
    assert world.readers() == (FIRST,)
    assert {each: found["name"] for each, found in world.place.documents("contacts").items()} == {
        "2:t1:1": "new",
        "2:t2:3": "of t2",
        "2:t2:4": "of t2",
    }


def test_row_that_left_the_tenant_keeps_its_document(outbox: Outbox, place: Place) -> None:
    """With ids of their own the document says the old tenant; that the row has another one now does not remove it."""
    world = World(outbox, place, tenancy="shared").filled(2)
    world.outbox.raw("UPDATE contacts SET tenant = 't2' WHERE id = 2")
    world.rebuild(tenant="t1")
    assert sorted(world.place.documents("contacts")) == ["1", "2"]
    world.store.close()


def test_index_of_a_tenant_is_rebuilt_as_a_whole(outbox: Outbox, place: Place) -> None:
    world = World(outbox, place, tenancy="index")
    world.save(1, "Ada", tenant="a")
    world.save(2, "Grace", tenant="b")
    world.deliver()
    world.outbox.raw("UPDATE contacts SET name = 'new'")
    world.rebuild(tenant="a")
    targets = world.store.targets()
    assert targets == {"a_contacts": "a_contacts-000002", "b_contacts": "b_contacts-000001"}
    assert world.place.documents("a_contacts") == {"1": {"name": "new", "tenantId": "a"}}
    assert world.place.documents("b_contacts") == {"2": {"name": "Grace", "tenantId": "b"}}
    world.rebuild()
    assert world.place.documents("b_contacts") == {"2": {"name": "new", "tenantId": "b"}}
    world.store.close()


def test_rows_that_changed_since_a_date_are_written_in_place_and_what_is_gone_is_removed(world: World) -> None:
    world.filled(3)
    world.outbox.raw("UPDATE contacts SET name = 'new', changed = '2026-03-01 12:00:00' WHERE id = 1")
    world.outbox.raw("UPDATE contacts SET name = 'not seen' WHERE id = 2")
    world.outbox.raw("DELETE FROM contacts WHERE id = 3")
    world.rebuild(since="2026-03-01")
    assert {each: found["name"] for each, found in world.place.documents("contacts").items()} == {
        "2:t1:1": "new",
        "2:t1:2": "Ada 2",
    }


def test_row_below_the_watermark_that_is_delivered_after_it_is_superseded(world: World) -> None:
    world.filled(2)
    world.save(1, "waits")
    (waiting,) = [row for row in range(1, world.store.highest_id() + 1) if world.outbox.state(row) == "pending"][:1]
    phases = []
    for progress in reindex(world.store, world.place.destination, world.registry, entities=["contacts"], in_place=True):
        phases.append(progress.phase)
        if progress.phase == "wait":
            world.deliver()
    assert "wait" in phases
    assert (world.outbox.state(waiting), world.outbox.outcome(waiting)) == ("done", "superseded")
    world.assert_in_step(FIRST)


# -- back, and the end of the old index ----------------------------------------------------------------------------


def test_kept_old_index_misses_nothing_and_a_rollback_after_traffic_is_a_true_swap_back(world: World) -> None:
    world.filled(4)
    world.rebuild(keep_old=True)
    world.assert_in_step()
    for number in (1, 20):
        world.save(number, "after the swap")
    world.delete(2)
    world.deliver()
    with pytest.raises(ReindexFailed, match="still keeps contacts-000001"):
        world.rebuild()
    assert rebuilding.roll_back(world.store, world.place.destination, "contacts") == (FIRST, 0)
    world.assert_in_step(FIRST)
    world.save(3, "after the rollback")
    world.assert_in_step(FIRST)
    assert rebuilding.roll_back(world.store, world.place.destination, "contacts") == (SECOND, 0)  # and forth
    world.assert_in_step(SECOND)
    assert rebuilding.drop_old(world.store, world.place.destination, "contacts") == FIRST
    world.save(3, "after the drop")
    world.assert_in_step()
    assert world.place.indexes() == [SECOND]
    for back in (rebuilding.roll_back, rebuilding.drop_old):
        with pytest.raises(ReindexFailed, match="keeps no old one"):
            back(world.store, world.place.destination, "contacts")


def test_rollback_that_was_killed_in_the_middle_is_finished_by_the_next(world: World) -> None:
    world.filled(2)
    world.rebuild(keep_old=True)
    world.place.destination.swap("contacts", SECOND, FIRST)  # and here it was killed
    world.save(1, "meanwhile")
    world.deliver()
    rebuilding.roll_back(world.store, world.place.destination, "contacts")
    world.assert_in_step(FIRST)


def test_what_a_kept_old_index_refuses_is_counted_and_nobodys_fault(world: World) -> None:
    world.filled(2)
    world.registry = world.registered(tenancy="prefixed", mappings={"properties": {"name": {"type": "keyword"}}})
    world.registry.capture(world.sessions)
    world.rebuild(keep_old=True)
    relay = world.another_relay(_Refusing(world.place.destination, FIRST))
    world.save(1, "refused by the old one")
    while relay.run_once():
        pass
    world.assert_in_step()
    assert jobs.kept_index(world.store, "contacts") == (FIRST, 1)


# -- what goes wrong ------------------------------------------------------------------------------------------------


class _Refusing:
    """A destination, one of whose indexes refuses or blocks what is sent to it."""

    def __init__(self, to: Destination, target: str, kind: OutcomeKind = OutcomeKind.REJECTED) -> None:
        self._to, self._target, self._kind = to, target, kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._to, name)

    def apply(self, operations: Any) -> list[Outcome]:
        passed = iter(self._to.apply([operation for operation in operations if operation.target != self._target]))
        refused = Outcome(self._kind, "provoked", "no such luck")
        return [refused if operation.target == self._target else next(passed) for operation in operations]


@pytest.mark.parametrize("kind", [OutcomeKind.REJECTED, OutcomeKind.BLOCKED, OutcomeKind.FAILED])
def test_what_only_the_new_index_refuses_fails_the_job_and_no_row(world: World, kind: OutcomeKind) -> None:
    world.filled(3)
    refusing: Any = _Refusing(world.place.destination, SECOND, kind)
    relay = world.another_relay(refusing)
    with pytest.raises(ReindexFailed, match=r"contacts-000002 does not take 2:t1:1.*the index is as it was"):
        for progress in reindex(world.store, world.place.destination, world.registry, entities=["contacts"]):
            if progress.phase == "wait" or progress.phase == "scan":
                world.save(1, "live")
                while relay.run_once():
                    pass
    assert world.job.state == "failed"
    assert relay.breakers() == []
    assert (world.outbox.counts()["pending"], world.outbox.counts()["dead"]) == (0, 0)
    assert world.place.indexes() == [FIRST]
    world.assert_in_step(FIRST)
    world.rebuild()
    world.assert_in_step("contacts-000003")


class _Clock:
    """Stands in for `time`: a pause takes none."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_failures_of_a_few_seconds_end_no_rebuild(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.reindex.writer.time", clock := _Clock())
    world.filled(3)
    world.place.fail(times=3)
    world.rebuild()
    assert (world.job.state, clock.now) == ("done", pytest.approx(1 + 2 + 4))
    world.assert_in_step()


def test_new_index_that_does_not_take_a_document_of_the_scan(world: World) -> None:
    world.filled(3)
    world.registry = world.registered(tenancy="prefixed", mappings={"properties": {"name": {"type": "long"}}})
    with pytest.raises(ReindexFailed, match="contacts-000002 would miss '2:t1:1': document_parsing_exception"):
        world.rebuild()
    assert world.place.indexes() == [FIRST]
    world.registry = world.registered(tenancy="prefixed")
    world.assert_in_step(FIRST)


def test_document_that_cannot_be_made_fails_the_rebuild_and_is_named_in_place(world: World) -> None:
    world.filled(3)

    def broken(contact: Contact) -> dict[str, Any]:
        if contact.id == 2:
            raise KeyError("no such price list")
        return {"name": contact.name}

    registry = EntityRegistry()
    registry.add(Contact, index="contacts", to_document=broken, tenant="tenant", tenancy="prefixed")
    with pytest.raises(ReindexFailed, match="would miss row 2: to_document_failed: KeyError: 'no such price list'"):
        list(reindex(world.store, world.place.destination, registry, entities=["contacts"]))
    list(reindex(world.store, world.place.destination, registry, entities=["contacts"], in_place=True))
    assert (world.job.state, world.job.documents, world.job.refused) == ("done", 2, 1)
    assert world.place.get("contacts", "2:t1:2") is not None


def test_row_that_the_new_index_refuses_at_the_swap_waits_and_dies_by_it(world: World) -> None:
    """Too late to fail the job: the index is live a moment later, and decides then."""
    world.filled(2)
    refusing: Any = _Refusing(world.place.destination, SECOND)
    relay = world.another_relay(refusing)

    def live() -> None:
        world.save(1, "refused")
        while relay.run_once():
            pass
        assert world.outbox.counts()["pending"] > 0

    for progress in reindex(world.store, world.place.destination, world.registry, entities=["contacts"]):
        if progress.phase == "swap":
            live()
    assert world.job.state == "done"
    while relay.run_once(now_ms() + 40_000):
        pass
    assert world.outbox.counts()["dead"] > 0
    assert world.outbox.counts()["pending"] == 0


def test_row_from_before_the_swap_that_the_new_index_refuses_after_it_harms_no_index(world: World) -> None:
    world.filled(2)
    relay = world.another_relay(_Refusing(world.place.destination, SECOND))  # type: ignore[arg-type]
    requests: list[Any] = []

    def claim() -> None:
        world.save(1, "refused")
        requests.append(relay._next_request(now_ms()))

    for progress in world.steps({"swap": claim}):
        if "still under way" in progress.note and requests:
            relay._settle(relay._send(requests.pop()), now_ms())
    assert world.job.state == "done"
    assert world.place.indexes() == [SECOND]
    assert world.outbox.counts()["pending"] == 1  # it is for the new index to say what becomes of it
    while world.relay.run_once(now_ms() + 40_000):
        pass
    world.assert_in_step()


def test_swap_that_was_made_although_its_answer_says_otherwise(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.filled(2)
    swap = world.place.destination.swap

    def unanswered(*names: str, **given: Any) -> None:
        swap(*names, **given)
        raise DestinationError("Connection timeout")

    monkeypatch.setattr(world.place.destination, "swap", unanswered)
    world.rebuild()
    world.assert_in_step()


@pytest.mark.parametrize("call", ["create_index", "finish_index", "count", "drop_index"])
def test_call_that_gets_no_answer_in_time_is_made_again_and_fails_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The destination answers all others meanwhile: one refresh may take longer than a request has."""
    world.filled(2)
    made, called = getattr(world.place.destination, call), 0

    def slow(*arguments: Any) -> Any:
        nonlocal called
        answer = made(*arguments)  # it is carried out nevertheless
        called += 1
        if called == 1:
            raise DestinationUnanswered("Connection timeout")
        return answer

    monkeypatch.setattr(world.place.destination, call, slow)
    world.rebuild()
    assert called >= 2
    world.assert_in_step()
    assert world.place.indexes() == [SECOND]


def test_wait_for_rows_says_that_the_outbox_is_paused(world: World) -> None:
    world.filled(2)
    world.save(1, "held up")
    operators.pause(world.store, "maintenance\nforged", "me", now_ms())
    notes = []
    for progress in reindex(world.store, world.place.destination, world.registry, entities=["contacts"]):
        if progress.note:
            notes.append(progress.note)
            operators.resume(world.store)
            world.deliver()
    assert "the outbox is paused (maintenance\\nforged): run 'outbox-relay resume'" in notes[0]
    world.assert_in_step()


def test_swap_that_comes_when_the_job_has_failed_is_taken_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.filled(2)
    swap = world.place.destination.swap

    def refused(*_: str, **__: Any) -> None:
        raise DestinationError("not now")

    def wait(*_: Any) -> Iterator[None]:
        swap("contacts", FIRST, SECOND)
        monkeypatch.setattr(world.place.destination, "swap", swap)
        yield

    monkeypatch.setattr(world.place.destination, "swap", refused)
    monkeypatch.setattr(rebuilding, "until_claims_end", wait)
    with pytest.raises(ReindexFailed, match="not now"):
        world.rebuild()
    world.save(1, "after")
    world.assert_in_step(FIRST)
    assert world.place.indexes() == [FIRST]


def test_old_index_that_cannot_be_removed_is_removed_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.filled(2)
    with monkeypatch.context() as patched:

        def refused(target: str) -> None:
            raise DestinationError(f"index {target} is being snapshotted")

        def refuse() -> None:
            patched.setattr(world.place.destination, "drop_index", refused)

        with pytest.raises(ReindexFailed, match=r"readers get the new index.*snapshotted"):
            world.rebuild({"swap": refuse})
    assert world.readers() == (SECOND,)
    world.rebuild()
    assert world.job.id == 1
    world.assert_in_step()
    assert world.place.indexes() == [SECOND]


def test_cancelled_job_leaves_the_index_as_it_was(world: World) -> None:
    world.filled(3)
    steps = world.steps({})
    while next(steps).phase != "wait":
        world.save(1, "live")
    assert world.store.copies() == {"contacts": (SECOND,)}
    steps.close()
    assert "is cancelled" in world.reindexer(registry=EntityRegistry()).cancel(world.job.id)
    assert world.store.copies() == {}
    world.assert_in_step(FIRST)
    assert world.place.indexes() == [FIRST]
    with pytest.raises(ReindexFailed, match="has ended already: cancelled"):
        world.reindexer().cancel(world.job.id)
    world.rebuild()
    world.assert_in_step("contacts-000003")


def test_job_that_is_cancelled_while_somebody_works_on_it_is_cleaned_up_by_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.reindex.work.NOTE_EVERY_MS", 0)
    world.filled(3)
    steps = world.steps({})
    next(steps)
    while next(steps).phase != "sweep":
        pass
    jobs.stop(world.store, world.job, JobState.CANCELLING, "cancelled", now_ms(), own=False)
    world.save(1, "live")
    with pytest.raises(ReindexFailed, match="cancelled"):
        list(steps)
    assert world.job.state == "cancelled"
    world.assert_in_step(FIRST)
    assert world.place.indexes() == [FIRST]


PHASES = ["create", "scan", "wait", "sweep", "check", "swap", "drop"]


@pytest.mark.parametrize("phase", PHASES)
def test_job_that_was_left_at_any_step_is_gone_on_with(
    world: World, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.reindex.steps.PAGE_ROWS", 2)
    world.filled(7)
    steps = world.steps({})
    while next(steps).phase != phase:
        pass
    steps.close()
    world.save(1, "meanwhile")
    world.delete(2)
    world.deliver()
    assert jobs.is_abandoned(world.store, world.job, now_ms())
    if phase not in ("swap", "drop"):
        with pytest.raises(ReindexFailed, match="was left unfinished, and was asked for something else"):
            world.rebuild(keep_old=True)
    world.rebuild()
    assert (world.job.id, world.job.state) == (1, "done")
    world.assert_in_step()
    assert world.place.indexes() == [SECOND]


class _Holding:
    """A destination that keeps what is sent for one document of the new index waiting."""

    def __init__(self, to: Destination, document_id: str) -> None:
        self._to, self._document_id = to, document_id
        self.release, self.answered = threading.Event(), threading.Semaphore(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._to, name)

    def apply(self, operations: Any) -> list[Outcome]:
        if any(operation.target == SECOND and operation.document_id == self._document_id for operation in operations):
            assert self.release.wait(LIMIT_S)
        outcomes = self._to.apply(operations)
        self.answered.release()
        return outcomes


def test_rows_do_not_go_to_an_index_whose_watermark_is_not_fixed(world: World) -> None:
    """Whoever takes over at the step `create` makes the index anew: no relay may have begun to write there."""
    world.filled(3)
    world.outbox.raw(
        "CREATE TRIGGER killed BEFORE UPDATE OF watermark ON outbox_reindex_jobs BEGIN SELECT raise(ROLLBACK, 'x'); END"
    )
    with pytest.raises(IntegrityError):
        world.rebuild()
    assert (world.job.state, world.job.phase) == ("running", "create")
    assert world.store.copies() == {}
    world.outbox.raw("DROP TRIGGER killed")
    world.save(1, "meanwhile")
    world.deliver()
    list(world.reindexer().resume(world.job))
    assert world.job.state == "done"
    world.assert_in_step()


def test_relay_that_met_a_locked_database_goes_on_with_the_reindex_later(world: World) -> None:
    world.filled(3)
    steps = world.steps({})
    while next(steps).phase != "scan":
        pass
    steps.close()
    jobs.take(world.store, world.job, "a process that was killed", now_ms() - 1_000, 1)
    locked = [DatabaseUnavailable("database is locked")]

    def interrupt() -> None:
        if locked:
            raise locked.pop()

    def reindexer(store: Store, _: Callable[[], None]) -> Reindexer:
        return Reindexer(store, world.place.destination, world.registry, interrupt=interrupt)

    maintenance = Maintenance(world.outbox.engine, 1, settings(), list, reindexer=reindexer)
    maintenance.reindex()
    assert (world.job.state, world.job.phase, locked) == ("running", "scan", [])
    maintenance.reindex()
    assert world.job.state == "done"
    world.assert_in_step()


def test_job_that_ended_while_the_relay_was_at_another_is_no_news(world: World, said: list[str]) -> None:
    world.registry.add(Company, index="companies", fields=["name"])
    world.filled(3)
    for name in ("contacts", "companies"):
        begun = {"tenant": None, "since": None, "keep_old": False, "adopt": False, "total": 3}
        jobs.begin(world.store, name, f"{name}-000001", f"{name}-000002", **begun)  # type: ignore[arg-type]
    world.outbox.raw("UPDATE outbox_reindex_jobs SET created_at = 0")

    def reindexer(store: Store, interrupt: Callable[[], None]) -> Reindexer:
        world.outbox.raw("UPDATE outbox_reindex_jobs SET state = 'cancelled' WHERE id = 2")
        return Reindexer(store, world.place.destination, world.registry, interrupt=interrupt)

    Maintenance(world.outbox.engine, 1, settings(), list, reindexer=reindexer).reindex()
    assert [job.state for job in jobs.every(world.store)] == ["done", "cancelled"]
    assert [line for line in said if "companies" in line] == []
    assert [line for line in said if "reindex 1 of contacts (into contacts-000002) is done" in line]


def test_page_that_is_not_answered_holds_the_position_back_though_later_ones_are(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever goes on after a kill begins with it."""
    monkeypatch.setattr("outbox.reindex.steps.PAGE_ROWS", 1)
    monkeypatch.setattr("outbox.reindex.work.NOTE_EVERY_MS", 0)
    world.filled(4)
    holding = _Holding(world.place.destination, "2:t1:2")
    seen: list[Any] = []

    def look() -> None:
        for _ in range(3):
            holding.answered.acquire(timeout=LIMIT_S)
        store = Store(world.outbox.engine)
        until(lambda: jobs.every(store)[0].documents, "the first page is noted")
        seen.append((jobs.every(store)[0].documents, json.loads(jobs.every(store)[0].position or "{}")["after"]))
        store.close()
        holding.release.set()

    looking = threading.Thread(target=look)
    looking.start()
    list(world.reindexer(holding).run(Selection("contacts", ())))  # type: ignore[arg-type]
    looking.join()
    assert seen == [(1, ["1"])]
    assert world.job.documents == 4
    world.assert_in_step()


def restored_from_a_backup_at(world: World, phase: str) -> Job:
    """The rebuild has come to its end since, so that readers have its new index. Returns the job as it is again."""
    backup = Backup(world.outbox)
    world.filled(3).rebuild({phase: backup.take})
    assert world.job.state == "done"
    world.save(1, "after the backup")
    world.assert_in_step()
    backup.restore()
    assert (world.job.state, world.job.phase) == ("running", phase)
    return world.job


@pytest.mark.parametrize("phase", ["create", "scan"])
def test_job_that_is_open_in_a_restored_backup_takes_no_index_from_readers(world: World, phase: str) -> None:
    job = restored_from_a_backup_at(world, phase)
    held = world.place.documents("contacts")
    for _ in range(2):
        with pytest.raises(ReindexFailed, match="run 'outbox-relay epoch advance'"):
            list(world.reindexer().resume(world.job))
        assert world.job.id == job.id
        assert world.readers() == (SECOND,)
        assert world.place.documents("contacts") == held


@pytest.mark.parametrize("phase", ["create", "scan"])
def test_epoch_that_is_advanced_after_a_restore_ends_the_jobs_of_the_backup(world: World, phase: str) -> None:
    job = restored_from_a_backup_at(world, phase)
    operators.advance_epoch(world.store, 1, now_ms())
    assert (world.job.id, world.job.state) == (job.id, "failed")
    assert "the epoch was advanced" in (world.job.error or "")
    assert world.store.copies() == {}
    assert jobs.orphans(world.store, now_ms() + 10**9) == []
    with pytest.raises(ReindexFailed):
        list(world.reindexer().resume(job))  # whoever has seen it before
    assert world.readers() == (SECOND,)


@pytest.mark.parametrize("refused", [False, True])
def test_reindex_whose_job_was_ended_by_an_epoch_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    def advance(*_: Any) -> None:
        operators.advance_epoch(world.store, 1, now_ms())
        if refused:
            raise DestinationError("refused at the same time")

    world.filled(3)
    monkeypatch.setattr(world.place.destination, "finish_index", advance)
    with pytest.raises(ReindexFailed, match="the epoch was advanced"):
        world.rebuild()
    world.assert_in_step(FIRST)


def test_swap_whose_answer_was_lost_is_not_made_twice(world: World) -> None:
    world.filled(2)
    steps = world.steps({})
    while next(steps).phase != "swap":
        pass
    steps.close()
    world.place.destination.swap("contacts", FIRST, SECOND)
    world.save(1, "meanwhile")
    world.deliver()
    world.rebuild()
    world.assert_in_step()


def test_second_reindex_of_an_index_is_refused_and_names_the_running_one(world: World) -> None:
    world.filled(2)
    steps = world.steps({})
    next(steps)
    next(steps)
    with pytest.raises(ReindexFailed, match=r"reindex 1 of contacts .* is running already, at step '\w+', by .*pid"):
        world.rebuild()
    list(steps)
    world.assert_in_step()


def test_process_whose_job_was_taken_over_does_no_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.reindex.work.NOTE_EVERY_MS", 0)
    world.filled(2)
    stalled = world.steps({})
    while next(stalled).phase != "swap":
        pass
    lost = world.job
    other = Reindexer(world.store, world.place.destination, world.registry)
    monkeypatch.setattr(jobs, "is_abandoned", lambda *_: True)  # its lease has ended
    for _ in other.run(Selection("contacts", ())):
        world.deliver()
    with pytest.raises(JobLost):
        jobs.update(world.store, lost, now_ms(), 1_000)
    world.rebuild()  # and one more, so that there is something to swap wrongly
    world.assert_in_step("contacts-000003")
    list(stalled)
    assert [job.state for job in jobs.every(world.store)] == ["done", "done"]
    assert world.place.indexes() == ["contacts-000003"]
    world.assert_in_step("contacts-000003")


def test_index_that_lost_documents_is_not_swapped_in(world: World) -> None:
    world.filled(5)

    def lose() -> None:
        gone = [Operation(SECOND, SECOND, f"2:t1:{n}", 10**13, None) for n in (1, 2, 3)]
        world.place.destination.apply(gone)

    with pytest.raises(ReindexFailed, match=r"holds 2 documents, 5 were written"):
        world.rebuild({"check": lose})
    world.assert_in_step(FIRST)


def test_index_whose_documents_differ_is_not_swapped_in(world: World) -> None:
    world.filled(5)
    forged = Operation(SECOND, SECOND, "2:t1:3", 10**13, b'{"name":"forged"}')
    with pytest.raises(ReindexFailed, match="differs from the database in '2:t1:3'"):
        world.rebuild({"check": lambda: world.place.destination.apply([forged])})
    world.assert_in_step(FIRST)


def test_concrete_index_gives_way_to_an_alias_only_with_adopt(world: World) -> None:
    destination = world.place.destination
    destination.create_index("contacts", {}, {})
    world.filled(3)
    assert world.store.targets() == {"contacts": "contacts"}
    with pytest.raises(ReindexFailed, match="with --adopt"):
        world.rebuild()
    world.rebuild({phase: lambda: world.save(1, "live") for phase in PHASES}, adopt=True)
    world.assert_in_step(FIRST)
    with pytest.raises(ReindexFailed, match="leave out --adopt"):
        world.rebuild(adopt=True)


def test_settings_that_were_held_back_are_restored(outbox: Outbox, place: Place, request: Any) -> None:
    if "embedded" in request.node.name:
        pytest.skip("an embedded index has none")
    settings = {"index": {"refresh_interval": "7s"}, "number_of_replicas": 0}
    world = World(outbox, place, settings=settings).filled(2)
    node = request.getfixturevalue("node")

    def of(index: str) -> Any:
        found = node.request("GET", f"/{index}/_settings")[1][index]["settings"]["index"]
        return found.get("refresh_interval"), found["number_of_replicas"], found.get("gc_deletes")

    seen: list[Any] = []
    world.rebuild({"scan": lambda: None, "wait": lambda: seen.append(of(SECOND))})
    assert seen == [("-1", "0", "24h")]
    assert of(SECOND) == ("7s", "0", "24h")
    world.registry = world.registered(tenancy="prefixed")
    world.rebuild()
    assert of("contacts-000003") == (None, "1", "24h")
    world.store.close()


# -- what cannot be asked for --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"entities": ["contact"]}, "registered are contacts.*; did you mean 'contacts'"),
        ({"entities": ["deals"]}, r"registry\.add\(Model, index='deals'"),
        ({"tenant": "t9"}, "no row is of tenant 't9'; there are t1"),
        ({"since": "yesterday"}, "is not a date"),
        ({"tenant": "t1", "keep_old": True}, "in place"),
        ({"in_place": True, "adopt": True}, "leave out --adopt"),
        ({"keep_old": True, "adopt": True}, "cannot be kept"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(world: World, given: dict[str, Any], said: str) -> None:
    world.filled(1)
    world.outbox.index("deals", "d1", {})
    world.deliver()
    with pytest.raises(ConfigurationError, match=said):
        world.rebuild(**given)
    assert jobs.every(world.store) == []


def test_mapping_that_the_cluster_refuses_leaves_the_index_as_it_was(world: World, request: Any) -> None:
    if "embedded" in request.node.name:
        pytest.skip("it takes any type")
    world.filled(2)
    world.registry = world.registered(tenancy="prefixed", mappings={"properties": {"name": {"type": "no_such"}}})
    with pytest.raises(ReindexFailed, match=r"no_such.*the index is as it was"):
        world.rebuild()
    assert world.place.indexes() == [FIRST]
    world.registry = world.registered(tenancy="prefixed")
    world.assert_in_step(FIRST)


def test_rate_is_kept(world: World) -> None:
    world.filled(20)
    began = now_ms()
    world.rebuild(rate=20.0)
    assert now_ms() - began > 700
    world.assert_in_step()


def test_rate_makes_nothing_up_after_an_outage() -> None:
    pace = Pace(100.0)
    assert [pace.turn(20, 0.0), pace.turn(20, 0.0), pace.turn(10, 0.1)] == pytest.approx([0, 0.2, 0.4])
    assert [pace.turn(20, 60.0) for _ in range(4)] == pytest.approx([60, 60.2, 60.4, 60.6])
