"""The record of each attempt that failed: what is noted, what is not, and how long it stays."""

from __future__ import annotations

import pytest

from outbox.store import failures, malformed, operators, outcomes, upkeep
from outbox.store.claims import Claim
from outbox.store.models import ILLEGAL_TEXT, POISON, Event, Result, State, Transition
from outbox.store.store import Store
from tests.conformance.database import LEASE_MS, NOW, Database, applied, claimed
from tests.support.watching import asked_of_stores


def fails(event: Event, error: str = "failed to parse field [age]", field: str | None = "age") -> Transition:
    later = NOW + 2_000
    return Transition(event, State.PENDING, None, later, event.attempts + 1, "mapper", error, error_field=field)


def dies(event: Event) -> Transition:
    return Transition(event, State.DEAD, None, None, event.attempts, "rejected", "no\nuse")


def dead(database: Database, store: Store, *documents: str, action: str = "update") -> list[int]:
    ids = database.insert(*(("contacts", each) for each in documents), action=action)
    held = claimed(store)
    outcomes.record(store, held, [dies(event) for event in held.events], NOW)
    return ids


def noted(store: Store, row: int) -> list[tuple[object, ...]]:
    shown = ("attempt", "failed_at", "relay", "host", "pid", "state", "error_type", "error_field", "error")
    return [tuple(each[name] for name in shown) for each in failures.of_row(store, row)]


def test_each_failed_attempt_is_noted_with_its_relay_and_the_end_of_the_row(database: Database, store: Store) -> None:
    (row,) = database.insert(("contacts", "c1"))
    relay = store.register_relay("web1", 4711, "1.0", NOW)
    held = claimed(store, relay=relay)
    outcomes.record(store, held, [fails(held.events[0])], NOW + 1)
    again = claimed(store, relay=relay + 1, now=NOW + 5_000)
    assert again.events[0].attempts == 1
    outcomes.record(store, again, [dies(again.events[0])], NOW + 5_001)
    assert noted(store, row) == [
        (1, NOW + 1, relay, "web1", 4711, "pending", "mapper", "age", "failed to parse field [age]"),
        (2, NOW + 5_001, relay + 1, None, None, "dead", "rejected", None, "no\\nuse"),
    ]
    found = database.row(row)
    assert (found["error_type"], found["error_field"], found["error"]) == ("rejected", None, "no\\nuse")


def test_row_that_succeeds_costs_no_statement_more_and_leaves_nothing(database: Database, store: Store) -> None:
    database.insert(("contacts", "c1"), ("contacts", "c2"))
    held = claimed(store)
    with asked_of_stores() as asked:
        outcomes.record(store, held, applied(held), NOW)
    assert [sql for sql, _ in asked if "failures" in sql] == []
    assert len([sql for sql, _ in asked if sql.strip().startswith("UPDATE outbox_events")]) == 1
    assert database.scalars("SELECT count(*) FROM outbox_failures") == [0]


def test_field_of_an_earlier_failure_stays_with_its_error_when_the_row_is_done(
    database: Database, store: Store
) -> None:
    (row,) = database.insert(("contacts", "c1"))
    held = claimed(store)
    outcomes.record(store, held, [fails(held.events[0])], NOW)
    held = claimed(store, now=NOW + 5_000)
    outcomes.record(store, held, applied(held), NOW + 5_001)
    found = database.row(row)
    assert (found["state"], found["error_type"], found["error_field"]) == ("done", "mapper", "age")
    assert len(noted(store, row)) == 1


def test_what_gives_a_whole_batch_back_is_no_attempt_of_its_rows(database: Database, store: Store) -> None:
    rows = database.insert(("contacts", "c1"), ("contacts", "c2"))
    held = claimed(store)
    outage = [Transition(each, State.PENDING, None, NOW, 0, "unanswered", "Connection timeout") for each in held.events]
    outcomes.record(store, held, outage, NOW)
    assert (noted(store, rows[0]), database.row(rows[1])["attempts"]) == ([], 0)


def test_claim_that_was_lost_notes_nothing(database: Database, store: Store) -> None:
    (row,) = database.insert(("contacts", "c1"))
    lost = claimed(store, relay=1)
    upkeep.reap(store, NOW + 2 * LEASE_MS, LEASE_MS)
    claimed(store, relay=2, now=NOW + 2 * LEASE_MS)
    assert outcomes.record(store, lost, [dies(lost.events[0])], NOW)
    assert noted(store, row) == []


@pytest.mark.parametrize("by", ["discarded", "purged", "pruned", "removed after its time", "removed with its tenant"])
def test_record_stays_as_long_as_its_row_and_goes_with_it(database: Database, store: Store, by: str) -> None:
    gone, stays = dead(database, store, "c1", "c2")
    if by == "discarded":
        operators.discard_dead(store, [gone])
    elif by == "purged":
        operators.retry_dead(store, [gone], NOW)
        operators.purge(store, [gone])
    elif by == "pruned":
        operators.retry_dead(store, [gone], NOW)
        held = claimed(store)
        outcomes.record(store, held, applied(held), NOW)
        upkeep.remove_finished(store, [gone])
    elif by == "removed after its time":
        upkeep.remove_died(store, [gone], NOW + 1)
    else:
        with store.write(durable=False):
            store.run("UPDATE outbox_events SET tenant_id = 't1' WHERE id = :gone", gone=gone)
        operators.remove_rows_of_tenant(store, ("t1",))
    assert database.scalars("SELECT id FROM outbox_events") == [stays]
    assert database.scalars("SELECT event_id FROM outbox_failures") == [stays]


def test_retried_row_keeps_its_history_and_counts_on(database: Database, store: Store) -> None:
    (row,) = dead(database, store, "c1")
    operators.retry_dead(store, [row], NOW + 10)
    assert [each[0] for each in noted(store, row)] == [1]
    held: Claim = claimed(store, now=NOW + 10)
    outcomes.record(store, held, [dies(held.events[0])], NOW + 20)
    assert [(each[0], each[1], each[5]) for each in noted(store, row)] == [(1, NOW, "dead"), (2, NOW + 20, "dead")]


def test_row_that_stays_dead_as_overtaken_names_no_field_any_more(database: Database, store: Store) -> None:
    (row,) = database.insert(("contacts", "c1"), action="update")
    held = claimed(store)
    outcomes.record(store, held, [dies(held.events[0])._replace(error_field="age")], NOW)
    database.insert(("contacts", "c1"), action="update")
    held = claimed(store)
    outcomes.record(store, held, applied(held), NOW)
    assert operators.retry_dead(store, [row], NOW).overtaken
    assert (database.row(row)["error_type"], database.row(row)["error_field"]) == ("overtaken", None)
    assert [each[7] for each in noted(store, row)] == ["age"]


def test_row_that_kills_its_relay_is_noted_with_that_relay(database: Database, store: Store) -> None:
    (row,) = database.insert(("contacts", "c1"))
    relay = store.register_relay("web1", 4711, "1.0", NOW)
    for _ in range(3):
        claimed(store, relay=relay, lone_after=1)
        upkeep.reap(store, NOW, 10 * LEASE_MS, dead_relays=[relay], lone_after=1)
    assert [(each[0], each[2], each[3], each[5], each[6]) for each in noted(store, row)] == [
        (1, relay, "web1", "dead", POISON)
    ]


def test_row_of_another_program_that_no_relay_can_read_is_noted(database: Database, store: Store) -> None:
    if database.engine.dialect.name == "postgresql":
        pytest.skip("a column of PostgreSQL holds nothing but its type")
    (row,) = database.insert(("contacts", "c1"))
    with store.write(durable=False):
        store.run("UPDATE outbox_events SET tenant_id = x'ff' WHERE id = :row", row=row)
    assert malformed.end(store, NOW) == 1
    assert [(each[0], each[2], each[5], each[6]) for each in noted(store, row)] == [(1, None, "dead", ILLEGAL_TEXT)]


def test_done_row_with_a_failure_before_it_keeps_the_record_until_it_is_pruned(
    database: Database, store: Store
) -> None:
    (row,) = database.insert(("contacts", "c1"))
    held = claimed(store)
    outcomes.record(store, held, [fails(held.events[0], field=None)], NOW)
    held = claimed(store, now=NOW + 5_000)
    outcomes.record(store, held, [Transition(held.events[0], State.DONE, Result.APPLIED)], NOW + 5_000)
    assert len(noted(store, row)) == 1
    assert upkeep.remove_finished(store, [row]) == 1
    assert noted(store, row) == []
