"""Operations sent to a cluster: one `_bulk` request for all, patches merged before it.

Not `helpers.bulk()`: it pairs answers with operations by position alone, does not retry an item 429, and counts a
conflict and the 404 of a delete as errors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import orjson

from outbox.destinations.base import Operation, Outcome, OutcomeKind, fitting, weight
from outbox.destinations.cluster import outcomes, reading
from outbox.destinations.cluster.failures import describe
from outbox.destinations.cluster.wire import FAILURES, Cluster, Refused
from outbox.destinations.kept import Kept

FIRST_READ: Final = 20
"""So many documents are read of an index of which no size is known yet."""

_ANSWERED_FIELDS: Final = "errors,items.*._id,items.*.status,items.*.error,items.*.failure_store"
_WHERE: Final = ",items.*._index,items.*.result"


class Merger:
    """Turns patches into full documents, of as many operations as one request has room for.

    A partial update cannot carry an external version: one such item fails a whole `_bulk` request with 400. So
    the stored document is read and merged here, and the version decides as for any other: only a request of a relay
    that lost its claim can slip in between, with what the stored document already has.

    `keeps` says what a physical index gives back of its documents: where something is missing, the merge would lose it.
    """

    def __init__(self, cluster: Cluster, most_bytes: int, keeps: Callable[[str], Kept]) -> None:
        self._cluster, self._most_bytes, self._keeps = cluster, most_bytes, keeps
        self._sizes: dict[str, int] = {}  # of documents, by physical index, as they were read last

    def merge(self, operations: dict[int, Operation]) -> dict[int, Outcome]:
        """Change `operations`, by position. Returns the outcomes of those that need no request, or fit in no more."""
        waiting = [position for position, operation in operations.items() if operation.patches]
        if not waiting:
            return {}
        keeps, settled = self._look(operations, waiting)
        waiting = [position for position in waiting if position not in settled]
        room = self._most_bytes - sum(weight(each) for each in operations.values() if not each.patches)
        while waiting and room > 0:
            some = self._portion(operations, waiting, room)
            waiting = waiting[len(some) :]
            try:
                settled |= self._merge(operations, some, keeps)
            except FAILURES as error:
                return settled | dict.fromkeys((*some, *waiting), outcomes.not_looked_up(error))
            room -= sum(weight(operations[position]) for position in some if position not in settled)
        return settled | dict.fromkeys(waiting, outcomes.REQUEST_FULL)

    def _portion(self, operations: Mapping[int, Operation], waiting: Sequence[int], room: int) -> Sequence[int]:
        """The next to read: as many as there is room for, by the sizes that are known."""
        return fitting(waiting, lambda position: self._sizes.get(operations[position].target), room, FIRST_READ)

    def _look(
        self, operations: Mapping[int, Operation], waiting: Sequence[int]
    ) -> tuple[dict[str, Kept], dict[int, Outcome]]:
        """What the indexes give back; and the outcomes of those operations whose index cannot be looked at."""
        keeps: dict[str, Kept] = {}
        refused: dict[str, Outcome] = {}
        targets = {position: operations[position].target for position in waiting}
        for target in dict.fromkeys(targets.values()):
            try:
                keeps[target] = self._keeps(target)
            except FAILURES as error:
                refused[target] = found = outcomes.not_looked_up(error)
                if found.kind is OutcomeKind.UNAVAILABLE:  # asking for each would cost as many timeouts
                    return keeps, dict.fromkeys(waiting, found)
        return keeps, {at: refused[target] for at, target in targets.items() if target in refused}

    def _merge(
        self, operations: dict[int, Operation], positions: Sequence[int], keeps: Mapping[str, Kept]
    ) -> dict[int, Outcome]:
        patched = [operations[position] for position in positions]
        wanted = [{"_index": each.target, "_id": each.document_id} for each in patched]
        more = reading.vectors_of(any(keeps[each.target].asks_for_vectors for each in patched))
        found = self._cluster.request("POST", "/_mget", {"docs": wanted}, as_written=True, **more)
        try:
            documents = found.body["docs"]
        except (KeyError, TypeError):
            return dict.fromkeys(positions, outcomes.foreign(self._cluster.product))
        settled: dict[int, Outcome] = {}
        for at, (position, operation) in enumerate(zip(positions, patched, strict=True)):
            merged = outcomes.patched(
                operation, documents[at] if at < len(documents) else None, keeps[operation.target]
            )
            if isinstance(merged, Outcome):
                settled[position] = merged
            else:
                operations[position] = merged
                size = weight(merged)
                self._sizes[merged.target] = (self._sizes.get(merged.target, size) + size) // 2
        return settled


def send(
    cluster: Cluster,
    operations: Sequence[Operation],
    *,
    piped: Collection[str],
    timeout: str,
    asked: dict[str, str],
    answers_others: Callable[[], bool],
) -> list[Outcome]:
    """The outcome of each operation, all sent in one request to the first node that gives a connection.

    `piped`: the physical indexes whose pipelines can drop a document or send it elsewhere; the answer is to say what
    became of theirs. `timeout` is how long the cluster may wait for shards, in its words; `answers_others` is asked
    when it refuses the request as a whole. `asked`: parameters that only newer versions know; they are removed if this
    one does not.
    """
    targets = {target: orjson.dumps(target) for target in {operation.target for operation in operations}}
    lines: list[bytes] = []
    for operation in operations:
        lines.append(_action(operation, targets[operation.target]))
        if operation.document is not None:
            lines += (operation.document, b"\n")
    body = b"".join(lines)  # the one copy of the documents
    fields = _ANSWERED_FIELDS if targets.keys().isdisjoint(piped) else _ANSWERED_FIELDS + _WHERE
    try:
        # Once: what a node may have seen is not repeated behind the outbox's back. The second one would find the
        # versions that the first has brought, and the rows would come again for nothing.
        answer = _answer(cluster, body, {"timeout": timeout, "filter_path": fields}, asked)
    except FAILURES as error:
        refused = outcomes.of_refused_request(error, single=len(operations) == 1, answers_others=answers_others)
        return [refused] * len(operations)
    items = answer.get("items") if isinstance(answer, dict) else None
    if not isinstance(items, list):
        return [outcomes.foreign(cluster.product)] * len(operations)
    return [
        outcomes.of_item(operation, items[at] if at < len(items) else None) for at, operation in enumerate(operations)
    ]


def _answer(cluster: Cluster, body: bytes, named: dict[str, Any], asked: dict[str, str]) -> Any:
    try:
        return cluster.request("POST", "/_bulk", body, once=True, **{**named, **asked}).body
    except Refused as error:  # before anything of it was carried out
        if not asked or error.status != 400 or "unrecognized parameter" not in describe(error):
            raise
        asked.clear()
        return cluster.request("POST", "/_bulk", body, once=True, **named).body


def _action(operation: Operation, target: bytes) -> bytes:
    """The line of a `_bulk` request that comes before the document, if there is one. `target`: as JSON."""
    return b'{"%s":{"_index":%s,"_id":%s,"version":%d,"version_type":"external%s"}}\n' % (
        b"delete" if operation.document is None else b"index",
        target,
        orjson.dumps(operation.document_id),
        operation.version,
        b"_gte" if operation.or_equal else b"",
    )
