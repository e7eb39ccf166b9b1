"""A user of the cluster who lacks a right: it stops what it is about, and nothing else."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from outbox.destinations.elasticsearch.destination import ElasticsearchDestination
from tests.support.node import Node, destination_to
from tests.support.outbox import Outbox
from tests.support.proxy import FaultProxy, Request, reply

pytestmark = pytest.mark.elasticsearch

UNAUTHORIZED = json.dumps(
    {"error": {"type": "security_exception", "reason": "action is unauthorized for user [relay]"}, "status": 403}
).encode()


def about_the_cluster(request: Request) -> bool:
    return request.path.startswith(("/_cluster/health", "/_nodes"))


def test_user_without_the_right_to_monitor_is_answered(
    destination: ElasticsearchDestination, proxy: FaultProxy
) -> None:
    proxy.on(about_the_cluster, reply(403, UNAUTHORIZED))
    assert destination.ping() is None
    assert destination.health().status == "?"
    proxy.clear()
    proxy.on(about_the_cluster, reply(403, b"<html>a proxy of the company</html>"))
    assert destination.ping() is not None


def test_index_that_the_user_may_not_see_holds_up_no_other(
    outbox: Outbox, destination: ElasticsearchDestination, node: Node, proxy: FaultProxy
) -> None:
    proxy.on(about_the_cluster, reply(403, UNAUTHORIZED))
    earlier = outbox.index("secrets", "s0", {})
    outbox.drain(destination)
    proxy.on(lambda request: request.path.startswith("/secrets"), reply(403, UNAUTHORIZED))
    row, neighbour = outbox.index("secrets", "s1", {}), outbox.index("contacts", "c1", {"name": "Ada"})
    with closing(destination_to(proxy.url, request_timeout=30)) as anew:  # has not looked at any index so far
        relay = outbox.relay(anew)
        while relay.run_once():
            pass
    assert (outbox.state(earlier), outbox.state(row), outbox.state(neighbour)) == ("done", "pending", "done")
    assert [(breaker["scope"], breaker["index"]) for breaker in relay.breakers()] == [("index", "secrets")]
    assert node.documents("contacts") == {"c1": {"name": "Ada"}}


def test_user_who_may_not_read_holds_up_nothing_but_partial_updates(
    outbox: Outbox, destination: ElasticsearchDestination, proxy: FaultProxy
) -> None:
    for index in ("contacts", "secrets"):
        outbox.index(index, "1", {"name": "Ada"})
    outbox.drain(destination)
    proxy.on(lambda request: request.path.startswith("/_mget"), reply(403, UNAUTHORIZED))
    row, neighbour = outbox.update("secrets", "1", {"name": "Grace"}), outbox.index("contacts", "1", {"name": "Grace"})
    relay = outbox.relay(destination)
    while relay.run_once():
        pass
    assert (outbox.state(row), outbox.state(neighbour)) == ("pending", "done")
    assert [(breaker["scope"], breaker["index"]) for breaker in relay.breakers()] == [("index", "secrets")]


def test_index_that_cannot_be_looked_at_holds_up_no_partial_update_of_another(
    outbox: Outbox, destination: ElasticsearchDestination, node: Node, proxy: FaultProxy
) -> None:
    for index in ("contacts", "secrets"):
        outbox.index(index, "1", {"name": "Ada"})
    outbox.drain(destination)
    proxy.on(lambda request: request.path.startswith("/secrets-000001?include_defaults"), reply(403, UNAUTHORIZED))
    row, neighbour = (outbox.update(index, "1", {"name": "Grace"}) for index in ("secrets", "contacts"))
    outbox.drain(destination)
    assert (outbox.state(row), outbox.state(neighbour)) == ("pending", "done")
    assert node.documents("contacts") == {"1": {"name": "Grace"}}
