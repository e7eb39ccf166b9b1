"""Elasticsearch 8.19 to 9.x: one `_bulk` request for each `apply`, and every answer mapped to one outcome.

Not `helpers.bulk()`: it pairs answers with operations by position alone, does not retry an item 429, and counts a
conflict and the 404 of a delete as errors. The client's own retries are off; the outbox owns them.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
from elastic_transport import ConnectionError as NoConnection
from elastic_transport import ConnectionTimeout, TransportError
from elasticsearch import ApiError, Elasticsearch, NotFoundError, UnsupportedProductError
from elasticsearch.serializer import NdjsonSerializer
from urllib3.exceptions import NewConnectionError

from outbox.destinations import merge
from outbox.destinations.base import (
    DOCUMENT_MISSING,
    ILLEGAL_DOCUMENT,
    TENANT_FIELD,
    Health,
    Hit,
    IndexFacts,
    Listed,
    Operation,
    Outcome,
    OutcomeKind,
    Stored,
    index_missing,
    rejected,
    unsendable,
)
from outbox.errors import DestinationError, DestinationUnanswered, shortened

CHECK_INDEX_EVERY_S = 5.0

# Elasticsearch error types that no retry can cure.
DOCUMENT_FAULTS = frozenset(
    {
        "document_parsing_exception",  # 8.x name of mapper_parsing_exception
        "mapper_parsing_exception",
        "strict_dynamic_mapping_exception",
        "parsing_exception",
        "parse_exception",
        "x_content_parse_exception",
        "routing_missing_exception",
        "invalid_shape_exception",
    }
)

# Error types that speak of the index: every row of it would meet the same.
INDEX_FAULTS = frozenset(
    {
        "index_closed_exception",
        "cluster_block_exception",
        "index_not_found_exception",
        "alias_not_found_exception",
        "unavailable_shards_exception",
        "no_shard_available_action_exception",
        "security_exception",
        "invalid_index_name_exception",
        "index_primary_shard_not_allocated_exception",
    }
)

_OVERLOADED = frozenset({429, 502, 503, 504})
_CURRENT_VERSION = re.compile(r".*\bcurrent version \[(\d+)\]", re.DOTALL)  # the last: before it stands the _id
_OF_A_DOCUMENT = re.compile(r"\b(field|fields|mapper|mapping|_id|term|object|malformed content)\b", re.IGNORECASE)
_OF_AN_INDEX = re.compile(r"\b(alias|write index|index \[)", re.IGNORECASE)
_POINT_KEPT = "5m"
_LISTED_FIELDS = "pit_id,_shards.failed,hits.hits._id,hits.hits._version,hits.hits._source,hits.hits.sort"
_ANSWERED_FIELDS = "errors,items.*._id,items.*.status,items.*.error"


class _Prepared(NdjsonSerializer):
    """For bodies of `_bulk`, which are bytes already: the client's own copies each of them twice."""

    def dumps(self, data: bytes) -> bytes:
        return data


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
        # What was answered is never repeated. What was not is, by the next node, even if the first has carried it out
        # before its connection broke; `_once` is for what must not be carried out twice.
        self._client = Elasticsearch(
            list(urls),
            request_timeout=request_timeout,
            max_retries=len(urls) - 1,
            retry_on_timeout=False,
            retry_on_status=(),
            connections_per_node=connections,
            serializers={NdjsonSerializer.mimetype: _Prepared()},
            **options,
        )
        self._once, self._others = self._client.options(max_retries=0), len(urls) - 1
        # The transport logs every failed request with a traceback; the breaker says it once.
        logging.getLogger("elastic_transport").setLevel(logging.CRITICAL)
        self._bulk_timeout = f"{int(bulk_timeout * 1000)}ms"
        self._gc_deletes = gc_deletes
        self._checked: dict[str, float] = {}

    def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        sendable: dict[int, Operation] = {}
        usable: dict[str, Outcome | None] = {}
        away: Outcome | None = None  # known from one index: asking for each would cost as many timeouts
        for position, operation in enumerate(operations):
            if operation.target not in usable:
                usable[operation.target] = found = away or self._check_target(operation.index, operation.target)
                away = found if found and found.kind is OutcomeKind.UNAVAILABLE else None
            if refused := usable[operation.target] or unsendable(operation):
                outcomes[position] = refused
            else:
                sendable[position] = operation
        outcomes |= self._resolve_patches(sendable)
        sent = {position: operation for position, operation in sendable.items() if position not in outcomes}
        if sent:
            outcomes |= zip(sent, self._bulk(list(sent.values())), strict=True)
        for position, outcome in outcomes.items():
            if outcome.kind is OutcomeKind.BLOCKED:
                self._checked.pop(operations[position].target, None)
        return [outcomes[position] for position in range(len(operations))]

    def _resolve_patches(self, operations: dict[int, Operation]) -> dict[int, Outcome]:
        """Turn patches into full documents, in `operations`. Returns the outcomes of those that need no request more.

        A partial update cannot carry an external version: one such item fails a whole `_bulk` request with 400. So
        the stored document is read and merged here, and the version decides as for any other: only a request of a relay
        that lost its claim can slip in between, with what the stored document already has.
        """
        patched = {position: operation for position, operation in operations.items() if operation.patches}
        if not patched:
            return {}
        try:
            found = self._client.mget(
                docs=[{"_index": operation.target, "_id": operation.document_id} for operation in patched.values()]
            ).body["docs"]
        except ApiError as error:
            return dict.fromkeys(patched, Outcome(OutcomeKind.UNAVAILABLE, *_of_status(error)))
        except (TransportError, UnsupportedProductError) as error:
            return dict.fromkeys(patched, _unavailable(error))
        except (KeyError, TypeError):
            return dict.fromkeys(patched, _NOT_ELASTICSEARCH)
        outcomes: dict[int, Outcome] = {}
        for at, (position, operation) in enumerate(patched.items()):
            resolved = _resolved(operation, found[at] if at < len(found) else None)
            if isinstance(resolved, Outcome):
                outcomes[position] = resolved
            else:
                operations[position] = resolved
        return outcomes

    def _bulk(self, operations: Sequence[Operation]) -> list[Outcome]:
        targets = {target: orjson.dumps(target) for target in {operation.target for operation in operations}}
        body = b"".join([_lines(operation, targets[operation.target]) for operation in operations])
        try:
            answer = self._answered(body, self._others)
        except ApiError as error:
            return [self._refused_request(error, single=len(operations) == 1)] * len(operations)
        except (TransportError, UnsupportedProductError) as error:
            return [_unavailable(error)] * len(operations)
        items = answer.get("items") if isinstance(answer, dict) else None
        if not isinstance(items, list):
            return [_NOT_ELASTICSEARCH] * len(operations)
        return [_outcome(operation, items[at] if at < len(items) else None) for at, operation in enumerate(operations)]

    def _answered(self, body: bytes, others: int) -> Any:
        """The answer to a `_bulk` request, by the first node that gives a connection; `others` may be asked after it.

        What a node may have seen is not repeated behind the outbox's back: the second one would find the versions that
        the first has brought, and for a row that was delivered once nothing explains its own version.
        """
        try:
            # Prepared bytes are sent as they are, which the annotation leaves out.
            return self._once.bulk(
                operations=body,  # type: ignore[arg-type]
                timeout=self._bulk_timeout,
                filter_path=_ANSWERED_FIELDS,
            ).body
        except NoConnection as error:
            if others and isinstance(error.__cause__, NewConnectionError):
                return self._answered(body, others - 1)
            raise

    def _refused_request(self, error: ApiError, *, single: bool) -> Outcome:
        """The whole request was answered with an error status."""
        # Something that answers 400 to everything (TLS port, wrong client) must condemn no document.
        if error.meta.status in (400, 413) and self.ping() is None:
            return Outcome(OutcomeKind.REJECTED if single else OutcomeKind.SPLIT, *_of_status(error))
        return Outcome(OutcomeKind.UNAVAILABLE, *_of_status(error))

    def _check_target(self, name: str, target: str) -> Outcome | None:
        """None if the physical index is there and readers reach it by its name; else why its rows must wait.

        Looked up again every few seconds: writing to an index that somebody deleted would create it anew, without
        mappings and without its alias (deletes do so even with `require_alias`).
        """
        if self._checked.get(target, 0.0) > time.monotonic():
            return None
        try:
            found = self._client.indices.get_alias(index=target).body
        except ApiError as error:
            if error.meta.status == 404:
                return Outcome(
                    OutcomeKind.BLOCKED,
                    "index_not_found_exception",
                    f"index {target} is missing; restore it from a snapshot, or create it with alias {name}",
                )
            return Outcome(OutcomeKind.UNAVAILABLE, *_of_status(error))
        except (TransportError, UnsupportedProductError) as error:
            return _unavailable(error)
        aliases = found.get(target, {}).get("aliases", {}) if isinstance(found, dict) else {}
        if target != name and name not in aliases:
            return Outcome(
                OutcomeKind.BLOCKED, "alias_not_found_exception", f"alias {name} does not point to index {target}"
            )
        self._checked[target] = time.monotonic() + CHECK_INDEX_EVERY_S
        return None

    def ensure_index(
        self, name: str, mappings: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> str:
        try:
            target = self._find(name) or self._create(name, mappings, settings)
            self._client.indices.put_settings(index=target, settings={"index.gc_deletes": self._gc_deletes})
        except (ApiError, TransportError, UnsupportedProductError) as error:
            raise _error(f"index {name} cannot be prepared", error) from error
        return target

    def _find(self, name: str) -> str | None:
        answer = self._client.options(ignore_status=404).indices.get_alias(index=name)
        if answer.meta.status == 404:
            return None
        found = answer.body
        if not isinstance(found, dict) or not found:
            raise DestinationError(
                f"index {name} cannot be looked up: Elasticsearch does not answer {shortened(found)}"
            )
        if len(found) > 1:
            raise DestinationError(
                f"alias {name} points to {len(found)} indexes ({', '.join(sorted(found))}); make it point to one"
            )
        return str(next(iter(found)))

    def _create(self, name: str, mappings: Mapping[str, Any] | None, settings: Mapping[str, Any] | None) -> str:
        target = f"{name}-000001"
        # 400: another relay was faster (resource_already_exists_exception), or the name is taken
        created = self._client.options(ignore_status=400).indices.create(
            index=target,
            aliases={name: {}},
            mappings=mappings,
            settings={**(settings or {}), "index.gc_deletes": self._gc_deletes},
        )
        if (found := self._find(name)) is None:
            raise DestinationError(f"index {target} cannot be created: {shortened(created.body, 300)}")
        return found

    def read(self, target: str, document_ids: Sequence[str]) -> dict[str, Stored]:
        if not document_ids:
            return {}  # asking for none is an error in Elasticsearch
        try:
            found = self._client.mget(index=target, ids=list(document_ids)).body["docs"]
        except (ApiError, TransportError, UnsupportedProductError) as error:
            raise _error(f"documents of index {target} cannot be read", error) from error
        for each in found:  # a closed index must not look like an empty one
            if (failed := each.get("error")) and failed.get("type") != "index_not_found_exception":
                reason = shortened(_type_and_reason(failed)[1], 200)
                raise DestinationError(f"documents of index {target} cannot be read: {reason}")
        return {each["_id"]: Stored(each["_version"], each["_source"]) for each in found if each.get("found")}

    def pages(
        self, name: str, size: int, *, share: tuple[int, int] = (0, 1), tenants: bool = False
    ) -> Iterator[dict[str, Listed]]:
        point: str | None = None
        after: list[Any] | None = None
        part, parts = share
        try:
            if not self._client.indices.exists(index=name):
                return
            self._client.indices.refresh(index=name)
            point = self._client.open_point_in_time(index=name, keep_alive=_POINT_KEPT)["id"]
            while True:
                # Not by _id: sorting by it is refused unless the cluster was told to allow it.
                answer = self._client.search(
                    size=size,
                    version=True,
                    source={"includes": [TENANT_FIELD]} if tenants else False,
                    pit={"id": point, "keep_alive": _POINT_KEPT},
                    sort=["_shard_doc"],
                    search_after=after,
                    slice=None if parts == 1 else {"id": part, "max": parts},
                    track_total_hits=False,
                    filter_path=_LISTED_FIELDS,
                ).body
                if failed := answer.get("_shards", {}).get("failed"):
                    raise DestinationError(f"index {name} cannot be listed: {failed} of its shards did not answer")
                point = answer["pit_id"]
                hits = answer.get("hits", {}).get("hits", [])
                if not hits:
                    return
                if tenants:
                    yield {hit["_id"]: Listed(hit["_version"], _tenant_of(hit.get("_source"))) for hit in hits}
                else:
                    yield {hit["_id"]: Listed(hit["_version"]) for hit in hits}
                after = hits[-1]["sort"]
        except (ApiError, TransportError, UnsupportedProductError) as error:
            raise _error(f"index {name} cannot be listed", error) from error
        finally:
            if point is not None:
                with suppress(ApiError, TransportError):  # it ends by itself
                    self._client.close_point_in_time(id=point)

    def refresh(self, name: str) -> None:
        try:
            self._client.indices.refresh(index=name)
        except (ApiError, TransportError, UnsupportedProductError) as error:
            raise _error(f"index {name} cannot be refreshed", error) from error

    def search(self, name: str, query: str, *, tenant: str | None = None, limit: int = 10) -> list[Hit]:
        if not query:
            query = " "  # no words match nothing, but the beginning of an empty one matches everything
        words = [
            {"multi_match": {"query": query, "type": "best_fields", "fuzziness": "AUTO", "lenient": True}},
            {"multi_match": {"query": query, "type": "bool_prefix", "lenient": True, "boost": 2}},
        ]
        try:
            only = [] if tenant is None else [{"term": {self._tenant_field(name): tenant}}]
            hits = self._client.search(
                index=name, size=limit, query={"bool": {"should": words, "minimum_should_match": 1, "filter": only}}
            )["hits"]["hits"]
        except NotFoundError:
            raise index_missing(name) from None
        except (ApiError, TransportError, UnsupportedProductError) as error:
            raise _error(f"index {name} cannot be searched", error) from error
        return [Hit(hit["_id"], hit["_score"], hit["_source"]) for hit in hits]

    def _tenant_field(self, name: str) -> str:
        """A text field would match parts of a tenant's name: 'acme' those of 'acme-2' too."""
        types = self._client.field_caps(index=name, fields=[TENANT_FIELD], filter_path="fields.*.*.type").body
        is_text = "text" in types.get("fields", {}).get(TENANT_FIELD, {})
        return f"{TENANT_FIELD}.keyword" if is_text else TENANT_FIELD

    def ping(self) -> str | None:
        try:
            self._client.cluster.health(filter_path="status")
        except (ApiError, TransportError, UnsupportedProductError) as error:
            return _describe(error)
        return None

    def health(self) -> Health:
        try:
            status = self._client.cluster.health(filter_path="status").body
            nodes = self._client.nodes.info(node_id="_local", filter_path="nodes.*.version").body
        except (ApiError, TransportError, UnsupportedProductError) as error:
            raise _error("elasticsearch does not answer", error) from error
        if not isinstance(status, dict) or not isinstance(nodes, dict):
            raise DestinationError(f"elasticsearch does not answer: {shortened(status)} is no answer of its own")
        versions = [node.get("version", "?") for node in nodes.get("nodes", {}).values()]
        return Health("elasticsearch", versions[0] if versions else "?", status.get("status", "?"))

    def inspect_index(self, name: str, target: str) -> IndexFacts:
        client = self._client.options(ignore_status=404)
        try:
            settings = client.indices.get_settings(index=target, name="index.gc_deletes")
            readers = client.indices.get_alias(index=name)
        except (ApiError, TransportError, UnsupportedProductError) as error:
            raise _error(f"index {name} cannot be looked at", error) from error
        of_index = settings.body.get(target, {}).get("settings", {}).get("index", {})
        return IndexFacts(
            exists=settings.meta.status != 404,
            readers=() if readers.meta.status == 404 else tuple(sorted(readers.body)),
            gc_deletes=of_index.get("gc_deletes", "60s"),  # Elasticsearch's default is left out of the answer
        )

    def highest_version(self, name: str) -> int:
        # Versions cannot be sorted by: all are read.
        return max((listed.version for page in self.pages(name, 5_000) for listed in page.values()), default=0)

    def count(self, target: str) -> int:
        try:
            return int(self._client.count(index=target)["count"])
        except (ApiError, TransportError, UnsupportedProductError) as error:
            raise _error(f"documents of index {target} cannot be counted", error) from error

    def create_index(self, target: str, mappings: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        held_back = {"index.refresh_interval": "-1", "index.number_of_replicas": 0}
        try:
            created = self._once.indices.create(
                index=target,
                mappings=mappings,
                settings={**_flat(settings), **held_back, "index.gc_deletes": self._gc_deletes},
            )
        except ApiError as error:
            found = error.body.get("error") if isinstance(error.body, dict) else None
            why = ": ".join(_type_and_reason(found)) if isinstance(found, dict) else _describe(error)
            raise DestinationError(f"index {target} cannot be created: {why}") from error
        except (TransportError, UnsupportedProductError) as error:
            raise _error(f"index {target} cannot be created", error) from error
        if not created.get("shards_acknowledged", True):
            self.drop_index(target)
            raise DestinationError(f"index {target} cannot be created: no node takes its primary shards")

    def finish_index(self, target: str, settings: Mapping[str, Any]) -> None:
        given = _flat(settings)
        held_back = ("index.refresh_interval", "index.number_of_replicas")
        try:
            # null: the default of the cluster
            self._client.indices.put_settings(index=target, settings={name: given.get(name) for name in held_back})
        except (ApiError, TransportError, UnsupportedProductError) as error:
            raise _error(f"index {target} cannot get its settings", error) from error
        self.refresh(target)

    def swap(self, name: str, old: str, new: str, *, adopt: bool = False) -> None:
        if adopt:
            away: dict[str, Any] = {"remove_index": {"index": old}}
        else:
            away = {"remove": {"index": old, "alias": name, "must_exist": True}}
        try:
            self._client.indices.update_aliases(actions=[away, {"add": {"index": new, "alias": name}}])
        except (ApiError, TransportError, UnsupportedProductError) as error:
            raise _error(f"alias {name} cannot be moved from {old} to {new}", error) from error
        self._checked.pop(old, None)

    def drop_index(self, target: str) -> None:
        try:
            self._client.options(ignore_status=404).indices.delete(index=target)
        except (ApiError, TransportError, UnsupportedProductError) as error:
            raise _error(f"index {target} cannot be removed", error) from error
        self._checked.pop(target, None)

    def close(self) -> None:
        self._client.close()


def _tenant_of(source: Mapping[str, Any] | None) -> str | None:
    """A field that holds something else than text is compared by what it looks like."""
    value = (source or {}).get(TENANT_FIELD)
    return value if value is None or isinstance(value, str) else json.dumps(value)


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


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Settings of an index by their full names: they may come nested, and without `index.`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        path = f"{above}{name}"
        found |= _flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return found if above else {name if name.startswith("index.") else f"index.{name}": v for name, v in found.items()}


def _resolved(operation: Operation, found: Any) -> Operation | Outcome:
    """Patches merged into the document that was found: the operation to send instead, or what became of it."""
    if not isinstance(found, dict) or found.get("_id") != operation.document_id:
        return _UNANSWERED
    if error := found.get("error"):
        error_type, reason = _type_and_reason(error)
        return Outcome(_kind(404 if "not_found" in error_type else 400, error_type, reason), error_type, reason)
    if not found.get("found"):
        return rejected(DOCUMENT_MISSING, "there is no document to update; write the full document")
    if not isinstance(found.get("_source"), dict):
        return rejected("source_missing", "the index stores no _source to merge into; write the full document")
    try:
        source = json.dumps(found["_source"], ensure_ascii=False).encode()
        return replace(operation, document=merge.merged(source, operation.patches), patches=())
    except ValueError as error:
        return rejected(ILLEGAL_DOCUMENT, f"the stored update is no JSON object: {error}")


_NO_SHARD = frozenset({"search_phase_execution_exception", "no_shard_available_action_exception"})
"""With 503; with 400 a query is at fault."""

_APPLIED = Outcome(OutcomeKind.APPLIED)
_UNANSWERED = Outcome(OutcomeKind.UNAVAILABLE, "unanswered", "the answer does not speak of this row")
_NOT_ELASTICSEARCH = Outcome(OutcomeKind.UNAVAILABLE, "not_elasticsearch", "the answer has no list of items")


def _outcome(operation: Operation, item: Any) -> Outcome:
    """Match one item of the answer with its operation, by position, verb and id."""
    verb = "delete" if operation.document is None else "index"
    result = item.get(verb) if isinstance(item, dict) else None
    if not isinstance(result, dict) or result.get("_id") != operation.document_id:
        return _UNANSWERED
    status, error = result.get("status"), result.get("error")
    if error is None and (status in (200, 201) or (status == 404 and operation.document is None)):
        return _APPLIED
    error_type, reason = _type_and_reason(error if isinstance(error, dict) else {"type": f"http_{status}"})
    if status == 409:
        current = _CURRENT_VERSION.search(reason)
        return Outcome(OutcomeKind.CONFLICT, error_type, reason, int(current[1]) if current else None)
    return Outcome(_kind(status, error_type, reason), error_type, reason)


def _kind(status: Any, error_type: str, reason: str) -> OutcomeKind:
    if error_type in INDEX_FAULTS or status in (401, 403):
        return OutcomeKind.BLOCKED
    if status == 400 and error_type in DOCUMENT_FAULTS:
        return OutcomeKind.REJECTED
    if status == 400 and error_type == "illegal_argument_exception":
        # One type for everything; only the text tells a document's fault from an index's.
        if _OF_AN_INDEX.search(reason):
            return OutcomeKind.BLOCKED
        if _OF_A_DOCUMENT.search(reason):
            return OutcomeKind.REJECTED
    if status in _OVERLOADED:
        return OutcomeKind.OVERLOADED
    return OutcomeKind.FAILED


def _type_and_reason(error: dict[str, Any]) -> tuple[str, str]:
    """The reason with that of its causes: the outermost one alone often says only 'failed to parse'."""
    parts: list[str] = []
    cause: Any = error
    while isinstance(cause, dict) and len(parts) < 4:
        if cause.get("reason") and cause["reason"] not in parts:
            parts.append(str(cause["reason"]))
        cause = cause.get("caused_by")
    return _sound(str(error.get("type"))), _sound(": ".join(parts)) or "no reason given"


def _sound(text: str) -> str:
    """Text that can be stored: JSON may hold half of a surrogate pair, where a preview of a document was cut."""
    return text.encode(errors="backslashreplace").decode()


def _of_status(error: ApiError) -> tuple[str, str]:
    return f"http_{error.meta.status}", _describe(error)


def _unavailable(error: Exception) -> Outcome:
    kind = "timeout" if isinstance(error, ConnectionTimeout) else type(error).__name__
    return Outcome(OutcomeKind.UNAVAILABLE, kind, _describe(error))


def _error(what: str, error: Exception) -> DestinationError:
    kind = DestinationUnanswered if isinstance(error, TransportError) else DestinationError
    return kind(f"{what}: {_describe(error)}")


def _describe(error: Exception) -> str:
    """What went wrong in one line, without addresses' passwords and without pages of HTML."""
    if isinstance(error, ConnectionTimeout):
        return "Connection timeout"
    if isinstance(error, ApiError):
        cause = error.body.get("error") if isinstance(error.body, dict) else None
        if error.meta.status == 503 and isinstance(cause, dict) and cause.get("type") in _NO_SHARD:
            return "none of its shards is ready: it is just being made, a node is starting, or it is red; try again"
        what = ": ".join(_type_and_reason(cause)) if isinstance(cause, dict) else error.message
        return f"HTTP {error.meta.status}: {shortened(what, 200)}"
    text = str(getattr(error, "message", error))
    if "Connection refused" in text:
        return "Connection refused"
    if text.startswith("("):  # the arguments of an exception of urllib3; the last words say what happened
        text = (re.findall(r"'([^']+)'", text) or [text])[-1]
    text = re.sub(r"^HTTPS?Connection\(.*?\): | \(_ssl\.c:\d+\)|(?<=//)[^@/\s]*@", "", text)
    return text if len(text) <= 200 else f"{text[:199]}…"
