"""From a committed row to each kind of destination, and what every answer on the wire means for the row."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest
from loguru import logger

from outbox import logs
from outbox.destinations.elasticsearch.destination import ElasticsearchDestination
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.maintenance.pruner import prune
from outbox.maintenance.scheduler import Maintenance
from outbox.store import operators, upkeep
from outbox.store.models import EPOCH_STEP, now_ms
from outbox.store.operators import Retried
from tests.support.node import Node
from tests.support.outbox import Outbox, settings
from tests.support.places import Place, failing_item
from tests.support.proxy import (
    FaultProxy,
    Reply,
    Request,
    anything,
    bulk,
    cut,
    hang,
    refuse,
    reply,
    reset,
    rewrite,
    swallow,
)

pytestmark = pytest.mark.elasticsearch

HUNG_S = 5  # what a request that hangs costs a test, and more than one that is answered takes
SECOND = 1_000
TYPED = {"properties": {"age": {"type": "long"}, "n": {"type": "long"}}}


@pytest.fixture
def impatient(proxy: FaultProxy) -> Iterator[ElasticsearchDestination]:
    made = ElasticsearchDestination([proxy.url], request_timeout=HUNG_S)
    yield made
    made.close()


# -- coalescing and order ------------------------------------------------------------------------------------------


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
    outbox: Outbox, destination: ElasticsearchDestination, proxy: FaultProxy
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
    outbox: Outbox, destination: ElasticsearchDestination, proxy: FaultProxy, node: Node
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
    assert (outbox.outcome(good), outbox.state(bad)) == ("superseded", "dead")
    assert outbox.row(bad)["error_type"] == "document_parsing_exception"


def test_failures_of_a_fold_that_was_applied_all_the_same_kill_none_of_its_rows(outbox: Outbox, place: Place) -> None:
    """Its version is sent a second time, alone, within the same claim: what it meets there is its own."""
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
    outbox: Outbox, destination: ElasticsearchDestination, proxy: FaultProxy
) -> None:
    rows = [outbox.index("contacts", "c1", {"n": n}) for n in (1, 2)]
    faults = iter([failing_item(500, "some_exception"), refuse])  # the fold, then the first of its rows alone
    proxy.on(bulk, lambda proxy, request: next(faults)(proxy, request), times=2)
    now = now_ms()
    outbox.relay(destination, max_retries=0).run_once(now)
    assert [outbox.state(row) for row in rows] == ["pending"] * 2
    outbox.drain(destination, now + 60 * SECOND)
    assert [outbox.outcome(row) for row in rows] == ["coalesced", "superseded"]


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


# -- versions ------------------------------------------------------------------------------------------------------


def test_relay_killed_after_acknowledgement_redelivers_without_change(outbox: Outbox, place: Place) -> None:
    row = outbox.index("contacts", "c1", {"name": "Ada"})
    outbox.drain(place.destination)
    outbox.raw("UPDATE outbox_events SET state = 'pending', available_at = 1, outcome = NULL, finished_at = NULL")
    outbox.drain(place.destination)
    assert (outbox.state(row), outbox.outcome(row)) == ("done", "superseded")
    assert place.version("contacts", "c1") == EPOCH_STEP + row


def test_answer_lost_after_the_node_applied_it_is_redelivered_and_explained(
    outbox: Outbox, destination: ElasticsearchDestination, node: Node, proxy: FaultProxy
) -> None:
    row = outbox.index("contacts", "c1", {"name": "Ada"})
    proxy.on(bulk, swallow, times=1)
    now = now_ms()
    outbox.relay(destination).run_once(now)
    assert node.get("contacts", "c1") == {"name": "Ada"}
    assert (outbox.state(row), outbox.row(row)["attempts"]) == ("pending", 0)
    outbox.drain(destination, now + 60 * SECOND)
    assert outbox.outcome(row) == "superseded"


def test_connection_that_breaks_is_not_tried_again_at_another_node_before_the_row_says_so(
    outbox: Outbox, clean_node: Node, proxy: FaultProxy
) -> None:
    """The second node would report the version that the first has just brought, as if somebody else had written it."""
    cluster = ElasticsearchDestination([proxy.url, proxy.url.replace("127.0.0.1", "localhost")], request_timeout=30)
    row = outbox.index("contacts", "c1", {"name": "Ada"})
    proxy.on(bulk, swallow, times=1)
    now = now_ms()
    outbox.relay(cluster).run_once(now)
    assert clean_node.get("contacts", "c1") == {"name": "Ada"}
    assert (outbox.state(row), outbox.row(row)["error_type"]) == ("pending", "unanswered")
    outbox.drain(cluster, now + 60 * SECOND)
    cluster.close()
    assert outbox.outcome(row) == "superseded"


def test_node_that_gives_no_connection_is_passed_over(outbox: Outbox, clean_node: Node, proxy: FaultProxy) -> None:
    other = FaultProxy(clean_node.url)
    cluster = ElasticsearchDestination([proxy.url, other.url], request_timeout=30)
    relay = outbox.relay(cluster)
    outbox.index("contacts", "c0", {})
    relay.run_once()
    other.down()
    rows = [outbox.index("contacts", f"c{n}", {}) for n in range(1, 4)]
    for _ in rows:  # whichever node has its turn
        relay.run_once()
    cluster.close()
    assert {outbox.row(row)["deliveries"] for row in rows} == {1}
    assert (outbox.counts()["done"], relay.breakers()) == (4, [])


def test_id_that_reads_like_an_answer_explains_nothing_and_hides_nothing(outbox: Outbox, place: Place) -> None:
    row = outbox.index("contacts", "current version [7]", {"name": "Ada"})
    outbox.drain(place.destination)
    outbox.raw("UPDATE outbox_events SET state = 'pending', available_at = 1, outcome = NULL, finished_at = NULL")
    outbox.drain(place.destination)
    assert outbox.outcome(row) == "superseded"


def test_restored_backup_that_issues_ids_again_is_not_called_superseded(outbox: Outbox, place: Place) -> None:
    outbox.index("contacts", "c1", {"lost": "timeline"})
    outbox.drain(place.destination)
    outbox.raw("DELETE FROM outbox_documents")
    outbox.raw("DELETE FROM outbox_events")
    outbox.raw("DELETE FROM sqlite_sequence WHERE name = 'outbox_events'")
    row = outbox.index("contacts", "c1", {"after": "restore"})
    outbox.drain(place.destination)
    assert (outbox.state(row), outbox.row(row)["error_type"]) == ("dead", "unexplained_version")
    assert "epoch advance" in outbox.row(row)["error"]

    store = outbox.store()
    operators.advance_epoch(store, place.destination.highest_version("contacts") // EPOCH_STEP, now_ms())
    operators.retry_dead(store, [row], now_ms())
    outbox.drain(place.destination)
    assert place.get("contacts", "c1") == {"after": "restore"}


def test_version_that_somebody_else_wrote_is_not_called_superseded(
    outbox: Outbox, destination: ElasticsearchDestination, node: Node
) -> None:
    outbox.index("contacts", "other", {})
    outbox.drain(destination)
    node.request("PUT", f"/contacts/_doc/c1?version={EPOCH_STEP + 500}&version_type=external", {"by": "hand"})
    row = outbox.index("contacts", "c1", {"name": "Ada"})
    outbox.drain(destination)
    assert (outbox.state(row), outbox.row(row)["error_type"]) == ("dead", "unexplained_version")
    assert str(EPOCH_STEP + 500) in outbox.row(row)["error"]


def test_version_of_a_pruned_row_is_explained(outbox: Outbox, place: Place) -> None:
    first = outbox.index("contacts", "c1", {"n": 1})
    outbox.index("contacts", "c1", {"n": 2})
    outbox.drain(place.destination)
    outbox.raw("UPDATE outbox_events SET state = 'pending', available_at = 1 WHERE id = :id", id=first)
    assert prune(outbox.store(), now_ms() + SECOND) == 1
    outbox.drain(place.destination)
    assert outbox.outcome(first) == "superseded"


def test_index_named_like_an_answer_of_the_node_is_found(
    outbox: Outbox, destination: ElasticsearchDestination, node: Node
) -> None:
    node.request("PUT", "/error/_doc/c0", {})
    outbox.index("error", "c1", {"n": 1})
    outbox.drain(destination)
    assert node.get("error", "c1") == {"n": 1}
    assert node.indexes() == ["error"]  # adopted, as any other


def test_document_of_an_earlier_system_with_a_high_internal_version_is_replaced(
    outbox: Outbox, destination: ElasticsearchDestination, node: Node
) -> None:
    for n in range(20):
        node.request("PUT", "/contacts/_doc/c1", {"legacy": n})
    outbox.index("contacts", "c1", {"name": "Ada"})
    outbox.drain(destination)
    assert node.get("contacts", "c1") == {"name": "Ada"}
    assert node.indexes() == ["contacts"]  # adopted as it is
    assert node.request("GET", "/contacts/_settings")[1]["contacts"]["settings"]["index"]["gc_deletes"] == "24h"


def test_index_is_created_with_the_settings_that_it_is_given_and_with_ours(
    destination: ElasticsearchDestination, node: Node
) -> None:
    destination.ensure_index("contacts", settings={"index.refresh_interval": "5s", "number_of_shards": 2})
    found = node.request("GET", "/contacts/_settings")[1]["contacts-000001"]["settings"]["index"]
    assert (found["refresh_interval"], found["number_of_shards"], found["gc_deletes"]) == ("5s", "2", "24h")


def test_epoch_advanced_while_a_row_waits_keeps_the_order(outbox: Outbox, place: Place) -> None:
    outbox.index("contacts", "c1", {"n": 1})
    place.fail(times=1)
    now = now_ms()
    outbox.drain(place.destination, now)
    outbox.index("contacts", "c1", {"n": 2})
    operators.advance_epoch(outbox.store(), 1, now)
    outbox.drain(place.destination, now + 60 * SECOND)
    assert place.get("contacts", "c1") == {"n": 2}


def test_dead_row_whose_document_has_moved_on_is_superseded_by_its_retry(outbox: Outbox, place: Place) -> None:
    place.destination.ensure_index("contacts", TYPED)
    bad = outbox.index("contacts", "c1", {"age": "x"})
    outbox.drain(place.destination)
    outbox.index("contacts", "c1", {"age": 3})
    outbox.drain(place.destination)
    assert operators.retry_dead(outbox.store(), [bad], now_ms()) == Retried(pending=0, superseded=1, overtaken={})
    assert place.get("contacts", "c1") == {"age": 3}


# -- two relays ----------------------------------------------------------------------------------------------------


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
    outbox: Outbox, destination: ElasticsearchDestination
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
    outbox: Outbox, destination: ElasticsearchDestination
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


# -- faults of a request -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(reply(503), id="503"),
        pytest.param(reply(429), id="429"),
        pytest.param(reply(500), id="500"),
        pytest.param(reply(401), id="401"),
        pytest.param(reply(302, headers={"Location": "http://127.0.0.1:1/"}), id="redirect"),
        pytest.param(reply(200, b"<html>hi</html>", {"Content-Type": "text/html"}), id="html"),
        pytest.param(reply(200, b"{}", {"X-Elastic-Product": "Other"}), id="not-elasticsearch"),
        pytest.param(reply(200, b'{"items":'), id="not-json"),
        pytest.param(refuse, id="closed"),
        pytest.param(cut(20), id="truncated"),
        pytest.param(hang, id="timeout"),
    ],
)
def test_failed_request_spends_no_attempt_and_is_delivered_after(
    outbox: Outbox, impatient: ElasticsearchDestination, node: Node, proxy: FaultProxy, fault: Any
) -> None:
    rows = outbox.index_many("contacts", [("c1", {"n": 1}), ("c2", {"n": 2})])
    outbox.index("deals", "d1", {})
    now = now_ms()
    proxy.on(bulk, fault)
    relay = outbox.relay(impatient)
    relay.run_once(now)
    assert [outbox.row(row)["attempts"] for row in rows] == [0, 0]
    assert [outbox.state(row) for row in rows] == ["pending", "pending"]
    assert relay.breakers()[0]["scope"] == "destination"
    proxy.clear()
    while relay.run_once(now + 60 * SECOND):
        pass
    assert relay.breakers() == []
    assert outbox.counts() == {"pending": 0, "claimed": 0, "done": 3, "dead": 0}
    assert node.documents("contacts") == {"c1": {"n": 1}, "c2": {"n": 2}}


def elsewhere(status: int, body: bytes = b"", **headers: str) -> Any:
    """What a server says that is no Elasticsearch."""
    return lambda _proxy, _request: Reply(
        status, {name.replace("_", "-"): text for name, text in headers.items()}, body
    )


@pytest.mark.parametrize("index_known", [True, False])
@pytest.mark.parametrize(
    "server",
    [
        pytest.param(elsewhere(404, b"<h1>Not Found</h1>", Content_Type="text/html"), id="html-404"),
        pytest.param(elsewhere(200, b"<h1>It works!</h1>", Content_Type="text/html"), id="html-200"),
        pytest.param(elsewhere(200, b"{}", Content_Type="application/json"), id="json"),
        pytest.param(elsewhere(200, b'{"items":[]}', Content_Type="application/json"), id="json-items"),
        pytest.param(elsewhere(200), id="empty"),
        pytest.param(elsewhere(204), id="no-content"),
        pytest.param(elsewhere(307, Location="http://127.0.0.1:1/"), id="redirect"),
        pytest.param(elsewhere(401, b"{}", Content_Type="application/json"), id="401"),
    ],
)
def test_server_that_is_not_elasticsearch_settles_nothing(
    outbox: Outbox, destination: ElasticsearchDestination, node: Node, proxy: FaultProxy, server: Any, index_known: bool
) -> None:
    outbox.index("contacts" if index_known else "deals", "gone", {})
    outbox.drain(destination)
    rows = [outbox.index("contacts", "c1", {"n": 1}), outbox.delete("contacts", "gone")]
    fresh = ElasticsearchDestination([proxy.url], request_timeout=30)  # has not looked at the index yet
    proxy.on(anything, server)
    for each in (destination, fresh):
        relay, now = outbox.relay(each), now_ms()
        for minute in range(3):
            relay.run_once(now + minute * 60 * SECOND)
        assert len(relay.breakers()) == 1
    assert [(outbox.state(row), outbox.row(row)["attempts"]) for row in rows] == [("pending", 0)] * 2
    proxy.clear()
    outbox.drain(destination, now + 3_600 * SECOND)
    fresh.close()
    assert {outbox.state(row) for row in rows} == {"done"}
    assert node.documents("contacts") == {"c1": {"n": 1}}


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        pytest.param(refuse, "Remote end closed connection without response", id="closed"),
        pytest.param(reset, "Connection reset by peer", id="reset"),
        pytest.param(cut(20), "bytes read", id="truncated"),
        pytest.param(hang, "Connection timeout", id="timeout"),
        pytest.param(reply(503), "HTTP 503", id="503"),
    ],
)
def test_breaker_says_in_words_what_happened_on_the_wire(
    outbox: Outbox, impatient: ElasticsearchDestination, proxy: FaultProxy, fault: Any, says: str
) -> None:
    outbox.index("contacts", "c1", {})
    proxy.on(bulk, fault)
    relay = outbox.relay(impatient)
    relay.run_once()
    (breaker,) = relay.breakers()
    assert says in breaker["reason"]
    assert "(" not in breaker["reason"].replace("IncompleteRead(", "")  # no Python


def test_outage_claims_nothing_until_the_probe_is_due(
    outbox: Outbox, destination: ElasticsearchDestination, proxy: FaultProxy
) -> None:
    row = outbox.index("contacts", "c1", {})
    proxy.down()
    relay, now = outbox.relay(destination), now_ms()
    relay.run_once(now)
    deliveries = outbox.row(row)["deliveries"]
    for _ in range(5):
        relay.run_once(now + 1)
    assert outbox.row(row)["deliveries"] == deliveries
    proxy.up()
    while relay.run_once(now + 60 * SECOND):
        pass
    assert outbox.state(row) == "done"


def test_clock_that_is_set_back_in_an_outage_leaves_the_pauses_between_probes(outbox: Outbox) -> None:
    away = ElasticsearchDestination(["http://127.0.0.1:1"], request_timeout=30)
    row = outbox.index("contacts", "c1", {})
    outbox.raw("INSERT INTO outbox_indexes (index_name, physical_index) VALUES ('contacts', 'contacts-000001')")
    relay, now = outbox.relay(away), now_ms()
    relay.run_once(now)
    for _ in range(5):
        relay.run_once(now - 3_600 * SECOND)
    away.close()
    assert outbox.row(row)["deliveries"] == 2  # and one probe


def test_outage_that_ends_before_it_began_by_the_clock_has_taken_no_time(
    outbox: Outbox, destination: ElasticsearchDestination, proxy: FaultProxy
) -> None:
    said: list[str] = []
    outbox.index("contacts", "c1", {})
    proxy.on(bulk, refuse, times=1)
    relay, now = outbox.relay(destination), now_ms()
    relay.run_once(now)
    logger.add(lambda line: said.append(str(line)), level="INFO", format="{message}")
    relay.run_once(now - 3_600 * SECOND)
    assert any(line.startswith("destination answers again after 0 s") for line in said)


@pytest.mark.parametrize("known", [True, False])
def test_outage_costs_a_batch_of_many_indexes_one_timeout_not_one_each(
    outbox: Outbox, proxy: FaultProxy, destination: ElasticsearchDestination, known: bool
) -> None:
    for n in range(5):
        outbox.index(f"index-{n}", "c1", {})
    if known:
        outbox.drain(destination)
        for n in range(5):
            outbox.index(f"index-{n}", "c2", {})
    restarted = ElasticsearchDestination([proxy.url], request_timeout=30)
    proxy.requests.clear()
    proxy.on(anything, refuse)
    outbox.relay(restarted).run_once()
    restarted.close()
    assert len(proxy.requests) <= 2  # where one index is, and the harmless call that tells an outage
    assert outbox.counts()["pending"] == 5
    assert {row["attempts"] for row in outbox.store().events()} == {0}


def test_index_that_cannot_even_be_asked_for_opens_the_breaker(
    outbox: Outbox, destination: ElasticsearchDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = outbox.index("contacts", "c1", {})
    asked: list[str] = []

    def unexpected(name: str) -> str:
        asked.append(name)
        threading.Timer(1, relay.stop).start()
        raise RuntimeError("no destination may raise this")

    monkeypatch.setattr(destination, "ensure_index", unexpected)
    relay = outbox.relay(destination, breaker_first_pause=60, breaker_longest_pause=60)
    relay.run()
    assert [(b["scope"], b["reason"]) for b in relay.breakers()] == [
        ("destination", "RuntimeError: no destination may raise this")
    ]
    assert asked == ["contacts"]  # not again before the pause is over
    assert (outbox.state(row), outbox.row(row)["attempts"]) == ("pending", 0)


@pytest.mark.parametrize("status", [413, 400])
def test_request_that_is_refused_as_a_whole_is_halved_until_it_passes(
    outbox: Outbox, destination: ElasticsearchDestination, proxy: FaultProxy, status: int
) -> None:
    rows = outbox.index_many("contacts", [(f"c{n}", {"text": "x" * (5_000 if n == 3 else 10)}) for n in range(8)])
    proxy.on(lambda request: request.is_bulk and len(request.body) > 4_000, reply(status))
    outbox.drain(destination)
    assert [outbox.state(row) for row in rows].count("done") == 7
    assert (outbox.state(rows[3]), outbox.row(rows[3])["error_type"]) == ("dead", f"http_{status}")


def test_400_for_everything_kills_no_document(
    outbox: Outbox, destination: ElasticsearchDestination, proxy: FaultProxy
) -> None:
    outbox.index("contacts", "first", {})
    outbox.drain(destination)  # the index has just been looked at: the next request is _bulk
    rows = outbox.index_many("contacts", [(f"c{n}", {}) for n in range(8)])
    proxy.requests.clear()
    html = {"Content-Type": "text/html"}
    proxy.on(anything, reply(400, b"<html>The plain HTTP request was sent to HTTPS port</html>", html))
    now = now_ms()
    outbox.drain(destination, now)
    assert [request.is_bulk for request in proxy.requests] == [True, False]  # not halved: the health call failed, too
    assert [(outbox.state(row), outbox.row(row)["attempts"]) for row in rows] == [("pending", 0)] * 8


def test_short_answer_settles_only_what_it_speaks_of(
    outbox: Outbox, destination: ElasticsearchDestination, proxy: FaultProxy
) -> None:
    rows = outbox.index_many("contacts", [("c1", {}), ("c2", {}), ("c3", {})])
    proxy.on(bulk, rewrite(lambda answer: {**answer, "items": answer["items"][:1]}), times=1)
    now = now_ms()
    outbox.relay(destination).run_once(now)
    assert [outbox.state(row) for row in rows] == ["done", "pending", "pending"]
    outbox.drain(destination, now + 60 * SECOND)
    assert [outbox.state(row) for row in rows] == ["done", "done", "done"]


def test_answer_in_another_order_settles_nothing_wrongly(
    outbox: Outbox, destination: ElasticsearchDestination, proxy: FaultProxy
) -> None:
    rows = outbox.index_many("contacts", [("c1", {}), ("c2", {})])
    proxy.on(bulk, rewrite(lambda answer: {**answer, "items": answer["items"][::-1]}), times=1)
    outbox.relay(destination).run_once()
    assert [outbox.state(row) for row in rows] == ["pending", "pending"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_answer_that_holds_half_a_character_is_an_answer_like_any_other(
    outbox: Outbox, destination: ElasticsearchDestination, proxy: FaultProxy, log_format: Literal["text", "json"]
) -> None:
    """A preview that was cut in the middle of a surrogate pair: neither SQLite nor UTF-8 takes that."""
    written = io.StringIO()
    logs.set_up(settings(log_format=log_format), written)
    row = outbox.index("contacts", "c1", {})
    proxy.on(bulk, failing_item(400, "mapper_parsing_exception\ud83d", "Preview of field's value: '\ud83d"))
    outbox.drain(destination, max_retries=0)
    assert outbox.state(row) == "dead"
    assert outbox.row(row)["error"] == r"Preview of field's value: '\ud83d"
    assert "Preview" in written.getvalue()


def test_item_429_backs_off_without_spending_an_attempt(
    outbox: Outbox, destination: ElasticsearchDestination, proxy: FaultProxy
) -> None:
    rows = outbox.index_many("contacts", [("c1", {}), ("c2", {})])
    proxy.on(bulk, failing_item(429, "es_rejected_execution_exception"), times=1)
    now = now_ms()
    outbox.drain(destination, now)
    assert (outbox.state(rows[1]), outbox.row(rows[0])["available_at"]) == ("done", now + SECOND)
    assert outbox.row(rows[0])["attempts"] == 0
    outbox.drain(destination, now + SECOND)
    assert outbox.state(rows[0]) == "done"


# -- one broken index ----------------------------------------------------------------------------------------------


def closed(node: Node) -> None:
    node.request("POST", "/contacts-000001/_close")


def write_blocked(node: Node) -> None:
    node.request("PUT", "/contacts-000001/_settings", {"index.blocks.write": True})


def at_flood_stage(node: Node) -> None:
    node.request("PUT", "/contacts-000001/_settings", {"index.blocks.read_only_allow_delete": True})


def mend(node: Node) -> None:
    node.request("POST", "/contacts-000001/_open")
    blocks = {"index.blocks.write": None, "index.blocks.read_only_allow_delete": None}
    node.request("PUT", "/contacts-000001/_settings", blocks)


@pytest.mark.parametrize("broken", [closed, write_blocked, at_flood_stage])
def test_broken_index_holds_only_its_own_rows(
    outbox: Outbox, destination: ElasticsearchDestination, node: Node, broken: Any
) -> None:
    outbox.index("contacts", "c1", {})
    outbox.drain(destination)
    broken(node)
    held = outbox.index_many("contacts", [("c2", {}), ("c3", {})])
    flowing = outbox.index_many("deals", [("d1", {}), ("d2", {})])
    relay, now = outbox.relay(destination), now_ms()
    while relay.run_once(now):
        pass
    assert [outbox.state(row) for row in flowing] == ["done", "done"]
    assert [(outbox.state(row), outbox.row(row)["attempts"]) for row in held] == [("pending", 0)] * 2
    assert [(b["scope"], b["index"]) for b in relay.breakers()] == [("index", "contacts")]
    outbox.index("contacts", "c4", {})
    more = outbox.index("deals", "d3", {})
    while relay.run_once(now + 1):
        pass
    assert outbox.state(more) == "done"
    mend(node)
    while relay.run_once(now + 60 * SECOND):
        pass
    assert set(node.documents("contacts")) == {"c1", "c2", "c3", "c4"}
    assert relay.breakers() == []


def test_missing_index_is_not_created_anew_behind_its_alias(
    outbox: Outbox, proxy: FaultProxy, node: Node, destination: ElasticsearchDestination
) -> None:
    outbox.index("contacts", "c1", {})
    outbox.drain(destination)
    node.request("DELETE", "/contacts-000001")
    fresh = ElasticsearchDestination([proxy.url], request_timeout=30)  # has not looked at the index yet
    rows = [outbox.delete("contacts", "c1"), outbox.index("contacts", "c2", {})]
    flowing = outbox.index("deals", "d1", {})
    outbox.drain(fresh)
    fresh.close()
    assert [outbox.state(row) for row in [*rows, flowing]] == ["pending", "pending", "done"]
    assert node.indexes() == ["deals-000001"]


def test_alias_on_two_indexes_is_blocked_and_said(
    outbox: Outbox, destination: ElasticsearchDestination, node: Node
) -> None:
    for name in ("a", "b"):
        node.request("PUT", f"/{name}", {"aliases": {"contacts": {}}})
    row = outbox.index("contacts", "c1", {})
    relay = outbox.relay(destination)
    relay.run_once()
    assert outbox.state(row) == "pending"
    assert "points to 2 indexes" in relay.breakers()[0]["reason"]


@pytest.mark.parametrize("remove", ["purge", "another relay"])
def test_broken_index_without_rows_is_no_longer_waited_for(
    outbox: Outbox, destination: ElasticsearchDestination, node: Node, remove: str
) -> None:
    outbox.index("contacts", "c1", {})
    outbox.drain(destination)
    closed(node)
    outbox.index("contacts", "c2", {})
    relay, now = outbox.relay(destination), now_ms()
    relay.run_once(now)
    assert relay.breakers()
    relay.run_once(now + 60 * SECOND)  # the trial fails, its row waits
    assert relay.breakers()
    if remove == "purge":
        operators.purge(outbox.store(), "contacts")
    else:
        mend(node)
        outbox.drain(destination, now + 600 * SECOND)
    relay.run_once(now + 600 * SECOND)
    assert relay.breakers() == []


def test_broken_index_whose_rows_wait_is_still_waited_for(
    outbox: Outbox, destination: ElasticsearchDestination, node: Node
) -> None:
    outbox.index("contacts", "c1", {})
    outbox.drain(destination)
    closed(node)
    row = outbox.index("contacts", "c2", {})
    relay, now = outbox.relay(destination), now_ms()
    relay.run_once(now)
    for state in ("claimed", "pending"):
        outbox.raw(
            "UPDATE outbox_events SET state = :state, claim_token = 'another relay', lease_expires_at = :later,"
            " available_at = :later WHERE id = :row",
            state=state, later=now + 20 * SECOND, row=row,
        )  # fmt: skip
        relay.run_once(now + 10 * SECOND)
        assert relay.breakers()


# -- rows that another program wrote -------------------------------------------------------------------------------


def test_payloads_that_cannot_be_sent_die_alone(outbox: Outbox, place: Place) -> None:
    good = outbox.index("contacts", "good", {"n": 1})
    forged = '{"a":1}\n{"delete":{"_index":"contacts-000001","_id":"good"}}'
    bad = [
        outbox.put_raw("contacts", "x" * 513, "{}"),
        outbox.put_raw("contacts", "newline", forged),
        outbox.put_raw("contacts", "broken", '{"n":'),
        outbox.put_raw("contacts", "array", "[1]"),
        outbox.put_raw("contacts", "", "{}"),
    ]
    missing = outbox.index("contacts", "missing", {})
    outbox.raw("DELETE FROM outbox_documents WHERE event_id = :id", id=missing)
    outbox.drain(place.destination)
    assert [outbox.state(row) for row in [*bad, missing]] == ["dead"] * 6
    assert outbox.state(good) == "done"
    assert place.documents("contacts") == {"good": {"n": 1}}


LATIN_1 = "CAST(x'4dfc' AS TEXT)"


@pytest.mark.parametrize(
    ("column", "text"),
    [
        *product(["index_name", "document_id", "tenant_id", "entity"], ["x'00ff'", "x'41'", LATIN_1]),
        ("error_type", LATIN_1),
    ],
)
def test_row_that_names_its_document_by_no_text_dies_alone(
    outbox: Outbox, tmp_path: Path, column: str, text: str
) -> None:
    """SQLite takes any bytes: a BLOB where another program keeps its keys as such, or Latin-1."""
    destination = EmbeddedDestination(tmp_path / "search.db")
    good = outbox.index("contacts", "good", {"n": 1})
    bad = outbox.put_raw("contacts", "bad", "{}")
    outbox.raw(f"UPDATE outbox_events SET {column} = {text} WHERE id = :bad", bad=bad)
    relay = outbox.relay(destination)
    relay.run_once()
    assert (outbox.state(good), outbox.state(bad)) == ("done", "dead")
    dead = outbox.row(bad)
    assert (dead["error_type"], dead["error"].partition(";")[0]) == ("illegal_text", f"no UTF-8 text: {column}")
    assert (relay.totals.done, relay.totals.dead) == (1, 1)
    destination.close()


@pytest.mark.parametrize("form", ["TEXT", "BLOB"])
def test_document_in_latin_1_dies_alone_and_can_be_looked_at(outbox: Outbox, place: Place, form: str) -> None:
    good, bad = outbox.index("contacts", "good", {"n": 1}), outbox.put_raw("contacts", "bad", "{}")
    latin_1 = '{"name":"Müller"}'.encode("latin-1").hex()
    outbox.raw(f"UPDATE outbox_documents SET document = CAST(x'{latin_1}' AS {form}) WHERE event_id = :bad", bad=bad)
    outbox.drain(place.destination)
    assert (outbox.state(good), outbox.state(bad)) == ("done", "dead")
    assert outbox.row(bad)["document"] == r'{"name":"M\xfcller"}'
    assert [row["id"] for row in outbox.store().events()] == [good, bad]


def test_row_whose_time_or_size_is_no_number_is_delivered(outbox: Outbox, place: Place) -> None:
    values = ["created_at = CURRENT_TIMESTAMP", "created_at = 1.5", "attempts = 'none'", "deliveries = 1.5"]
    values += ["deliveries = 'few'", "document_bytes = 'many'", "available_at = 'now'"]
    rows = [outbox.put_raw("contacts", f"c{n}", "{}") for n in range(len(values))]
    for row, value in zip(rows, values, strict=True):
        outbox.raw(f"UPDATE outbox_events SET {value} WHERE id = :row", row=row)
    outbox.drain(place.destination)
    assert [outbox.outcome(row) for row in rows] == ["applied"] * len(values)
    assert now_ms() - outbox.row(rows[0])["created_at"] < 60 * SECOND


def test_rows_that_another_program_put_back_are_sent_alone_in_any_order(outbox: Outbox, place: Place) -> None:
    rows = [outbox.index("contacts", f"c{n}", {}) for n in range(3)]
    outbox.raw("UPDATE outbox_events SET deliveries = 11, error_type = 'unanswered'")
    outbox.raw("UPDATE outbox_events SET available_at = 1 WHERE id = :id", id=rows[1])
    outbox.drain(place.destination)
    assert {outbox.outcome(row) for row in rows} == {"applied"}


def test_large_rows_of_unknown_size_are_measured_at_the_claim(
    outbox: Outbox, destination: ElasticsearchDestination, proxy: FaultProxy
) -> None:
    for n in range(4):
        outbox.put_raw("contacts", f"c{n}", json.dumps({"text": "x" * 40_000}))
    outbox.drain(destination, batch_bytes=100_000)
    assert [len(request.body) > 100_000 for request in proxy.requests if request.is_bulk] == [False, False]
