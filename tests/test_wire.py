"""What every answer on the wire means for the row, and a request that gets none."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from loguru import logger

from outbox import logs
from outbox.destinations.cluster.destination import ClusterDestination
from outbox.store.models import now_ms
from tests.support.node import OPENSEARCH, TESTED, Node, destination_to
from tests.support.outbox import Outbox, settings
from tests.support.places import failing_item
from tests.support.proxy import FaultProxy, Reply, Request, anything, bulk, cut, hang, refuse, reply, reset, rewrite

pytestmark = pytest.mark.elasticsearch

HUNG_S = 5  # what a request that hangs costs a test, and more than one that is answered takes
SECOND = 1_000


@pytest.fixture
def impatient(proxy: FaultProxy) -> Iterator[ClusterDestination]:
    made = destination_to(proxy.url, request_timeout=HUNG_S)
    yield made
    made.close()


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
    outbox: Outbox, impatient: ClusterDestination, node: Node, proxy: FaultProxy, fault: Any
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
    outbox: Outbox, destination: ClusterDestination, node: Node, proxy: FaultProxy, server: Any, index_known: bool
) -> None:
    outbox.index("contacts" if index_known else "deals", "gone", {})
    outbox.drain(destination)
    rows = [outbox.index("contacts", "c1", {"n": 1}), outbox.delete("contacts", "gone")]
    fresh = destination_to(proxy.url, request_timeout=30)  # has not looked at the index yet
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
    outbox: Outbox, impatient: ClusterDestination, proxy: FaultProxy, fault: Any, says: str
) -> None:
    outbox.index("contacts", "c1", {})
    proxy.on(bulk, fault)
    relay = outbox.relay(impatient)
    relay.run_once()
    (breaker,) = relay.breakers()
    assert says in breaker["reason"]
    assert "(" not in breaker["reason"].replace("IncompleteRead(", "")  # no Python


def test_outage_claims_nothing_until_the_probe_is_due(
    outbox: Outbox, destination: ClusterDestination, proxy: FaultProxy
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
    away = destination_to("http://127.0.0.1:1", request_timeout=30)
    row = outbox.index("contacts", "c1", {})
    outbox.raw("INSERT INTO outbox_indexes (index_name, physical_index) VALUES ('contacts', 'contacts-000001')")
    relay, now = outbox.relay(away), now_ms()
    relay.run_once(now)
    for _ in range(5):
        relay.run_once(now - 3_600 * SECOND)
    away.close()
    assert outbox.row(row)["deliveries"] == 2  # and one probe


def test_outage_that_ends_before_it_began_by_the_clock_has_taken_no_time(
    outbox: Outbox, destination: ClusterDestination, proxy: FaultProxy
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
    outbox: Outbox, proxy: FaultProxy, destination: ClusterDestination, known: bool
) -> None:
    for n in range(5):
        outbox.index(f"index-{n}", "c1", {})
    if known:
        outbox.drain(destination)
        for n in range(5):
            outbox.index(f"index-{n}", "c2", {})
    restarted = destination_to(proxy.url, request_timeout=30)
    proxy.requests.clear()
    proxy.on(anything, refuse)
    outbox.relay(restarted).run_once()
    restarted.close()
    assert len(proxy.requests) <= 2  # where one index is, and the harmless call that tells an outage
    assert outbox.counts()["pending"] == 5
    assert {row["attempts"] for row in outbox.store().events()} == {0}


def test_index_that_cannot_even_be_asked_for_opens_the_breaker(
    outbox: Outbox, destination: ClusterDestination, monkeypatch: pytest.MonkeyPatch
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
    outbox: Outbox, destination: ClusterDestination, proxy: FaultProxy, status: int
) -> None:
    rows = outbox.index_many("contacts", [(f"c{n}", {"text": "x" * (5_000 if n == 3 else 10)}) for n in range(8)])
    proxy.on(lambda request: request.is_bulk and len(request.body) > 4_000, reply(status))
    outbox.drain(destination)
    assert [outbox.state(row) for row in rows].count("done") == 7
    assert (outbox.state(rows[3]), outbox.row(rows[3])["error_type"]) == ("dead", f"http_{status}")


def test_400_for_everything_kills_no_document(
    outbox: Outbox, destination: ClusterDestination, proxy: FaultProxy
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
    outbox: Outbox, destination: ClusterDestination, proxy: FaultProxy
) -> None:
    rows = outbox.index_many("contacts", [("c1", {}), ("c2", {}), ("c3", {})])
    proxy.on(bulk, rewrite(lambda answer: {**answer, "items": answer["items"][:1]}), times=1)
    now = now_ms()
    outbox.relay(destination).run_once(now)
    assert [outbox.state(row) for row in rows] == ["done", "pending", "pending"]
    outbox.drain(destination, now + 60 * SECOND)
    assert [outbox.state(row) for row in rows] == ["done", "done", "done"]


def test_answer_in_another_order_settles_nothing_wrongly(
    outbox: Outbox, destination: ClusterDestination, proxy: FaultProxy
) -> None:
    rows = outbox.index_many("contacts", [("c1", {}), ("c2", {})])
    proxy.on(bulk, rewrite(lambda answer: {**answer, "items": answer["items"][::-1]}), times=1)
    outbox.relay(destination).run_once()
    assert [outbox.state(row) for row in rows] == ["pending", "pending"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_answer_that_holds_half_a_character_is_an_answer_like_any_other(
    outbox: Outbox, destination: ClusterDestination, proxy: FaultProxy, log_format: Literal["text", "json"]
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
    outbox: Outbox, destination: ClusterDestination, proxy: FaultProxy
) -> None:
    rows = outbox.index_many("contacts", [("c1", {}), ("c2", {})])
    proxy.on(bulk, failing_item(429, "es_rejected_execution_exception"), times=1)
    now = now_ms()
    outbox.drain(destination, now)
    assert (outbox.state(rows[1]), outbox.row(rows[0])["available_at"]) == ("done", now + SECOND)
    assert outbox.row(rows[0])["attempts"] == 0
    outbox.drain(destination, now + SECOND)
    assert outbox.state(rows[0]) == "done"


def test_error_of_a_document_that_is_no_json_does_not_hold_the_document(
    outbox: Outbox, destination: ClusterDestination
) -> None:
    row = outbox.put_raw("contacts", "c1", '{"password": "correct horse", "n": x}')
    outbox.drain(destination)
    error = outbox.row(row)["error"]
    assert outbox.state(row) == "dead"
    assert "Unrecognized token" in error
    assert "correct horse" not in error


def test_server_that_does_not_know_to_leave_documents_out_of_errors_is_asked_once(
    outbox: Outbox, destination: ClusterDestination, proxy: FaultProxy
) -> None:
    def asked(request: Request) -> bool:
        return request.is_bulk and "include_source_on_error=false" in request.path

    why = "request [/_bulk] contains unrecognized parameter: [include_source_on_error]"
    error = {"error": {"type": "illegal_argument_exception", "reason": why}, "status": 400}
    proxy.on(asked, reply(400, json.dumps(error).encode()))
    for number in range(3):
        rows = outbox.index_many("contacts", [(f"c{number}", {}), (f"d{number}", {})])
        outbox.drain(destination)
        assert {outbox.state(row) for row in rows} == {"done"}
    once = [] if TESTED is OPENSEARCH else [True]
    assert [asked(request) for request in proxy.requests if request.is_bulk] == [*once, False, False, False]
