"""An index whose documents pass through something that is away: its rows wait, as those of any that takes none.

Fields of the type `semantic_text` pass through an inference service. The answers are those of Elasticsearch 8.19 and
9.x (`ShardBulkInferenceActionFilter`), played back on the wire: the nodes of these tests have the core alone, which
knows no such field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from outbox.destinations.elasticsearch.destination import ElasticsearchDestination
from outbox.store.models import now_ms
from tests.support.node import Node
from tests.support.outbox import Outbox
from tests.support.proxy import PRODUCT, Action, FaultProxy, Reply, Request, bulk

pytestmark = pytest.mark.elasticsearch

MINUTE = 60_000
RUNNING = "Exception when running inference id [my-elser] on field [body]"
TOO_MANY = "Received a rate limit status code. Remaining tokens [unknown]. Remaining requests [272]."


def answering(status: int, error: Mapping[str, Any], index: str = "articles-000001") -> Action:
    """Each item of an index gets this error, each other one is applied; the node sees nothing."""

    def item(action: Mapping[str, Any]) -> dict[str, Any]:
        if action["_index"] != index:
            return {"index": {"_id": action["_id"], "status": 201}}
        return {"index": {"_id": action["_id"], "status": status, "error": error}}

    def act(_proxy: FaultProxy, request: Request) -> Reply:
        actions = [json.loads(line)["index"] for line in request.body.splitlines()[::2]]
        return Reply(200, PRODUCT, json.dumps({"errors": True, "items": list(map(item, actions))}).encode())

    return act


AWAY = [
    pytest.param(
        500,
        {"type": "exception", "reason": RUNNING, "caused_by": {"type": "status_exception", "reason": TOO_MANY}},
        id="8.x",
    ),
    pytest.param(
        500,
        {
            "type": "inference_exception",
            "reason": RUNNING,
            "caused_by": {"type": "status_exception", "reason": "Unable to find model deployment task [my-elser]"},
        },
        id="no deployment",
    ),
    pytest.param(
        503,
        {"type": "inference_exception", "reason": "model stopped before it is started"},
        id="model stopped",
    ),
    pytest.param(
        400,
        {
            "type": "inference_exception",
            "reason": RUNNING,
            "caused_by": {"type": "illegal_argument_exception", "reason": "must be a pytorch model; field [body]"},
        },
        id="another model",
    ),
    pytest.param(
        404,
        {
            "type": "inference_exception",
            "reason": "Error loading inference for inference id [my-elser] on field [body]",
        },
        id="not loaded",
    ),
    pytest.param(
        404,
        {"type": "resource_not_found_exception", "reason": "Inference id [my-elser] not found for field [body]"},
        id="endpoint deleted",
    ),
    pytest.param(
        404,
        {"type": "resource_not_found_exception", "reason": "Inference Id [my-elser] not found for field [body]"},
        id="endpoint deleted, as 8.x writes it",
    ),
    pytest.param(
        404,
        {"type": "resource_not_found_exception", "reason": "Inference service [elser] not found for field [body]"},
        id="service unknown",
    ),
    pytest.param(
        400,
        {"type": "illegal_argument_exception", "reason": "pipeline with id [embed] does not exist"},
        id="pipeline deleted",
    ),
    pytest.param(
        403,
        {"type": "security_exception", "reason": "current license is non-compliant for [inference]"},
        id="license",
    ),
    pytest.param(
        409,
        {"type": "status_exception", "reason": "Trained model deployment [my-elser] is not allocated to any nodes"},
        id="deployment without a node",
    ),
    pytest.param(
        409,
        {"type": "status_exception", "reason": "Model [my-elser] must be deployed to use. Please deploy with …"},
        id="deployment stopped",
    ),
]


@pytest.mark.parametrize(("status", "error"), AWAY)
def test_rows_wait_until_what_is_away_is_back_and_none_dies(
    outbox: Outbox,
    destination: ElasticsearchDestination,
    node: Node,
    proxy: FaultProxy,
    status: int,
    error: dict[str, Any],
) -> None:
    rows = outbox.index_many("articles", [("a1", {"body": "one"}), ("a2", {"body": "two"})])
    neighbour = outbox.index("contacts", "c1", {})
    proxy.on(bulk, answering(status, error))
    relay, now = outbox.relay(destination, max_retries=0), now_ms()
    for minute in range(3):
        while relay.run_once(now + minute * MINUTE):
            pass
    assert [(outbox.state(row), outbox.row(row)["attempts"]) for row in rows] == [("pending", 0)] * 2
    assert outbox.state(neighbour) == "done"
    (breaker,) = relay.breakers()
    assert breaker["index"] == "articles"
    assert error["reason"] in breaker["reason"]
    proxy.clear()
    while relay.run_once(now + 60 * MINUTE):
        pass
    assert node.documents("articles") == {"a1": {"body": "one"}, "a2": {"body": "two"}}


def test_inference_that_takes_no_more_at_present_pauses_its_index_alone(
    outbox: Outbox, destination: ElasticsearchDestination, proxy: FaultProxy
) -> None:
    row = outbox.index("articles", "a1", {"body": "one"})
    why = "Unable to insert inference results into document [a1] due to memory pressure."
    proxy.on(bulk, answering(429, {"type": "inference_exception", "reason": why}))
    relay, now = outbox.relay(destination, max_retries=0), now_ms()
    relay.run_once(now)
    assert (outbox.state(row), outbox.row(row)["attempts"]) == ("pending", 0)
    assert [(breaker["scope"], breaker["index"]) for breaker in relay.breakers()] == [("index", "articles")]


def test_conflict_that_is_none_of_versions_is_tried_again(
    outbox: Outbox, destination: ElasticsearchDestination, node: Node, proxy: FaultProxy
) -> None:
    row = outbox.index("articles", "a1", {"body": "one"})
    why = "the model is being moved"
    proxy.on(bulk, answering(409, {"type": "status_exception", "reason": why}))
    relay, now = outbox.relay(destination, max_retries=0), now_ms()
    relay.run_once(now)
    assert (outbox.state(row), outbox.row(row)["attempts"]) == ("pending", 0)
    proxy.clear()
    while relay.run_once(now + MINUTE):
        pass
    assert node.documents("articles") == {"a1": {"body": "one"}}


def test_refused_document_that_speaks_of_an_alias_is_its_own_fault(
    outbox: Outbox, destination: ElasticsearchDestination, proxy: FaultProxy
) -> None:
    row = outbox.index("articles", "a1", {"aliases": 40_000 * "a"})
    why = 'Document contains at least one immense term in field="aliases" (whose UTF8 encoding is longer …'
    proxy.on(bulk, answering(400, {"type": "illegal_argument_exception", "reason": why}))
    outbox.drain(destination)
    assert (outbox.state(row), outbox.row(row)["error_type"]) == ("dead", "illegal_argument_exception")


def test_document_whose_text_is_no_text_is_its_own_fault(
    outbox: Outbox, destination: ElasticsearchDestination, proxy: FaultProxy
) -> None:
    row = outbox.index("articles", "a1", {"body": {"no": "text"}})
    why = "Invalid format for field [body], expected [String] got [HashMap]"
    proxy.on(bulk, answering(400, {"type": "status_exception", "reason": why}))
    outbox.drain(destination, max_retries=0)
    assert outbox.state(row) == "dead"


def test_document_in_the_failure_store_is_not_delivered(
    outbox: Outbox, destination: ElasticsearchDestination, node: Node, proxy: FaultProxy
) -> None:
    row = outbox.index("articles", "a1", {"body": "one"})

    def redirected(_proxy: FaultProxy, _request: Request) -> Reply:
        stored = {"_index": ".fs-articles-000001", "_id": "a1", "status": 201, "failure_store": "used"}
        return Reply(200, PRODUCT, json.dumps({"errors": False, "items": [{"index": stored}]}).encode())

    proxy.on(bulk, redirected)
    relay, now = outbox.relay(destination, max_retries=1), now_ms()
    relay.run_once(now)
    assert (outbox.state(row), outbox.row(row)["attempts"]) == ("pending", 1)
    while relay.run_once(now + MINUTE):
        pass
    assert (outbox.state(row), outbox.row(row)["error_type"]) == ("dead", "failure_store")
    assert "failure_store" in proxy.requests[-1].path
    assert node.get("articles", "a1") is None
