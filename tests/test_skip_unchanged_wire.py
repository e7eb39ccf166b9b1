"""What `skip_unchanged` asks of a cluster, what it makes of wrong and missing answers, and what others pay for it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from outbox.destinations.cluster.destination import ClusterDestination
from tests.support.memory_cluster import MemoryCluster
from tests.support.node import Node, destination_to
from tests.support.outbox import Outbox
from tests.support.places import ClusterPlace
from tests.support.proxy import FaultProxy, Request, refuse, reply, rewrite
from tests.support.touching import Touched
from tests.support.watching import asked_of_stores


@pytest.fixture
def app(outbox: Outbox, destination: ClusterDestination, node: Node, proxy: FaultProxy) -> Iterator[Touched]:
    """Two contacts, which were delivered."""
    made = Touched(outbox, ClusterPlace(destination, node, proxy))
    for number in (1, 2):
        made.save(number, "A")
    made.deliver()
    proxy.requests.clear()
    yield made
    made.close()


def reads(request: Request) -> bool:
    return request.path.startswith("/_mget")


def asked(proxy: FaultProxy) -> list[str]:
    """What was sent about documents: reads, looks at where writes are decided, and writes."""
    return [
        "read" if reads(each) else "look" if b'"if_seq_no"' in each.body else "write"
        for each in proxy.requests
        if reads(each) or each.is_bulk
    ]


@pytest.mark.elasticsearch
def test_unchanged_documents_take_two_small_requests_and_changed_ones_a_read_more(
    app: Touched, proxy: FaultProxy
) -> None:
    rows = [app.touch(number) for number in (1, 2)]
    app.deliver()
    assert (app.ends(*rows), asked(proxy)) == (["unchanged", "unchanged"], ["read", "look"])
    proxy.requests.clear()
    rows = [app.wrote("B", number) for number in (1, 2)]
    app.deliver()
    assert (app.ends(*rows), asked(proxy)) == (["applied", "applied"], ["read", "write"])
    proxy.requests.clear()
    rows = [app.touch(1), app.wrote("C", 2)]
    app.deliver()
    assert (app.ends(*rows), asked(proxy)) == (["unchanged", "applied"], ["read", "look", "write"])
    assert b'"_id":"1"' not in proxy.requests[-1].body


@pytest.mark.elasticsearch
def test_what_a_node_that_lost_the_others_still_holds_is_not_believed(app: Touched, proxy: FaultProxy) -> None:
    old: list[Any] = []

    def note(answer: Any) -> Any:
        old.append(answer)
        return answer

    proxy.on(reads, rewrite(note), times=1)
    app.touch()
    app.deliver()
    app.wrote("B")
    app.deliver()
    proxy.on(reads, rewrite(lambda _answer: old[0]), times=1)
    last = app.wrote("A")
    app.deliver()
    assert (app.ends(last), app.name_held()) == (["applied"], "A")


@pytest.mark.elasticsearch
@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_documents_that_may_not_be_read_are_written(app: Touched, proxy: FaultProxy, status: int) -> None:
    proxy.on(reads, reply(status))
    rows = [app.touch(), app.wrote("B", 2)]
    app.deliver()
    assert (app.ends(*rows), app.name_held(2)) == (["applied", "applied"], "B")


@pytest.mark.elasticsearch
def test_look_that_is_refused_or_says_nothing_means_that_they_are_written(app: Touched, proxy: FaultProxy) -> None:
    looks = [reply(503), reply(200, b'{"items":[]}'), reply(200, b"[]"), rewrite(lambda _: {"items": [{}, None]})]
    for answer in looks:
        proxy.on(lambda request: request.is_bulk and b"if_seq_no" in request.body, answer, times=1)
        rows = [app.touch(), app.touch(2)]
        app.deliver()
        assert app.ends(*rows) == ["applied", "applied"]


@pytest.mark.elasticsearch
@pytest.mark.parametrize("of", ["read", "look"])
def test_missing_answer_is_an_outage_and_loses_nothing(app: Touched, proxy: FaultProxy, of: str) -> None:
    proxy.on(lambda request: reads(request) if of == "read" else b"if_seq_no" in request.body, refuse)
    rows = [app.touch(), app.wrote("B", 2)]
    app.deliver()
    assert [app.outbox.state(row) for row in rows] == ["pending", "pending"]
    assert [app.outbox.row(row)["attempts"] for row in rows] == [0, 0]
    proxy.clear()
    app.now += 61_000
    app.deliver()
    assert (app.ends(*rows), app.name_held(2)) == (["applied", "applied"], "B")


@pytest.mark.elasticsearch
def test_source_that_a_pipeline_may_have_changed_is_not_compared(app: Touched, node: Node, proxy: FaultProxy) -> None:
    node.request("PUT", "/contacts-000001/_settings", {"index.final_pipeline": "none-such"})
    app.relay = app.another_relay(destination_to(proxy.url))
    row = app.touch()
    app.relay.run_once(app.now)
    assert (app.outbox.state(row), asked(proxy)) == ("pending", ["write"])
    node.request("PUT", "/contacts-000001/_settings", {"index.final_pipeline": None})


def test_entity_without_it_costs_not_one_statement_or_request_more(outbox: Outbox, cluster: MemoryCluster) -> None:
    made: list[list[str]] = []
    for skip in (False, True):
        destination = destination_to(cluster.url)
        place: Any = SimpleNamespace(destination=destination)
        app = Touched(outbox, place, skip_unchanged=skip)
        app.save(1, f"{skip}")
        app.deliver()
        app.touch()
        cluster.requests.clear()
        with asked_of_stores() as statements:
            app.deliver()
        made.append([sql for sql, _ in statements])
        assert asked(cluster) == (["read", "write"] if skip else ["write"])
        assert skip or len(cluster.requests) == 1
        app.close()
        destination.close()
    mine = ("outbox_reindex_jobs", "d.state = 'dead'")
    assert [any(each in statement for statement in some for each in mine) for some in made] == [False, True]
