"""Rows of one document: one operation of several, each in its turn, and no other document waits for them."""

from __future__ import annotations

import pytest

from outbox.destinations.cluster.destination import ClusterDestination
from outbox.store.models import now_ms
from tests.support.node import Node
from tests.support.outbox import Outbox
from tests.support.places import Place, failing_item
from tests.support.proxy import FaultProxy, Request, bulk, refuse, swallow

pytestmark = pytest.mark.elasticsearch

SECOND = 1_000
TYPED = {"properties": {"age": {"type": "long"}, "n": {"type": "long"}}}


def test_rows_of_one_document_become_one_operation(outbox: Outbox, place: Place) -> None:
    rows = [outbox.index("contacts", "c1", {"n": n}) for n in range(3)]
    outbox.drain(place.destination)
    assert [outbox.outcome(row) for row in rows] == ["coalesced", "coalesced", "applied"]
    assert place.sent() == [1]
    assert place.get("contacts", "c1") == {"n": 2}


def test_rejected_fold_kills_only_the_guilty_row(outbox: Outbox, place: Place) -> None:
    place.destination.ensure_index("contacts", TYPED)
    good = outbox.index("contacts", "c1", {"age": 2})
    bad = outbox.index("contacts", "c1", {"age": "x"})
    outbox.drain(place.destination)
    assert (outbox.outcome(good), outbox.state(bad)) == ("applied", "dead")
    assert place.get("contacts", "c1") == {"age": 2}


def test_relay_killed_between_unfolded_rows_leaves_the_dead_letter(
    outbox: Outbox, destination: ClusterDestination, proxy: FaultProxy
) -> None:
    outbox.index("contacts", "other", {"age": 1})
    outbox.drain(destination)
    bad = outbox.index("contacts", "c1", {"age": "x"})
    also_bad = outbox.index("contacts", "c1", {"age": "y"})
    seen: list[int] = []

    def second_unfolded(request: Request) -> bool:
        if request.is_bulk:
            seen.append(1)
        return len(seen) == 3  # the fold, the first row, then this

    proxy.on(second_unfolded, refuse)
    outbox.relay(destination).run_once()
    assert outbox.state(bad) == "dead"  # recorded before the next row was sent
    proxy.clear()
    outbox.drain(destination, now_ms() + 60 * SECOND)
    assert outbox.state(also_bad) == "dead"


def test_answer_lost_between_unfolded_rows_leaves_the_dead_letter_and_the_good_one(
    outbox: Outbox, destination: ClusterDestination, proxy: FaultProxy, node: Node
) -> None:
    outbox.index("contacts", "other", {"age": 1})
    outbox.drain(destination)
    good, bad = outbox.index("contacts", "c1", {"age": 2}), outbox.index("contacts", "c1", {"age": "x"})
    seen: list[int] = []

    def first_unfolded(request: Request) -> bool:
        seen.extend([1] if request.is_bulk else [])
        return request.is_bulk and len(seen) == 2  # the fold, then this

    proxy.on(first_unfolded, swallow)
    now = now_ms()
    outbox.relay(destination).run_once(now)
    assert node.get("contacts", "c1") == {"age": 2}  # applied …
    assert (outbox.state(good), outbox.state(bad)) == ("pending", "pending")  # … but nobody knows
    outbox.drain(destination, now + 60 * SECOND)
    assert (outbox.outcome(good), outbox.state(bad)) == ("applied", "dead")
    assert outbox.row(bad)["error_type"].endswith("_parsing_exception")


def test_failures_of_a_fold_that_was_applied_all_the_same_kill_none_of_its_rows(outbox: Outbox, place: Place) -> None:
    """They are sent a second time, alone, within the same claim, each with a version above what is there by then."""
    outbox.index("contacts", "c1", {"a": 0})
    outbox.drain(place.destination)
    for rows in (
        [outbox.index("contacts", "c1", {"a": n}) for n in (1, 2)],
        [outbox.update("contacts", "c1", {"b": n}) for n in (1, 2)],
    ):
        place.fail(times=1)
        outbox.drain(place.destination, max_retries=0)
        assert [(outbox.state(row), outbox.row(row)["error_type"]) for row in rows] == [("done", None)] * 2
    assert place.get("contacts", "c1") == {"a": 2, "b": 2}


def test_outage_after_a_fold_that_failed_and_was_applied_all_the_same_condemns_none_of_its_rows(
    outbox: Outbox, destination: ClusterDestination, proxy: FaultProxy
) -> None:
    rows = [outbox.index("contacts", "c1", {"n": n}) for n in (1, 2)]
    faults = iter([failing_item(500, "some_exception"), refuse])  # the fold, then the first of its rows alone
    proxy.on(bulk, lambda proxy, request: next(faults)(proxy, request), times=2)
    now = now_ms()
    outbox.relay(destination, max_retries=0).run_once(now)
    assert [outbox.state(row) for row in rows] == ["pending"] * 2
    outbox.drain(destination, now + 60 * SECOND)
    assert [outbox.outcome(row) for row in rows] == ["coalesced", "applied"]


def test_one_bad_document_among_999_good_delays_none(outbox: Outbox, place: Place) -> None:
    place.destination.ensure_index("contacts", TYPED)
    rows = outbox.index_many("contacts", [(f"c{n}", {"n": "bad" if n == 500 else n}) for n in range(1_000)])
    outbox.drain(place.destination)
    assert outbox.state(rows[500]) == "dead"
    assert outbox.counts() == {"pending": 0, "claimed": 0, "done": 999, "dead": 1}
    assert len(place.documents("contacts")) == 999


def test_document_waits_for_its_own_retry_and_others_do_not(outbox: Outbox, place: Place) -> None:
    outbox.index("contacts", "c1", {"n": 1})
    place.fail(times=1)
    now = now_ms()
    outbox.drain(place.destination, now)
    later = outbox.index("contacts", "c1", {"n": 2})
    other = outbox.index("contacts", "c2", {"n": 3})
    outbox.drain(place.destination, now + 1)
    assert (outbox.state(later), outbox.state(other)) == ("pending", "done")
    outbox.drain(place.destination, now + 2 * SECOND)
    assert outbox.state(later) == "done"
    assert place.get("contacts", "c1") == {"n": 2}


def test_document_with_ten_thousand_rows_starves_no_other(outbox: Outbox, place: Place) -> None:
    outbox.index("contacts", "hot", {"n": -1})
    place.fail(times=1)
    now = now_ms()
    outbox.drain(place.destination, now)  # its first row waits for its retry
    outbox.index_many("contacts", [("hot", {"n": n}) for n in range(10_000)])
    other = outbox.index("contacts", "cold", {})
    outbox.relay(place.destination).run_once(now + 1)
    assert outbox.state(other) == "done"
    outbox.drain(place.destination, now + 60 * SECOND)
    assert outbox.counts()["done"] == 10_002
    assert place.get("contacts", "hot") == {"n": 9_999}
