"""An index is rebuilt under traffic, and holds what the database says at every step of it; on both destinations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from outbox.destinations.base import Listed, Operation, OutcomeKind
from outbox.reindex.reindexer import reindex
from outbox.store import verifications
from outbox.store.models import EPOCH_STEP, now_ms
from tests.reindex.faults import Refusing, after_reading
from tests.reindex.world import FIRST, SECOND, World


def test_rebuilt_index_holds_what_the_database_says_and_nothing_else(world: World) -> None:
    world.filled()
    world.outbox.raw("UPDATE contacts SET name = 'Grace' WHERE id = 1")  # past the outbox, as are these:
    world.outbox.raw("DELETE FROM contacts WHERE id = 2")
    world.outbox.raw(
        "INSERT INTO contacts (id, name, tenant, archived, changed) VALUES (9, 'Alan', 't2', false, '2026-01-01')"
    )
    progress = world.rebuild()
    assert progress[-1].phase == "drop"
    assert (world.job.state, world.job.documents, world.job.total) == ("done", 5, 5)
    assert world.place.get("contacts", "2:t1:1") == {"name": "Grace", "tenantId": "t1"}
    world.assert_in_step()
    assert world.place.indexes() == [SECOND]
    assert world.store.routes()[1] == {}
    world.save(1, "Ada")
    world.assert_in_step()
    world.rebuild()
    world.assert_in_step("contacts-000003")


def test_changes_at_every_step_arrive(world: World) -> None:
    world.filled(8)
    at: dict[str, Callable[[], object]] = {}
    for number, phase in enumerate(["create", "scan", "sweep", "check", "swap", "drop"], 1):

        def change(number: int = number) -> None:
            world.save(number, f"changed {number}")
            world.save(20 + number, "new")
            world.save(40 + number, "short-lived")
            world.delete(40 + number)

        at[phase] = change
    world.rebuild(at)
    assert world.job.state == "done"
    world.assert_in_step()


def test_row_that_waits_for_its_retry_while_the_index_is_rebuilt_brings_nothing_old_back(world: World) -> None:
    world.filled(3)
    world.save(1, "late")
    world.place.fail(times=1)
    world.relay.run_once(now := now_ms())
    assert world.outbox.counts()["pending"] == 1  # until its retry, two seconds from now
    world.delete(1)
    world.rebuild({"sweep": lambda: world.relay.run_once(now + 3_000)})
    world.deliver()
    world.assert_in_step()
    assert world.place.get("contacts", "2:t1:1") is None


def test_reindex_waits_for_no_relay(world: World) -> None:
    """What waits when it begins is in the scan, and goes to both when it is claimed, with a higher version."""
    world.filled(3)
    world.save(1, "waits")
    world.delete(2)
    steps = reindex(world.store, world.place.destination, world.registry, entities=["contacts"])
    assert {progress.note for progress in steps} == {""}
    assert (world.job.state, world.outbox.counts()["pending"]) == ("done", 2)
    assert world.place.get("contacts", "2:t1:1") == {"name": "waits", "tenantId": "t1"}
    world.deliver()
    world.assert_in_step()


@pytest.mark.parametrize("tenant", [None, "t1"])
def test_content_that_waits_as_a_rebuild_begins_does_not_stay(world: World, tenant: str | None) -> None:
    """Rows of programs that do not know the entities are older than the scan, and may be delivered after it."""
    world.filled(3)
    world.outbox.update("contacts", "2:t1:1", {"name": "older"})
    world.outbox.index("contacts", "2:t1:2", {"name": "older, too"})
    world.outbox.delete("contacts", "2:t1:3")
    world.outbox.index("contacts", "2:t1:9", {"name": "of no row"})
    for _ in reindex(world.store, world.place.destination, world.registry, entities=["contacts"], tenant=tenant):
        pass
    world.assert_in_step(SECOND if tenant is None else FIRST)


def test_claim_from_before_both_that_is_delivered_after_the_scan(world: World) -> None:
    """Its relay knows the old index only, and is slow: what it says is in the scan, and the old index stays for it."""
    world.filled(3)
    world.save(1, "claimed before")
    slow = world.another_relay()
    request = slow._next_request(now_ms())
    assert request is not None
    assert request.claim.dual_writes == {}
    waited = 0
    for progress in reindex(world.store, world.place.destination, world.registry, entities=["contacts"]):
        if "still under way" in progress.note:
            waited += 1
            assert (world.readers(), FIRST in world.place.indexes()) == ((SECOND,), True)
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
                assert request.claim.dual_writes["contacts"] == (SECOND,)
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
        assert verifications.raise_above(world.store, 2 * EPOCH_STEP + 1, now_ms()) == 3
        world.save(2, "after")

    world.rebuild({"sweep": advance})
    world.assert_in_step()


def test_delete_between_reading_and_writing_whose_tombstone_is_forgotten(world: World) -> None:
    """The document comes back with the page, below anybody's version; the sweep finds it."""
    world.filled(3)

    def delete() -> None:
        world.delete(1)
        world.save(2, "changed")
        world.save(3, "Ada 3", tenant="t2")
        world.deliver()
        world.place.forget_deletes(SECOND)

    with after_reading(delete):
        world.rebuild()
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
            "sweep": lambda: (world.save(2, "moved", tenant="t2"), world.delete(3)),
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

    with after_reading(update):
        world.rebuild()
    world.assert_in_step()


def test_partial_update_that_the_live_index_fails_at_first_is_in_the_new_one_in_the_end(world: World) -> None:
    """What the live index holds without it must not come to the other one under its version: nothing would mend it."""
    world.filled(2)
    fails: Any = Refusing(world.place.destination, FIRST, OutcomeKind.FAILED)
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


def test_partial_update_that_an_index_rebuilt_in_place_holds_already_changes_nothing(world: World) -> None:
    """It waited when the scan read what it says from the database."""
    world.filled(2)
    world.outbox.raw("UPDATE contacts SET name = 'by hand' WHERE id = 1")
    row = world.outbox.update("contacts", "2:t1:1", {"name": "by hand"})
    for progress in reindex(world.store, world.place.destination, world.registry, entities=["contacts"], in_place=True):
        if progress.phase == "sweep":
            world.deliver()
    assert world.outbox.outcome(row) == "coalesced", "into what is loaded after the scan"
    world.assert_in_step(FIRST)
