"""One document whose rows stand in several lanes, on every database: claimed in order, and by one claim at a time."""

from __future__ import annotations

import pytest

from outbox.store import due, operators, outcomes
from outbox.store.models import State, Transition
from outbox.store.store import Store
from tests.conformance.database import LEASE_MS, NOW, Database, applied, claim, claimed, ids_of


def behind_a_backlog(database: Database, rows: int = 100) -> tuple[int, int]:
    """A document with a row of `large`, which many others of `large` are before, and then one of `small`."""
    database.insert(*(("contacts", f"c{n}") for n in range(rows)), tenant="large")
    (first,) = database.insert(("contacts", "moved"), tenant="large")
    (later,) = database.insert(("contacts", "moved"), tenant="small")
    return first, later


def deliver(store: Store, now: int = NOW, rows: int = 20, **given: int) -> list[int]:
    found = claim(store, now=now, rows=rows, **given)
    if found:
        assert outcomes.record(store, found, applied(found), now) == []
    return ids_of(found)


def test_row_is_not_claimed_before_an_earlier_one_of_its_document_that_nobody_has_looked_at(
    database: Database, store: Store
) -> None:
    first, later = behind_a_backlog(database)
    (other,) = database.insert(("contacts", "other"), tenant="small")
    taken = ids_of(claim(store, rows=20))
    assert other in taken  # the lane of the row that waits goes on
    assert not {first, later} & set(taken)
    assert later not in ids_of(claim(database.store(), relay=2, rows=20))


def test_row_goes_as_soon_as_the_earlier_one_of_another_lane_is_done(database: Database, store: Store) -> None:
    first, later = behind_a_backlog(database)
    taken = deliver(store)
    while first not in taken:
        assert later not in taken
        taken = deliver(store)
    assert later in taken or deliver(store) == [later]


def test_rows_of_one_document_in_several_lanes_are_claimed_together(database: Database, store: Store) -> None:
    ids = [database.insert(("contacts", "c1"), tenant=tenant)[0] for tenant in ("b", "a", "c", "a")]
    assert ids_of(claim(store)) == ids


@pytest.mark.parametrize("state", [State.PENDING, State.DEAD])
def test_row_waits_for_the_retry_of_the_earlier_one_of_another_lane_and_for_no_more(
    database: Database, store: Store, state: State
) -> None:
    (first,) = database.insert(("contacts", "moved"), tenant="large")
    (later,) = database.insert(("contacts", "moved"), tenant="small")
    held = claimed(store, rows=1)
    assert ids_of(held) == [first]
    assert claim(store) is None
    until = NOW + 2_000 if state is State.PENDING else None
    outcomes.record(store, held, [Transition(held.events[0], state, None, until, 1, "x", "y")], NOW)
    assert ids_of(claim(store)) == ([] if until else [later])
    assert deliver(store, NOW + 2_000) == ([first] if until else [])
    assert deliver(store, NOW + 2_000) == ([later] if until else [])


def test_row_that_waits_for_another_lane_is_looked_at_once(database: Database, store: Store) -> None:
    first, later = behind_a_backlog(database)
    deliver(store)
    waits_until = database.row(later)["available_at"]
    assert waits_until == NOW + LEASE_MS
    while first not in (taken := deliver(store, NOW + 1)):
        assert len(taken) == 20  # it takes no place in a batch
        assert database.row(later)["available_at"] == waits_until


def test_many_rows_that_wait_for_another_lane_take_no_place_in_a_batch(database: Database, store: Store) -> None:
    names = [("contacts", f"c{n}") for n in range(300)]
    database.insert(*names, tenant="large")
    database.insert(*reversed(names), tenant="small")
    (other,) = database.insert(("notes", "n1"), tenant="small")
    delivered = deliver(store)
    assert other in delivered
    while taken := deliver(store):
        delivered += taken
    assert len(set(delivered)) == len(delivered) == 601
    assert [database.row(each)["deliveries"] for each in delivered] == [1] * 601


def test_row_whose_earlier_one_was_removed_waits_no_longer_than_any_row(database: Database, store: Store) -> None:
    first, later = behind_a_backlog(database)
    deliver(store)
    assert database.row(later)["available_at"] is not None
    assert operators.purge(store, [each for each in operators.pending(store) if each <= first]) == 82
    assert ids_of(claim(store, now=NOW + LEASE_MS)) == [later]


def test_row_of_a_tenant_above_its_rate_holds_back_the_later_one_of_another_tenant(
    database: Database, store: Store
) -> None:
    (first,) = database.insert(("contacts", "moved"), tenant="large")
    later, other = database.insert(("contacts", "moved"), ("contacts", "other"), tenant="small")
    assert ids_of(claim(store, tenants_out=["large"])) == [other]
    assert claim(store, tenants_out=["large"]) is None
    assert deliver(store) == [first]
    assert ids_of(claim(store, tenants_out=["large"])) == [later]


def test_document_with_a_row_in_each_of_many_lanes_is_delivered_in_order(database: Database, store: Store) -> None:
    ids = [database.insert(("contacts", "hot"), tenant=f"t{n * 7 % 200:03}")[0] for n in range(200)]
    delivered: list[int] = []
    while taken := deliver(store, rows=30):
        delivered += taken
    assert delivered == ids
    assert due.fresh_lanes(store) == []
