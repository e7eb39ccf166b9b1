"""Elasticsearch 8.19 to 9.x: one `_bulk` request for each `apply`, and every answer mapped to one outcome."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from elasticsearch import Elasticsearch

from outbox.destinations import misled
from outbox.destinations.base import (
    Health,
    Hit,
    IndexFacts,
    Listed,
    Operation,
    Outcome,
    OutcomeKind,
    Stored,
    unsendable,
)
from outbox.destinations.elasticsearch import bulk, indexes, outcomes, reading
from outbox.destinations.elasticsearch.failures import FAILURES, describe, failing_as
from outbox.errors import DestinationError, shortened

CHECK_INDEX_EVERY_S: Final = 5.0


class ElasticsearchDestination:
    """See `outbox.destinations.base.Destination` for what it promises."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        api_key: str | None = None,
        basic_auth: tuple[str, str] | None = None,
        ca_certs: Path | None = None,
        request_timeout: float = 20.0,
        bulk_timeout: float = 5.0,
        connections: int = 10,
        gc_deletes: str = "24h",
    ) -> None:
        options: dict[str, Any] = {"ca_certs": str(ca_certs)} if ca_certs else {}
        if api_key:
            options["api_key"] = api_key
        elif basic_auth:
            options["basic_auth"] = basic_auth
        # The client's default serializer for answers, not orjson's: integers of more than 64 bits stay exact.
        # What was answered is never repeated: the outbox decides. What was not is, by the next node, even if the first
        # has carried it out before its connection broke; `_once` is for what must not be carried out twice.
        self._client = Elasticsearch(
            list(urls),
            request_timeout=request_timeout,
            max_retries=len(urls) - 1,
            retry_on_timeout=False,
            retry_on_status=(),
            connections_per_node=connections,
            serializers={bulk.Prepared.mimetype: bulk.Prepared()},
            **options,
        )
        # The transport logs every failed request with a traceback; the breaker says it once.
        logging.getLogger("elastic_transport").setLevel(logging.CRITICAL)
        self._once, self._nodes = self._client.options(max_retries=0), len(urls)
        self._bulk_timeout = f"{int(bulk_timeout * 1000)}ms"
        self._gc_deletes = gc_deletes
        self._checked: dict[str, float] = {}  # by physical index: until when it need not be looked up again

    def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        known: dict[int, Outcome] = {}
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
        known |= bulk.merge_patches(self._client, sendable)
        sent = {position: operation for position, operation in sendable.items() if position not in known}
        if sent:
            known |= zip(sent, self._send(list(sent.values())), strict=True)
        for position, outcome in known.items():
            if outcome.kind is OutcomeKind.BLOCKED:
                self._checked.pop(operations[position].target, None)
        return [known[position] for position in range(len(operations))]

    def _send(self, operations: Sequence[Operation]) -> list[Outcome]:
        return bulk.send(
            self._once,
            operations,
            timeout=self._bulk_timeout,
            nodes=self._nodes,
            answers_others=lambda: self.ping() is None,
        )

    def _check_target(self, name: str, target: str) -> Outcome | None:
        """None if the physical index is there and readers reach it by its name; else why its rows must wait.

        Looked up again every few seconds: writing to an index that was deleted meanwhile would create it anew, without
        mappings and without its alias (deletes do so even with `require_alias`).
        """
        if self._checked.get(target, 0.0) > time.monotonic():
            return None
        look = self._client.options(ignore_status=404).indices
        try:
            found = look.get_alias(index=target)
            if not isinstance(found.body, dict):
                return outcomes.NOT_ELASTICSEARCH
            aliases = found.body.get(target, {}).get("aliases", {})
            if found.meta.status != 404 and (target == name or name in aliases):
                self._checked[target] = time.monotonic() + CHECK_INDEX_EVERY_S
                return None
            readers = look.get_alias(index=name)
        except FAILURES as error:
            return outcomes.unavailable(error)
        leads_to = sorted(readers.body) if readers.meta.status != 404 else ()
        return misled.outcome(name, target, exists=found.meta.status != 404, readers=leads_to)

    def ensure_index(
        self, name: str, mappings: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> str:
        return indexes.ensure(self._client, name, mappings, settings, self._gc_deletes)

    def read(self, target: str, document_ids: Sequence[str]) -> dict[str, Stored]:
        return reading.read(self._client, target, document_ids)

    def pages(
        self, name: str, size: int, *, share: tuple[int, int] = (0, 1), tenants: bool = False
    ) -> Iterator[dict[str, Listed]]:
        return reading.pages(self._client, name, size, share, tenants=tenants)

    def refresh(self, name: str) -> None:
        indexes.refresh(self._client, name)

    def has_tenant(self, name: str, tenants: tuple[str, ...]) -> bool:
        return reading.has_tenant(self._client, name, tenants)

    def search(self, name: str, query: str, *, tenant: object = None, limit: int = 10) -> list[Hit]:
        return reading.search(self._client, name, query, tenant, limit)

    def ping(self) -> str | None:
        try:
            self._client.cluster.health(filter_path="status")
        except FAILURES as error:
            return describe(error)
        return None

    def health(self) -> Health:
        with failing_as("elasticsearch does not answer"):
            status = self._client.cluster.health(filter_path="status").body
            # Not `info()`: a node of the core alone has no such page.
            nodes = self._client.nodes.info(node_id="_local", filter_path="nodes.*.version").body
        if not isinstance(status, dict) or not isinstance(nodes, dict):
            raise DestinationError(
                f"elasticsearch does not answer: {shortened(status)} is not an answer of Elasticsearch"
            )
        versions = [node.get("version", "?") for node in nodes.get("nodes", {}).values()]
        return Health("elasticsearch", versions[0] if versions else "?", status.get("status", "?"))

    def inspect_index(self, name: str, target: str) -> IndexFacts:
        return indexes.inspect(self._client, name, target)

    def highest_version(self, name: str) -> int:
        # Versions cannot be sorted by: all are read.
        return max((listed.version for page in self.pages(name, 5_000) for listed in page.values()), default=0)

    def newest_version(self, name: str) -> int:
        return reading.newest_version(self._client, name)

    def count(self, target: str) -> int:
        return reading.count(self._client, target)

    def create_index(self, target: str, mappings: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        indexes.create(self._once, target, mappings, settings, self._gc_deletes)

    def finish_index(self, target: str, settings: Mapping[str, Any]) -> None:
        indexes.finish(self._client, target, settings)

    def swap(self, name: str, old: str | None, new: str, *, adopt: bool = False) -> None:
        indexes.swap(self._client, name, old, new, adopt=adopt)
        if old:
            self._checked.pop(old, None)

    def drop_index(self, target: str) -> None:
        indexes.drop(self._client, target)
        self._checked.pop(target, None)

    def close(self) -> None:
        self._client.close()
