"""Which documents an index of a cluster holds already, so that they need not be written.

What `_mget` answers may be old: a node that has lost the others goes on answering it, from what it had. So a document
that looks the same is asked for once more where writes are decided, by a delete that no document can meet the condition
of. Its refusal names the write that the document is of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import orjson

from outbox.destinations.base import Operation, Outcome, OutcomeKind, fitting
from outbox.destinations.cluster import outcomes, reading
from outbox.destinations.cluster.bulk import FIRST_READ
from outbox.destinations.cluster.wire import Cluster, Refused, Unanswered
from outbox.destinations.kept import Kept
from outbox.destinations.same import is_held

UNCHANGED: Final = Outcome(OutcomeKind.UNCHANGED)

_NO_WRITE: Final = 2**62
"""A sequence number that no write comes to have."""

_WRITE = re.compile(r".*\bcurrent document has seqNo \[(\d+)\] and primary term \[(\d+)\]", re.DOTALL)

_ASKED: Final = "items.delete._id,items.delete.status,items.delete.error.reason"

Write = tuple[int, int]
"""What a document is of: sequence number and primary term. No two writes of a shard have both in common."""


class Comparer:
    """Finds the operations with `unless_held` that would change nothing.

    `keeps` says what a physical index gives back of its documents: where that is not certain, all are written.
    """

    def __init__(self, cluster: Cluster, most_bytes: int, keeps: Callable[[str], Kept]) -> None:
        self._cluster, self._most_bytes, self._keeps = cluster, most_bytes, keeps
        self._sizes: dict[str, int] = {}  # of documents, by physical index, as they were read last

    def compare(self, operations: Mapping[int, Operation]) -> dict[int, Outcome]:
        """The outcomes of those of the operations, by position, that are not to be sent. Raises nothing.

        Those that cannot be asked for are to be sent, unless there was no answer: then they are unavailable, before
        the same takes another timeout.
        """
        asked = [position for position, each in operations.items() if each.unless_held is not None]
        if not asked:
            return {}
        try:
            keeps = {target: self._keeps(target) for target in {operations[position].target for position in asked}}
            certain = [position for position in asked if not keeps[operations[position].target].uncertain]
            same: dict[int, Write] = {}
            for some in self._portions(operations, certain):
                same |= self._same(operations, some, keeps)
            return dict.fromkeys(self._confirmed(operations, same), UNCHANGED)
        except Refused:
            return {}
        except Unanswered as error:
            return dict.fromkeys(asked, outcomes.unavailable(error))

    def _portions(self, operations: Mapping[int, Operation], waiting: Sequence[int]) -> Iterator[Sequence[int]]:
        """As many at a time as one answer has room for, by the sizes that are known."""
        while waiting:
            some = fitting(
                waiting, lambda position: self._sizes.get(operations[position].target), self._most_bytes, FIRST_READ
            )
            waiting = waiting[len(some) :]
            yield some

    def _same(
        self, operations: Mapping[int, Operation], positions: Sequence[int], keeps: Mapping[str, Kept]
    ) -> dict[int, Write]:
        """Those that look the same, and the write that each is of."""
        wanted = [{"_index": operations[each].target, "_id": operations[each].document_id} for each in positions]
        more = reading.vectors_of(any(keeps[operations[each].target].asks_for_vectors for each in positions))
        answer = self._cluster.request("POST", "/_mget", {"docs": wanted}, as_written=True, **more).body
        found = answer.get("docs") if isinstance(answer, dict) else None
        same: dict[int, Write] = {}
        for position, each in zip(positions, found if isinstance(found, list) else (), strict=False):
            operation = operations[position]
            held = each.get("_source") if isinstance(each, dict) and each.get("_id") == operation.document_id else None
            if not isinstance(held, dict) or operation.document is None or operation.unless_held is None:
                continue
            size = len(orjson.dumps(held))
            self._sizes[operation.target] = (self._sizes.get(operation.target, size) + size) // 2
            version, *write = [_number(each.get(name)) for name in ("_version", "_seq_no", "_primary_term")]
            fits = operation.unless_held <= version < operation.version and min(write) >= 0
            if fits and is_held(operation.document, keeps[operation.target].as_sent(held)):
                same[position] = write[0], write[1]
        return same

    def _confirmed(self, operations: Mapping[int, Operation], same: Mapping[int, Write]) -> list[int]:
        """Those that are of the same write where writes are decided."""
        if not same:
            return []
        lines = [
            b'{"delete":{"_index":%s,"_id":%s,"if_seq_no":%d,"if_primary_term":1}}\n'
            % (orjson.dumps(operations[each].target), orjson.dumps(operations[each].document_id), _NO_WRITE)
            for each in same
        ]
        answer = self._cluster.request("POST", "/_bulk", b"".join(lines), filter_path=_ASKED).body
        items = answer.get("items") if isinstance(answer, dict) else None
        answered = zip(same, items if isinstance(items, list) else (), strict=False)
        return [at for at, item in answered if _write_of(item, operations[at].document_id) == same[at]]


def _number(written: Any) -> int:
    """A number of an answer that is read as it was written; -1 where there is none."""
    return -1 if written is None else int(orjson.dumps(written))


def _write_of(item: Any, document_id: str) -> Write | None:
    """The write that a document is of, by the refusal of its delete."""
    refused = item.get("delete") if isinstance(item, dict) else None
    if not isinstance(refused, dict) or refused.get("_id") != document_id or refused.get("status") != 409:
        return None
    named = _WRITE.match(str((refused.get("error") or {}).get("reason")))
    return (int(named[1]), int(named[2])) if named else None
