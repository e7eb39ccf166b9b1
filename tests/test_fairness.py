"""One tenant's or index's backlog does not hold up the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.relay.rate import TenantRates
from outbox.store import claims
from outbox.store.claims import Claim
from outbox.store.models import Event, now_ms
from outbox.store.store import Store
from tests.support.outbox import Outbox

LEASE_MS = 60_000


def claim(store: Store, rows: int = 1_000, now: int | None = None) -> list[Event]:
    found: Claim | None = claims.claim(
        store,
        claims.ClaimRequest(
            relay=1, now=now or now_ms(), lease_ms=LEASE_MS, longest_wait=LEASE_MS, rows=rows, bytes_=10**9
        ),
    )
    return list(found.events) if found else []


def write(outbox: Outbox, tenant: str | None, index: str, rows: int) -> None:
    with outbox.sessions.begin() as session:
        outbox.repository(session).index_many(index, [(f"{tenant}-{n}", {}) for n in range(rows)], tenant_id=tenant)


@pytest.mark.slow
def test_tenant_with_100_000_rows_delays_the_single_row_of_another_by_less_than_a_batch(outbox: Outbox) -> None:
    write(outbox, "large", "contacts", 100_000)
    write(outbox, "small", "contacts", 1)
    write(outbox, None, "contacts", 1)
    batch = claim(outbox.store())
    assert {event.tenant_id for event in batch} == {"large", "small", None}
    assert len(batch) == 1_000  # what the small ones leave goes to the large one


def test_index_with_a_backlog_starves_no_other(outbox: Outbox) -> None:
    write(outbox, "t1", "contacts", 5_000)
    write(outbox, "t1", "deals", 600)
    batch = claim(outbox.store())
    assert [sum(event.index_name == name for event in batch) for name in ("contacts", "deals")] == [500, 500]


def test_more_tenants_than_a_batch_holds_take_turns_by_age(outbox: Outbox) -> None:
    for tenant in range(30):
        write(outbox, f"t{tenant:02}", "contacts", 2)
    store = outbox.store()
    seen = [{event.tenant_id for event in claim(store, 10)} for _ in range(6)]
    assert len(seen[0]) == 10
    assert set().union(*seen) == {f"t{tenant:02}" for tenant in range(30)}
    assert not claim(store, 10)


def test_retries_that_are_due_leave_half_of_a_batch_to_fresh_rows(outbox: Outbox) -> None:
    write(outbox, "t1", "contacts", 100)
    outbox.raw("UPDATE outbox_events SET available_at = 1, deliveries = 1")
    write(outbox, "t2", "contacts", 100)
    batch = claim(outbox.store(), 10)
    assert [sum(event.tenant_id == tenant for event in batch) for tenant in ("t1", "t2")] == [5, 5]


def test_rows_of_one_document_under_two_tenants_keep_their_order(outbox: Outbox) -> None:
    write(outbox, "t1", "contacts", 10)
    store = outbox.store()
    first = claim(store, 5)
    with outbox.sessions.begin() as session:
        later = outbox.repository(session).index("contacts", first[0].document_id, {}, tenant_id="t2")
    assert later not in [event.id for event in claim(store, 100)]


def test_tenant_above_its_rate_waits_and_others_flow(outbox: Outbox, tmp_path: Path) -> None:
    write(outbox, "large", "contacts", 110)
    write(outbox, "small", "contacts", 5)
    write(outbox, None, "contacts", 50)
    relay = outbox.relay(EmbeddedDestination(tmp_path / "search.db"), tenant_rate=10)
    now = now_ms()

    def done_after(seconds: float) -> dict[str, int]:
        while relay.run_once(now + int(seconds * 1_000)):
            pass
        with outbox.engine.connect() as connection:
            found = connection.exec_driver_sql(
                "SELECT coalesce(tenant_id, '-'), count(*) FROM outbox_events WHERE state = 'done' GROUP BY 1"
            )
            return {row[0]: row[1] for row in found}

    assert done_after(0) == {"large": 10, "small": 5, "-": 50}
    for second in range(1, 9):
        assert done_after(second)["large"] == 10 + 10 * second
    assert done_after(60)["large"] == 100  # a pause saves up for no more than a second: two bursts, one into debt


def test_clock_that_jumps_back_neither_refills_nor_strands_a_tenant() -> None:
    rates = TenantRates(10)
    rates.took(["t1"] * 10, 1_000_000)
    assert rates.exhausted(1_000_000) == ["t1"]
    assert rates.exhausted(0) == ["t1"]
    assert rates.exhausted(1_000) == []


def of_two_tenants(outbox: Outbox, action: str) -> tuple[int, int]:
    """A row in the lane of one tenant, behind a backlog, and an update of the same document by another tenant."""
    write(outbox, "t1", "contacts", 5)
    with outbox.sessions.begin() as session:
        repo = outbox.repository(session)
        if action == "delete":
            earlier = repo.delete("contacts", "c1", tenant_id="t1")
        else:
            earlier = getattr(repo, action)("contacts", "c1", {"earlier": True}, tenant_id="t1")
        later = repo.update("contacts", "c1", {"later": True}, tenant_id="t2")
    assert later is not None
    return earlier, later


@pytest.mark.parametrize(
    ("action", "ends_as"),
    [
        ("index", {"earlier": True, "later": True}),
        ("update", {"n": 0, "earlier": True, "later": True}),
        ("delete", None),
    ],
)
def test_rows_of_one_document_under_two_tenants_arrive_in_the_order_of_their_commits(
    outbox: Outbox, tmp_path: Path, action: str, ends_as: dict[str, object] | None
) -> None:
    destination = EmbeddedDestination(tmp_path / "search.db")
    outbox.index("contacts", "c1", {"n": 0})
    outbox.drain(destination)
    earlier, later = of_two_tenants(outbox, action)
    outbox.drain(destination, batch_rows=2)
    found = destination.read("contacts", ["c1"]).get("c1")
    assert (found.source if found else None) == ends_as
    if ends_as:
        assert (outbox.state(earlier), outbox.outcome(later)) == ("done", "applied")
    else:  # there was nothing left to update
        assert (outbox.outcome(earlier), outbox.row(later)["error_type"]) == ("deleted", "document_missing")
