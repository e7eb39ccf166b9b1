"""Where a relay under test delivers to, by name: what is there now, and failures that every kind of place can have."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from outbox.destinations.base import Destination, Operation, Outcome, OutcomeKind
from outbox.destinations.cluster.destination import ClusterDestination
from outbox.destinations.embedded.destination import EmbeddedDestination
from tests.support.node import Node
from tests.support.proxy import FaultProxy, bulk, rewrite
from tests.support.relays import until


class Place(Protocol):
    """A destination, and a look behind it. `wire`: faults between it and the relay, where there is one."""

    @property
    def destination(self) -> Destination: ...

    @property
    def wire(self) -> FaultProxy | None: ...

    @property
    def environment(self) -> dict[str, str]:
        """What makes a relay process deliver here."""

    def get(self, index: str, document_id: str) -> dict[str, Any] | None:
        """The document as the index holds it now."""

    def version(self, index: str, document_id: str) -> int | None: ...

    def documents(self, index: str) -> dict[str, Any]:
        """Everything in the index, by id."""

    def indexes(self) -> list[str]: ...

    def drop(self, index: str) -> None:
        """Remove what readers find under that name."""

    def tamper(self, index: str, document_id: str, document: Any | None, version: int | None = None) -> None:
        """What somebody does by hand: write a document, or delete it, with the next version or the given one."""

    def fail(self, times: int | None = None) -> None:
        """The first operation of a request fails by itself, the next `times` times or always."""

    def away(self) -> None:
        """It gives no answer from now on."""

    def back(self) -> None:
        """It answers again."""

    def sent(self) -> list[int]:
        """How many operations each request had that reached the destination."""

    def forget_deletes(self, index: str) -> None:
        """As if `gc_deletes` were over."""


def failing_item(status: int, error_type: str, reason: str = "provoked", position: int = 0) -> Any:
    """The node applies everything, but its answer says that one operation failed."""

    def change(answer: Any) -> Any:
        operation, result = next(iter(answer["items"][position].items()))
        error = {"type": error_type, "reason": reason}
        answer["items"][position] = {operation: {"_id": result["_id"], "status": status, "error": error}}
        return answer

    return rewrite(change)


class ClusterPlace:
    """A node behind the fault proxy."""

    def __init__(self, destination: ClusterDestination, node: Node, proxy: FaultProxy) -> None:
        self.destination, self.wire = destination, proxy
        self.get, self.version, self.documents, self.indexes = node.get, node.version, node.documents, node.indexes
        self.drop = node.delete_index
        self.environment = node.server.settings(proxy.url)
        self.away, self.back = proxy.down, proxy.up
        self.node = node

    def tamper(self, index: str, document_id: str, document: Any | None, version: int | None = None) -> None:
        given = "" if version is None else f"?version={version}&version_type=external"
        path = f"/{index}/_doc/{quote(document_id, safe='')}{given}"
        status, answer = self.node.request("DELETE" if document is None else "PUT", path, document)
        assert status in (200, 201), answer

    def fail(self, times: int | None = None) -> None:
        self.wire.on(bulk, failing_item(500, "some_exception"), times=times)

    def sent(self) -> list[int]:
        return [request.body.count(b'"_id"') for request in self.wire.requests if request.is_bulk]

    def forget_deletes(self, index: str) -> None:
        self.node.request("PUT", f"/{index}/_settings", {"index.gc_deletes": "1ms"})
        path = f"/{index}/_doc/newest"  # the delete that is forgotten last
        self.node.request("DELETE", f"{path}?version=2&version_type=external")

        def forgotten() -> bool:
            self.node.refresh(index)
            return self.node.request("PUT", f"{path}?version=1&version_type=external", {})[0] == 201

        until(forgotten, "the clock of its engine, which is no fine one, has gone on")
        self.node.request("DELETE", f"{path}?version=3&version_type=external")


class EmbeddedPlace:
    """A file."""

    wire = None

    def __init__(self, path: Path) -> None:
        self._path = path
        self.destination = _Watched(path)
        self._lock: sqlite3.Connection | None = None
        self.environment = {"OUTBOX_DESTINATION": "embedded", "OUTBOX_EMBEDDED_PATH": str(path)}

    def get(self, index: str, document_id: str) -> dict[str, Any] | None:
        return self.documents(index).get(document_id)

    def version(self, index: str, document_id: str) -> int | None:
        found = self._rows(index)
        return found[document_id][0] if document_id in found else None

    def documents(self, index: str) -> dict[str, Any]:
        return {each: json.loads(source) for each, (_, source) in self._rows(index).items()}

    def indexes(self) -> list[str]:
        return [name for (name,) in self._query("SELECT name FROM indexes ORDER BY name")]

    def drop(self, index: str) -> None:
        self._query("DELETE FROM aliases WHERE name = ?", index)

    def tamper(self, index: str, document_id: str, document: Any | None, version: int | None = None) -> None:
        target = self.destination.ensure_index(index)
        held = self._rows(index).get(document_id, (0, ""))
        version = held[0] + 1 if version is None else version
        operation = Operation(
            index, target, document_id, version, None if document is None else json.dumps(document).encode()
        )
        (outcome,) = EmbeddedDestination(self._path).apply([operation])
        assert outcome.kind is OutcomeKind.APPLIED

    def fail(self, times: int | None = None) -> None:
        self.destination.failures = 1_000_000 if times is None else times

    def away(self) -> None:
        self._lock = sqlite3.connect(self._path, isolation_level=None)
        self._lock.execute("BEGIN IMMEDIATE")  # whoever wants to write waits, and gives up in the end

    def back(self) -> None:
        assert self._lock is not None
        self._lock.close()

    def sent(self) -> list[int]:
        return self.destination.sent

    def forget_deletes(self, index: str) -> None:
        connection = sqlite3.connect(self._path)
        connection.execute("DELETE FROM documents WHERE deleted AND index_name = ?", (index,))
        connection.commit()
        connection.close()

    def _rows(self, index: str) -> dict[str, tuple[int, str]]:
        rows = self._query(
            "SELECT document_id, version, source FROM documents JOIN aliases USING (index_name)"
            " WHERE name = ? AND NOT deleted",
            index,
        )
        return {document_id: (version, source) for document_id, version, source in rows}

    def _query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self._path, isolation_level=None)
        try:
            return connection.execute(sql, parameters).fetchall()
        finally:
            connection.close()


class _Watched(EmbeddedDestination):
    """Counts what it is sent, and applies it even where it says that it failed, as the proxy's node does."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, timeout=3)  # what `away` takes; nobody else keeps the file busy
        self.failures, self.sent = 0, list[int]()

    def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        self.sent.append(len(operations))
        outcomes = super().apply(operations)
        if self.failures:
            self.failures -= 1
            outcomes[0] = Outcome(OutcomeKind.FAILED, "some_exception", "provoked")
        return outcomes
