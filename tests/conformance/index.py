"""One index of a destination, in the words of the tests."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from outbox.destinations.base import Destination, Operation, Outcome, OutcomeKind
from outbox.destinations.merge import Upsert

APPLIED, CONFLICT, REJECTED = OutcomeKind.APPLIED, OutcomeKind.CONFLICT, OutcomeKind.REJECTED

MAPPINGS = {
    "properties": {
        "age": {"type": "long"},
        "born": {"type": "date"},
        "tenantId": {"type": "keyword"},
        "address": {"properties": {"zip": {"type": "integer"}}},
    }
}


class Index:
    """One index of a destination, and short words for what a relay would send to it."""

    def __init__(self, destination: Destination, name: str) -> None:
        self.destination, self.name, self.target = destination, name, f"{name}-000001"

    def operation(self, document_id: str, version: int, document: bytes | None, *patches: bytes) -> Operation:
        return Operation(self.name, self.target, document_id, version, document, patches)

    def put(self, document_id: str, version: int, document: Any) -> Operation:
        return self.operation(document_id, version, json.dumps(document).encode())

    def patch(self, document_id: str, version: int, *changes: Any) -> Operation:
        return self.operation(document_id, version, None, *(json.dumps(change).encode() for change in changes))

    def upsert(self, document_id: str, version: int, *steps: tuple[int, Any, Any]) -> Operation:
        """Patches, each with the version of its row and what the document becomes where there is none, or None."""
        upserts = [(at, step) for at, step in enumerate(steps) if step[2] is not None]
        return replace(
            self.patch(document_id, version, *(changes for _, changes, _ in steps)),
            upserts=tuple(Upsert(at, json.dumps(document).encode(), each) for at, (each, _, document) in upserts),
        )

    def delete(self, document_id: str, version: int) -> Operation:
        return self.operation(document_id, version, None)

    def apply(self, *operations: Operation) -> list[Outcome]:
        return self.destination.apply(operations)

    def one(self, operation: Operation) -> Outcome:
        (outcome,) = self.destination.apply([operation])
        return outcome

    def holds(self, *document_ids: str) -> dict[str, tuple[int, Any]]:
        """Version and source, by id."""
        found = self.destination.read(self.target, document_ids)
        return {each: (stored.version, stored.source) for each, stored in found.items()}

    def found(self, query: str, **options: Any) -> list[str]:
        return [hit.document_id for hit in self.destination.search(self.name, query, **options)]


def kinds(outcomes: Iterable[Outcome]) -> list[OutcomeKind]:
    return [outcome.kind for outcome in outcomes]
