"""Operations sent to a cluster: one `_bulk` request for all, patches merged before it.

Not `helpers.bulk()`: it pairs answers with operations by position alone, does not retry an item 429, and counts a
conflict and the 404 of a delete as errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import orjson

from outbox.destinations.base import Operation, Outcome
from outbox.destinations.cluster import outcomes
from outbox.destinations.cluster.wire import FAILURES, Cluster

_ANSWERED_FIELDS: Final = "errors,items.*._id,items.*.status,items.*.error,items.*.failure_store"


def merge_patches(cluster: Cluster, operations: dict[int, Operation]) -> dict[int, Outcome]:
    """Turn patches into full documents, in `operations`. Returns the outcomes of those that need no request any more.

    A partial update cannot carry an external version: one such item fails a whole `_bulk` request with 400. So
    the stored document is read and merged here, and the version decides as for any other: only a request of a relay
    that lost its claim can slip in between, with what the stored document already has.
    """
    patched = {position: operation for position, operation in operations.items() if operation.patches}
    if not patched:
        return {}
    try:
        wanted = [{"_index": operation.target, "_id": operation.document_id} for operation in patched.values()]
        found = cluster.request("POST", "/_mget", {"docs": wanted}).body["docs"]
    except FAILURES as error:
        return dict.fromkeys(patched, outcomes.unavailable(error))
    except (KeyError, TypeError):
        return dict.fromkeys(patched, outcomes.foreign(cluster.product))
    settled: dict[int, Outcome] = {}
    for at, (position, operation) in enumerate(patched.items()):
        merged = outcomes.patched(operation, found[at] if at < len(found) else None)
        if isinstance(merged, Outcome):
            settled[position] = merged
        else:
            operations[position] = merged
    return settled


def send(
    cluster: Cluster, operations: Sequence[Operation], *, timeout: str, answers_others: Callable[[], bool]
) -> list[Outcome]:
    """The outcome of each operation, all sent in one request to the first node that gives a connection.

    `timeout` is how long the cluster may wait for shards, in its words; `answers_others` is asked when it refuses the
    request as a whole.
    """
    targets = {target: orjson.dumps(target) for target in {operation.target for operation in operations}}
    body = b"".join([_lines(operation, targets[operation.target]) for operation in operations])
    try:
        # Once: what a node may have seen is not repeated behind the outbox's back. The second one would find the
        # versions that the first has brought, and for a row that was delivered once nothing explains its own version.
        answer = cluster.request("POST", "/_bulk", body, once=True, timeout=timeout, filter_path=_ANSWERED_FIELDS).body
    except FAILURES as error:
        refused = outcomes.of_refused_request(error, single=len(operations) == 1, answers_others=answers_others)
        return [refused] * len(operations)
    items = answer.get("items") if isinstance(answer, dict) else None
    if not isinstance(items, list):
        return [outcomes.foreign(cluster.product)] * len(operations)
    return [
        outcomes.of_item(operation, items[at] if at < len(items) else None) for at, operation in enumerate(operations)
    ]


def _lines(operation: Operation, target: bytes) -> bytes:
    """The lines of one operation in a `_bulk` request. `target`: as JSON."""
    line = b'{"%s":{"_index":%s,"_id":%s,"version":%d,"version_type":"external%s"}}\n' % (
        b"delete" if operation.document is None else b"index",
        target,
        orjson.dumps(operation.document_id),
        operation.version,
        b"_gte" if operation.or_equal else b"",
    )
    return line if operation.document is None else b"%s%s\n" % (line, operation.document)
