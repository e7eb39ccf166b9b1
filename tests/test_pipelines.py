"""An index whose documents first pass a pipeline: it can drop them, or put them elsewhere.

The answers are those of Elasticsearch 8.19 and OpenSearch 2.19 (processors `drop`, `reroute` and `set` of `_id`),
played back on the wire: the nodes of these tests have the core alone, which has no such processor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from outbox.destinations.cluster.destination import ClusterDestination
from outbox.store.models import now_ms
from tests.support.node import Node
from tests.support.outbox import Outbox
from tests.support.proxy import PRODUCT, Action, FaultProxy, Reply, Request, bulk

pytestmark = pytest.mark.elasticsearch

MINUTE = 60_000


def doing(result: Mapping[str, Any]) -> Action:
    """What the pipeline of an index does with each of its documents; documents of other indexes are applied."""

    def act(_proxy: FaultProxy, request: Request) -> Reply:
        items = []
        for line in request.body.splitlines()[::2]:
            ((verb, named),) = json.loads(line).items()
            went = {"_index": named["_index"], "_id": named["_id"], "result": "created", "status": 201}
            piped = named["_index"] == "articles-000001" and verb == "index"
            items.append({verb: {**went, **result} if piped else went})
        return Reply(200, PRODUCT, json.dumps({"errors": False, "items": items}).encode())

    return act


@pytest.mark.parametrize(
    ("result", "said"),
    [
        pytest.param({"_version": -3, "result": "noop", "status": 200}, "dropped the document", id="dropped"),
        pytest.param({"_index": "archive-000001"}, "made the document archive-000001/a1 instead", id="rerouted"),
        pytest.param({"_id": "a-1"}, "made the document articles-000001/a-1 instead", id="renamed"),
    ],
)
@pytest.mark.parametrize("when", ["default", "final"])
def test_document_that_a_pipeline_puts_elsewhere_is_not_delivered(
    outbox: Outbox,
    destination: ClusterDestination,
    node: Node,
    proxy: FaultProxy,
    result: Mapping[str, Any],
    said: str,
    when: str,
) -> None:
    destination.ensure_index("articles")
    node.request("PUT", "/articles-000001/_settings", {f"index.{when}_pipeline": "of-the-company"})
    row, neighbour = outbox.index("articles", "a1", {"body": "one"}), outbox.index("contacts", "c1", {})
    proxy.on(bulk, doing(result))
    relay, now = outbox.relay(destination, max_retries=1), now_ms()
    while relay.run_once(now):
        pass
    assert (outbox.state(row), outbox.row(row)["attempts"], outbox.state(neighbour)) == ("pending", 1, "done")
    while relay.run_once(now + MINUTE):
        pass
    assert (outbox.state(row), outbox.row(row)["error_type"]) == ("dead", "not_in_the_index")
    assert said in outbox.row(row)["error"]
    gone = outbox.delete("articles", "a1")  # passes no pipeline
    while relay.run_once(now + MINUTE):
        pass
    assert outbox.state(gone) == "done"


def test_index_without_a_pipeline_is_not_asked_where_its_documents_went(
    outbox: Outbox, destination: ClusterDestination, proxy: FaultProxy
) -> None:
    row = outbox.index("articles", "a1", {"body": "one"})
    outbox.drain(destination)
    (sent,) = [request for request in proxy.requests if request.is_bulk]
    assert (outbox.state(row), "result" in sent.path) == ("done", False)


def test_pipeline_that_lets_documents_through_is_no_fault(
    outbox: Outbox, destination: ClusterDestination, node: Node, proxy: FaultProxy
) -> None:
    node.request("PUT", "/_ingest/pipeline/nothing", {"processors": []})
    destination.ensure_index("articles")
    node.request("PUT", "/articles-000001/_settings", {"index.default_pipeline": "nothing"})
    rows = [outbox.index("articles", "a1", {"body": "one"}), outbox.delete("articles", "a2")]
    outbox.drain(destination)
    (sent,) = [request for request in proxy.requests if request.is_bulk]
    assert ([outbox.state(row) for row in rows], "result" in sent.path) == (["done", "done"], True)
    assert node.documents("articles") == {"a1": {"body": "one"}}
