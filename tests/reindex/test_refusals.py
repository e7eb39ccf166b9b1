"""The destination refuses, fails or does not answer: no row is lost by it, and no incomplete index is swapped in."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from outbox import EntityRegistry
from outbox.destinations.base import Operation, OutcomeKind
from outbox.errors import DestinationError, DestinationUnanswered, ReindexFailed
from outbox.reindex import reindex
from outbox.reindex.selection import Selection
from outbox.store import jobs
from outbox.store.models import now_ms
from outbox.store.store import Store
from tests.reindex.faults import Holding, Refusing
from tests.reindex.world import FIRST, PHASES, SECOND, World
from tests.support import LIMIT_S
from tests.support.models import Contact
from tests.support.outbox import Outbox
from tests.support.places import Place
from tests.support.relays import until


@pytest.mark.parametrize("kind", [OutcomeKind.REJECTED, OutcomeKind.BLOCKED, OutcomeKind.FAILED])
def test_what_only_the_new_index_refuses_fails_the_job_and_no_row(world: World, kind: OutcomeKind) -> None:
    world.filled(3)
    refusing: Any = Refusing(world.place.destination, SECOND, kind)
    relay = world.another_relay(refusing)
    with pytest.raises(ReindexFailed, match=r"contacts-000002 does not take 2:t1:1.*the index is as it was"):
        for progress in reindex(world.store, world.place.destination, world.registry, entities=["contacts"]):
            if progress.phase == "sweep" or progress.phase == "scan":
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
    with pytest.raises(ReindexFailed, match=r"contacts-000002 would miss '2:t1:1': [a-z]+_parsing_exception"):
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


@pytest.mark.sqlite
def test_row_that_cannot_be_read_keeps_its_document_in_place(world: World) -> None:
    world.filled(3)
    world.outbox.raw("UPDATE contacts SET changed = 'yesterday' WHERE id = 2")
    world.rebuild(in_place=True)
    assert (world.job.state, world.job.refused, world.job.removed) == ("done", 1, 0)
    assert sorted(world.place.documents("contacts")) == ["2:t1:1", "2:t1:2", "2:t1:3"]


def test_row_that_the_new_index_refuses_at_the_swap_waits_and_dies_by_it(world: World) -> None:
    """Too late to fail the job: the index is live a moment later, and decides then."""
    world.filled(2)
    refusing: Any = Refusing(world.place.destination, SECOND)
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
    relay = world.another_relay(Refusing(world.place.destination, SECOND))  # type: ignore[arg-type]
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


def test_page_that_is_not_answered_holds_the_position_back_though_later_ones_are(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever goes on after a kill begins with it."""
    monkeypatch.setattr("outbox.reindex.steps.PAGE_ROWS", 1)
    monkeypatch.setattr("outbox.reindex.work.NOTE_EVERY_MS", 0)
    world.filled(4)
    holding = Holding(world.place.destination, "2:t1:2")
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


def test_sample_is_compared_few_documents_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it may be hundreds of megabytes."""
    monkeypatch.setattr("outbox.reindex.steps.COMPARED_AT_ONCE", 2, raising=False)
    world.filled(7)
    compared: list[str] = []
    read = world.place.destination.read

    def few(target: str, document_ids: Sequence[str]) -> Any:
        assert len(document_ids) <= 2
        compared.extend(document_ids)
        return read(target, document_ids)

    monkeypatch.setattr(world.place.destination, "read", few)
    world.rebuild()
    assert sorted(compared) == [f"2:t1:{number}" for number in range(1, 8)]
    world.assert_in_step()


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
    world.rebuild({"scan": lambda: None, "sweep": lambda: seen.append(of(SECOND))})
    assert seen == [("-1", "0", "24h")]
    assert of(SECOND) == ("7s", "0", "24h")
    world.registry = world.registered(tenancy="prefixed")
    world.rebuild()
    assert of("contacts-000003") == (None, "1", "24h")
    world.store.close()


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
