"""One `_bulk` request for each `apply`, and every answer mapped to one outcome."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Unpack

from outbox.destinations import misled
from outbox.destinations.base import (
    Found,
    Health,
    IndexDefinition,
    IndexFacts,
    Listed,
    Operation,
    Outcome,
    OutcomeKind,
    Stored,
    unsendable,
    weight,
)
from outbox.destinations.cluster import (
    bulk,
    definitions,
    indexes,
    keeping,
    listing,
    outcomes,
    reading,
    searching,
    unchanged,
)
from outbox.destinations.cluster.failures import describe, failing_as
from outbox.destinations.cluster.wire import FAILURES, Cluster, path_to
from outbox.destinations.kept import Kept
from outbox.destinations.query import Options, query
from outbox.errors import DestinationError, shortened

CHECK_INDEX_EVERY_S: Final = 5.0

_BLOCKED: Final = OutcomeKind.BLOCKED  # to look it up in its class costs ten times as much, at each operation


class ClusterDestination:
    """See `outbox.destinations.base.Destination` for what it promises."""

    def __init__(self, cluster: Cluster, *, bulk_timeout: float, request_bytes: int, gc_deletes: str) -> None:
        self._cluster, self._request_bytes = cluster, request_bytes
        self._merger = bulk.Merger(cluster, request_bytes, self._keeps)
        self._comparer = unchanged.Comparer(cluster, request_bytes, self._keeps)
        self._bulk_timeout = f"{int(bulk_timeout * 1000)}ms"
        self._asked = dict(cluster.product.asked_of_bulk)
        self._gc_deletes = gc_deletes
        self._checked: dict[str, float] = {}  # by physical index: until when it need not be looked up again
        self._piped: set[str] = set()  # physical indexes that can put a document elsewhere, as they were looked up last
        self._kept: dict[str, tuple[float, Kept]] = {}  # the same, with what it gives back

    def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        known: dict[int, Outcome] = {}  # by position
        sendable: dict[int, Operation] = {}
        usable: dict[str, Outcome | None] = {}
        away: Outcome | None = None  # known from one index: asking for each would cost as many timeouts
        for position, operation in enumerate(operations):
            if operation.target not in usable:
                usable[operation.target] = found = away or self._check_target(operation.index, operation.target)
                away = found if found and found.kind is OutcomeKind.UNAVAILABLE else None
            if refused := usable[operation.target] or unsendable(operation):
                known[position] = refused
            else:
                sendable[position] = operation
        for position, outcome in self._comparer.compare(sendable).items():
            known[position] = outcome
            del sendable[position]
        known |= self._merger.merge(sendable)
        waiting = {at: each for at, each in sendable.items() if at not in known} if known else sendable
        sent = self._that_fit(waiting)
        known |= dict.fromkeys(waiting.keys() - sent.keys(), outcomes.REQUEST_FULL)
        answered = self._send(list(sent.values())) if sent else []
        if known:
            known |= zip(sent, answered, strict=True)
            answered = [known[position] for position in range(len(operations))]
        for outcome, operation in zip(answered, operations, strict=True):
            if outcome.kind is _BLOCKED:
                self._checked.pop(operation.target, None)
        return answered

    def _that_fit(self, waiting: dict[int, Operation]) -> dict[int, Operation]:
        """As many of the first as one request has room for, but at least one."""
        if sum(map(weight, waiting.values())) <= self._request_bytes:  # as nearly always
            return waiting
        sent: dict[int, Operation] = {}
        room = self._request_bytes
        for position, operation in waiting.items():
            room -= weight(operation)
            if sent and room < 0:
                break
            sent[position] = operation
        return sent

    def _send(self, operations: Sequence[Operation]) -> list[Outcome]:
        return bulk.send(
            self._cluster,
            operations,
            piped=self._piped,
            timeout=self._bulk_timeout,
            asked=self._asked,
            answers_others=lambda: self.ping() is None,
        )

    def _check_target(self, name: str, target: str) -> Outcome | None:
        """None if the physical index is there and readers reach it by its name; else why its rows must wait.

        Looked up again every few seconds: writing to an index that was deleted meanwhile would create it anew, without
        mappings and without its alias (deletes do so even with `require_alias`). Where that has happened in between,
        an index whose name is no alias has not got the setting that each index gets here.
        """
        if self._checked.get(target, 0.0) > time.monotonic():
            return None
        try:
            found = self._cluster.request("GET", path_to(target), accept=(404,), filter_path=indexes.LOOKED_AT)
            if not isinstance(found.body, dict):
                return outcomes.foreign(self._cluster.product)
            index = found.body.get(target, {})
            if found.status != 404 and (target == name or name in index.get("aliases", {})):
                settings = index.get("settings", {}).get("index", {})
                if target == name and "gc_deletes" not in settings:  # else it would have no alias
                    return misled.made_anew(target, self._gc_deletes)
                (self._piped.add if keeping.pipelines(settings) else self._piped.discard)(target)
                self._checked[target] = time.monotonic() + CHECK_INDEX_EVERY_S
                return None
            readers = self._cluster.request("GET", path_to(name, "_alias"), accept=(404,))
        except FAILURES as error:
            return outcomes.not_looked_up(error)
        leads_to = sorted(readers.body) if readers.status != 404 else ()
        return misled.outcome(name, target, exists=found.status != 404, readers=leads_to)

    def ensure_index(
        self, name: str, mappings: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> str:
        return indexes.ensure(self._cluster, name, mappings, settings, self._gc_deletes)

    def read(self, target: str, document_ids: Sequence[str]) -> dict[str, Stored]:
        return reading.read(self._cluster, target, document_ids, self.kept(target))

    def read_texts(self, target: str, document_ids: Sequence[str]) -> dict[str, bytes]:
        return reading.read_texts(self._cluster, target, document_ids, self.kept(target))

    def kept(self, target: str) -> Kept:
        with failing_as(f"index {target} cannot be looked at"):
            return self._keeps(target)

    def _keeps(self, target: str) -> Kept:
        """Looked up again every few seconds: pipelines can be changed, and an index be made anew."""
        until, found = self._kept.get(target, (0.0, Kept()))
        if until <= time.monotonic():
            found = keeping.look(self._cluster, target)
            self._kept[target] = time.monotonic() + CHECK_INDEX_EVERY_S, found
        return found

    def pages(
        self, name: str, size: int, *, share: tuple[int, int] = (0, 1), tenants: bool = False
    ) -> Iterator[dict[str, Listed]]:
        return listing.pages(self._cluster, name, size, share, tenants=tenants)

    def refresh(self, name: str) -> None:
        indexes.refresh(self._cluster, name)

    def has_tenant(self, name: str, tenants: tuple[str, ...]) -> bool:
        return searching.has_tenant(self._cluster, name, tenants)

    def search(self, name: str, words: str | None, **options: Unpack[Options]) -> Found:
        return searching.search(self._cluster, name, query(words, options))

    def client(self) -> Any:
        return self._cluster.client.official()

    def ping(self) -> str | None:
        try:
            self._status()
        except FAILURES as error:
            return describe(error)
        return None

    def health(self) -> Health:
        product = self._cluster.product
        what = f"{product.name} does not answer"
        with failing_as(what):
            status = self._status()
            # Not `GET /`: a node of the core alone has no such page.
            nodes = self._cluster.request("GET", "/_nodes/_local", accept=(403,), filter_path="nodes.*.version").body
        if not isinstance(status, dict) or not isinstance(nodes, dict):
            raise DestinationError(f"{what}: {shortened(status)} is not an answer of {product.title}")
        versions = [node.get("version", "?") for node in nodes.get("nodes", {}).values()]
        return Health(product.name, versions[0] if versions else "?", status.get("status", "?"))

    def _status(self) -> Any:
        """A user without the right `monitor` is answered, too."""
        answer = self._cluster.request("GET", "/_cluster/health", accept=(403,), filter_path="status")
        return {} if answer.status == 403 and isinstance(answer.body, dict) else answer.body

    def inspect_index(self, name: str, target: str) -> IndexFacts:
        return indexes.inspect(self._cluster, name, target)

    def definition(self, target: str, mappings: Mapping[str, Any]) -> IndexDefinition:
        return definitions.read(self._cluster, target, mappings)

    def amend_index(self, target: str, mappings: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        definitions.amend(self._cluster, target, mappings, settings)

    def highest_version(self, name: str) -> int:
        # Versions cannot be sorted by: all are read.
        return max((listed.version for page in self.pages(name, 5_000) for listed in page.values()), default=0)

    def newest_version(self, name: str) -> int:
        return reading.newest_version(self._cluster, name)

    def count(self, target: str) -> int:
        return reading.count(self._cluster, target)

    def create_index(self, target: str, mappings: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        indexes.create(self._cluster, target, mappings, settings, self._gc_deletes)

    def finish_index(self, target: str, settings: Mapping[str, Any]) -> None:
        indexes.finish(self._cluster, target, settings)

    def swap(self, name: str, old: str | None, new: str, *, adopt: bool = False) -> None:
        indexes.swap(self._cluster, name, old, new, adopt=adopt)
        if old:
            self._checked.pop(old, None)

    def drop_index(self, target: str) -> None:
        indexes.drop(self._cluster, target)
        self._checked.pop(target, None)
        self._kept.pop(target, None)

    def close(self) -> None:
        self._cluster.client.close()
