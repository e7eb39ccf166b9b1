"""Two relays at one outbox: a claim that was lost settles nothing, and no row is sent twice."""

from __future__ import annotations

import pytest

from outbox.destinations.cluster.destination import ClusterDestination
from outbox.maintenance.scheduler import Maintenance
from outbox.store import upkeep
from outbox.store.models import now_ms
from tests.support.outbox import Outbox, settings
from tests.support.places import Place

pytestmark = pytest.mark.elasticsearch

SECOND = 1_000


def test_relay_whose_lease_expired_cannot_overwrite_the_outcome(outbox: Outbox, place: Place) -> None:
    row = outbox.index("contacts", "c1", {"n": 1})
    now = now_ms()
    slow, store = outbox.relay(place.destination, 1), outbox.store()
    request = slow._next_request(now)
    assert request is not None
    answer = slow._send(request)
    if request.unknown_indexes:  # first use of the index
        (request,) = slow._settle(answer, now)
        answer = slow._send(request)
    assert upkeep.reap(store, now + 61 * SECOND, 60 * SECOND).given_back == 1
    outbox.drain(place.destination, now + 61 * SECOND)
    before = outbox.row(row)
    slow._settle(answer, now + 62 * SECOND)
    assert outbox.row(row) == before
    assert (slow.totals.done, slow.totals.lost_claims) == (0, 1)


def test_dead_row_that_another_relay_settled_is_not_counted_by_the_one_that_lost_it(
    outbox: Outbox, destination: ClusterDestination
) -> None:
    outbox.index("contacts", "typed", {"n": 1})
    outbox.drain(destination)
    outbox.index("contacts", "bad", {"n": "x"})
    outbox.index("contacts", "good", {"n": 2})
    now = now_ms()
    slow = outbox.relay(destination)
    request = slow._next_request(now)
    assert request is not None
    answer = slow._send(request)
    outbox.raw("UPDATE outbox_events SET claim_token = 'of another relay' WHERE document_id = 'bad'")
    slow._settle(answer, now)
    assert (slow.totals.done, slow.totals.dead, slow.totals.lost_claims) == (1, 0, 1)


def test_relay_with_a_short_lease_leaves_the_claims_of_one_with_a_long_lease_alone(
    outbox: Outbox, destination: ClusterDestination
) -> None:
    row = outbox.index("contacts", "c1", {})
    now = now_ms()
    assert outbox.relay(destination, 1, lease=3_600)._next_request(now)
    short = Maintenance(outbox.engine, 2, settings(lease=30), list)
    short.reap(outbox.store())
    assert outbox.state(row) == "claimed"
    outbox.raw("UPDATE outbox_events SET lease_expires_at = :far", far=now + 3 * 3_600 * SECOND)
    short.reap(outbox.store())  # no setting reaches that far: the clock was set back
    assert outbox.state(row) == "pending"


def test_two_relays_share_the_work_without_doubles(outbox: Outbox, place: Place) -> None:
    outbox.index("contacts", "first", {})
    outbox.drain(place.destination)
    before = len(place.sent())
    outbox.index_many("contacts", [(f"c{n}", {}) for n in range(300)])
    one, two = outbox.relay(place.destination, 1, batch_rows=100), outbox.relay(place.destination, 2, batch_rows=100)
    while one.run_once() + two.run_once():
        pass
    assert sum(place.sent()[before:]) == 300
