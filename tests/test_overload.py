"""An overload of one index makes its requests smaller and fewer, and is none of the others'."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest

from outbox import logs
from outbox.destinations.base import Operation
from outbox.destinations.elasticsearch.destination import ElasticsearchDestination
from outbox.errors import DestinationUnanswered
from outbox.reindex.writer import Writer
from outbox.relay.intake import SMALL_BYTES, Intake
from outbox.store.models import now_ms
from tests.support.memory_cluster import MemoryCluster
from tests.support.outbox import Outbox, settings
from tests.support.proxy import Action, bulk, reply

SECOND = 1_000
TEXT = "x" * 50_000
REJECTED = b'{"error":{"type":"%s","reason":"rejected execution of coordinating operation"},"status":429}'


@pytest.fixture
def destination(cluster: MemoryCluster) -> Iterator[ElasticsearchDestination]:
    made = ElasticsearchDestination([cluster.url], request_timeout=30)
    yield made
    made.close()


def too_much(error_type: str = "es_rejected_execution_exception") -> Action:
    return reply(429, REJECTED % error_type.encode())


def larger_than(size: int, index: str = "") -> Any:
    return lambda request: request.is_bulk and len(request.body) > size and index.encode() in request.body


def scopes(relay: Any) -> list[str]:
    return [each["scope"] for each in relay.breakers()]


@pytest.mark.parametrize("error_type", ["es_rejected_execution_exception", "circuit_breaking_exception"])
def test_large_requests_of_one_index_shrink_until_they_pass_while_others_are_answered(
    outbox: Outbox, cluster: MemoryCluster, destination: ElasticsearchDestination, error_type: str
) -> None:
    large = outbox.index_many("articles", [(f"a{n}", {"body": TEXT}) for n in range(60)])
    cluster.on(larger_than(400_000, "articles"), too_much(error_type))
    relay, now = outbox.relay(destination, batch_bytes=2_000_000), now_ms()
    for second in range(200):
        small = outbox.index("small", f"s{second}", {})
        while relay.run_once(now + second * SECOND):
            pass
        assert outbox.state(small) == "done"  # in the same second
        assert scopes(relay) == []
        if all(outbox.state(row) == "done" for row in large):
            break
    assert second < 60
    assert {outbox.row(row)["attempts"] for row in large} == {0}
    refused = [len(each.body) for each in cluster.bulks if larger_than(400_000, "articles")(each)]
    assert len(refused) <= 6  # each half as large as the one before, about, not again and again


def test_index_that_is_refused_however_small_its_requests_pauses_longer_and_longer(
    outbox: Outbox, cluster: MemoryCluster, destination: ElasticsearchDestination
) -> None:
    outbox.index_many("articles", [(f"a{n}", {"body": TEXT}) for n in range(60)])
    cluster.on(larger_than(0, "articles"), too_much())
    relay, now = outbox.relay(destination, batch_bytes=2_000_000), now_ms()
    for second in range(120):
        outbox.index("small", f"s{second}", {})
        while relay.run_once(now + second * SECOND):
            pass
        assert scopes(relay) == []
    assert len(cluster.documents["small-000001"]) == 120
    refused = [each for each in cluster.bulks if b"articles" in each.body]
    assert len(refused) < 15
    assert outbox.counts()["dead"] == 0


def test_small_requests_refused_while_nothing_is_taken_are_an_outage(
    outbox: Outbox, cluster: MemoryCluster, destination: ElasticsearchDestination
) -> None:
    row = outbox.index("small", "s1", {})
    cluster.on(bulk, too_much())
    relay, now = outbox.relay(destination), now_ms()
    relay.run_once(now)
    assert scopes(relay) == ["destination"]
    assert (outbox.state(row), outbox.row(row)["attempts"]) == ("pending", 0)
    cluster.clear()
    relay.run_once(now + 60 * SECOND)
    assert (outbox.state(row), scopes(relay)) == ("done", [])


def test_partial_updates_whose_documents_there_is_no_memory_to_read_wait_like_those_that_are_refused(
    outbox: Outbox, cluster: MemoryCluster, destination: ElasticsearchDestination
) -> None:
    outbox.index("articles", "a1", {"body": TEXT})
    relay, now = outbox.relay(destination), now_ms()
    relay.run_once(now)
    row = outbox.update("articles", "a1", {"seen": 1})
    cluster.on(lambda request: request.path.startswith("/_mget"), too_much("circuit_breaking_exception"), times=1)
    relay.run_once(now)
    assert (outbox.state(row), outbox.row(row)["attempts"], scopes(relay)) == ("pending", 0, [])
    relay.run_once(now + SECOND)
    assert outbox.state(row) == "done"


def test_overload_is_said_once_when_it_begins_and_once_when_it_has_ended(
    outbox: Outbox, cluster: MemoryCluster, destination: ElasticsearchDestination
) -> None:
    written = io.StringIO()
    logs.set_up(settings(log_operations=False), written)
    outbox.index_many("articles", [(f"a{n}", {"body": TEXT}) for n in range(60)])
    cluster.on(larger_than(400_000, "articles"), too_much())
    relay, now = outbox.relay(destination, batch_bytes=2_000_000), now_ms()
    for second in range(120):
        outbox.index("articles", f"b{second}", {"body": TEXT})
        while relay.run_once(now + second * SECOND):
            pass
    assert written.getvalue().count("index articles is overloaded") == 1
    cluster.clear()
    outbox.index("articles", "last", {"body": TEXT})
    relay.run_once(now + 300 * SECOND)
    assert written.getvalue().count("index articles is no longer overloaded") == 1


def test_scan_of_a_reindex_halves_what_is_refused(
    cluster: MemoryCluster, destination: ElasticsearchDestination
) -> None:
    destination.ensure_index("articles")
    document = b'{"body":"%s"}' % TEXT.encode()
    cluster.on(larger_than(400_000), too_much())
    with Writer[None](destination, 2, 2_000_000, check=lambda: None, report=lambda _: None) as writer:
        writer.send([Operation("articles", "articles-000001", f"a{n}", 1, document) for n in range(60)], None)
        (page,) = writer.drain()
    assert (page.refused, len(cluster.documents["articles-000001"])) == ([], 60)


def test_what_takes_long_gets_smaller_and_what_is_quick_grows_up_to_the_limit() -> None:
    intake = Intake(full=5_000_000, first_pause_ms=1_000, longest_pause_ms=30_000)
    intake.taken(5_000_000, 2_000, now=0)
    assert intake.bytes_ == 1_250_000
    for _ in range(100):
        intake.taken(intake.bytes_, 100, now=0)
    assert intake.bytes_ == 5_000_000
    for _ in range(100):
        intake.taken(intake.bytes_, 60_000, now=0)
    assert SMALL_BYTES < intake.bytes_ < 1_000_000  # no slower than that: others are not behind it for long


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_call_of_a_rebuild_that_is_answered_with_not_now_is_no_refusal(
    destination: ElasticsearchDestination, cluster: MemoryCluster, status: int
) -> None:
    target = destination.ensure_index("contacts")
    cluster.on(lambda request: request.path.startswith(f"/{target}/_count"), reply(status))
    with pytest.raises(DestinationUnanswered):  # a rebuild waits and asks again
        destination.count(target)
