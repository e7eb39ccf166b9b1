"""Elasticsearch 8.19 to 9.x: one `_bulk` request for each `apply`, and every answer mapped to one outcome.

Not `helpers.bulk()`: it pairs answers with actions by position alone, does not retry an item 429, and counts a
conflict and the 404 of a delete as errors. The client's own retries are off; the outbox owns them.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from elastic_transport import ConnectionTimeout, TransportError
from elasticsearch import ApiError, Elasticsearch, UnsupportedProductError
from elasticsearch.serializer import OrjsonSerializer

from outbox.destinations.base import Action, Health, IndexFacts, Outcome, OutcomeKind
from outbox.errors import DestinationError, shortened

MAX_ID_BYTES = 512
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
_CURRENT_VERSION = re.compile(r"current version \[(\d+)\]")
_OF_A_FIELD = re.compile(r"\b(field|fields|mapper|mapping|_id|term|object)\b", re.IGNORECASE)
_OF_AN_INDEX = re.compile(r"\b(alias|write index|index \[)", re.IGNORECASE)
_ANSWERED_FIELDS = "errors,items.*._id,items.*.status,items.*._version,items.*.error"


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
        # Retries only move to the next node when one refuses a connection; what was answered is never repeated.
        self._client = Elasticsearch(
            list(urls),
            request_timeout=request_timeout,
            max_retries=len(urls) - 1,
            retry_on_timeout=False,
            retry_on_status=(),
            connections_per_node=connections,
            serializers={"application/vnd.elasticsearch+json": OrjsonSerializer()},
            **options,
        )
        # The transport logs every failed request with a traceback; the breaker says it once.
        logging.getLogger("elastic_transport").setLevel(logging.CRITICAL)
        self._bulk_timeout = f"{int(bulk_timeout * 1000)}ms"
        self._gc_deletes = gc_deletes
        self._checked: dict[str, float] = {}

    def apply(self, actions: Sequence[Action]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        body: list[bytes] = []
        sent: list[int] = []
        usable: dict[str, Outcome | None] = {}
        for position, action in enumerate(actions):
            if action.target not in usable:
                usable[action.target] = self._check_target(action.index, action.target)
            refused = usable[action.target] or _unsendable(action)
            if refused:
                outcomes[position] = refused
            else:
                sent.append(position)
                _append_operation(body, action)
        if sent:
            answers = self._bulk(b"\n".join(body) + b"\n", [actions[position] for position in sent])
            outcomes.update(zip(sent, answers, strict=True))
            for position in sent:
                if outcomes[position].kind is OutcomeKind.BLOCKED:
                    self._checked.pop(actions[position].target, None)
        return [outcomes[position] for position in range(len(actions))]

    def _bulk(self, body: bytes, actions: Sequence[Action]) -> list[Outcome]:
        try:
            # Prepared bytes are sent as they are, which the annotation leaves out.
            answer = self._client.bulk(
                operations=body,  # type: ignore[arg-type]
                timeout=self._bulk_timeout,
                filter_path=_ANSWERED_FIELDS,
            ).body
        except ApiError as error:
            return [self._refused_request(error, single=len(actions) == 1)] * len(actions)
        except (TransportError, UnsupportedProductError) as error:
            return [_unavailable(error)] * len(actions)
        items = answer.get("items") if isinstance(answer, dict) else None
        if not isinstance(items, list):
            return [Outcome(OutcomeKind.UNAVAILABLE, "not_elasticsearch", "the answer has no list of items")] * len(
                actions
            )
        return [_outcome(action, items[at] if at < len(items) else None) for at, action in enumerate(actions)]

    def _refused_request(self, error: ApiError, *, single: bool) -> Outcome:
        """The whole request was answered with an error status."""
        what = _describe(error)
        if error.meta.status in (400, 413):
            # Something that answers 400 to everything (TLS port, wrong client) must condemn no document.
            if self.ping() is not None:
                return Outcome(OutcomeKind.UNAVAILABLE, f"http_{error.meta.status}", what)
            kind = OutcomeKind.REJECTED if single else OutcomeKind.SPLIT
            return Outcome(kind, f"http_{error.meta.status}", what)
        return Outcome(OutcomeKind.UNAVAILABLE, f"http_{error.meta.status}", what)

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
            return self._refused_request(error, single=False)._replace(kind=OutcomeKind.UNAVAILABLE)
        except (TransportError, UnsupportedProductError) as error:
            return _unavailable(error)
        aliases = found.get(target, {}).get("aliases", {}) if isinstance(found, dict) else {}
        if target != name and name not in aliases:
            return Outcome(
                OutcomeKind.BLOCKED, "alias_not_found_exception", f"alias {name} does not point to index {target}"
            )
        self._checked[target] = time.monotonic() + CHECK_INDEX_EVERY_S
        return None

    def ensure_index(self, name: str) -> str:
        try:
            target = self._find(name) or self._create(name)
            self._client.indices.put_settings(index=target, settings={"index.gc_deletes": self._gc_deletes})
        except (ApiError, TransportError, UnsupportedProductError) as error:
            raise DestinationError(f"index {name} cannot be prepared: {_describe(error)}") from error
        return target

    def _find(self, name: str) -> str | None:
        found = self._client.options(ignore_status=404).indices.get_alias(index=name).body
        if not isinstance(found, dict) or "error" in found:
            return None
        if len(found) > 1:
            raise DestinationError(
                f"alias {name} points to {len(found)} indexes ({', '.join(sorted(found))}); make it point to one"
            )
        return str(next(iter(found)))

    def _create(self, name: str) -> str:
        target = f"{name}-000001"
        # 400: another relay was faster (resource_already_exists_exception), or the name is taken
        created = self._client.options(ignore_status=400).indices.create(
            index=target, aliases={name: {}}, settings={"index.gc_deletes": self._gc_deletes}
        )
        if (found := self._find(name)) is None:
            raise DestinationError(f"index {target} cannot be created: {shortened(created.body, 300)}")
        return found

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
            raise DestinationError(f"elasticsearch does not answer: {_describe(error)}") from error
        versions = [node.get("version", "?") for node in nodes.get("nodes", {}).values()]
        return Health("elasticsearch", versions[0] if versions else "?", status.get("status", "?"))

    def inspect_index(self, name: str, target: str) -> IndexFacts:
        client = self._client.options(ignore_status=404)
        try:
            settings = client.indices.get_settings(index=target, name="index.gc_deletes")
            readers = client.indices.get_alias(index=name)
        except (ApiError, TransportError, UnsupportedProductError) as error:
            raise DestinationError(f"index {name} cannot be looked at: {_describe(error)}") from error
        of_index = settings.body.get(target, {}).get("settings", {}).get("index", {})
        return IndexFacts(
            exists=settings.meta.status != 404,
            readers=() if readers.meta.status == 404 else tuple(sorted(readers.body)),
            gc_deletes=of_index.get("gc_deletes", "60s"),  # Elasticsearch's default is left out of the answer
        )

    def highest_version(self, name: str) -> int:
        highest = 0
        try:
            if self._find(name) is None:
                return 0
            self._client.indices.refresh(index=name)
            # Versions cannot be sorted by: all are read, newest first where that is likely.
            point = self._client.open_point_in_time(index=name, keep_alive="1m")["id"]
            after: list[Any] | None = None
            while True:
                page = self._client.search(
                    size=5_000,
                    version=True,
                    source=False,
                    pit={"id": point, "keep_alive": "1m"},
                    sort=["_shard_doc"],
                    search_after=after,
                    track_total_hits=False,
                )["hits"]["hits"]
                if not page:
                    break
                highest = max(highest, *(hit["_version"] for hit in page))
                after = page[-1]["sort"]
            self._client.close_point_in_time(id=point)
        except (ApiError, TransportError, UnsupportedProductError) as error:
            raise DestinationError(f"versions of index {name} cannot be read: {_describe(error)}") from error
        return highest

    def close(self) -> None:
        self._client.close()


def _append_operation(body: list[bytes], action: Action) -> None:
    target, document_id = orjson.dumps(action.target), orjson.dumps(action.document_id)
    operation = b"delete" if action.document is None else b"index"
    body.append(
        b'{"%s":{"_index":%s,"_id":%s,"version":%d,"version_type":"external"}}'
        % (operation, target, document_id, action.version)
    )
    if action.document is not None:
        body.append(action.document)


def _unsendable(action: Action) -> Outcome | None:
    """What can be known before sending. One such operation would fail or forge the whole request."""
    try:
        size = len(action.document_id.encode())
    except UnicodeEncodeError:
        return _rejected("illegal_argument_exception", "the document id is no valid Unicode text")
    if not 0 < size <= MAX_ID_BYTES:
        return _rejected("illegal_argument_exception", f"the document id has {size} bytes, allowed are 1 to 512")
    if action.document is None:
        return None
    if b"\n" in action.document or b"\r" in action.document:
        return _rejected("illegal_document", "the stored document contains a line break; store JSON on one line")
    if not action.document.startswith(b"{"):
        return _rejected("illegal_document", "the stored document is missing or no JSON object")
    return None


def _rejected(error_type: str, error: str) -> Outcome:
    return Outcome(OutcomeKind.REJECTED, error_type, error)


_APPLIED = Outcome(OutcomeKind.APPLIED)


def _outcome(action: Action, item: Any) -> Outcome:
    """Match one item of the answer with its action, by position, operation and id."""
    operation = "delete" if action.document is None else "index"
    result = item.get(operation) if isinstance(item, dict) else None
    if not isinstance(result, dict) or result.get("_id") != action.document_id:
        return Outcome(OutcomeKind.UNAVAILABLE, "unanswered", "the answer does not speak of this row")
    status, error = result.get("status"), result.get("error")
    if error is None and (status in (200, 201) or (status == 404 and action.document is None)):
        return _APPLIED
    if not isinstance(error, dict):
        error = {"type": f"http_{status}", "reason": str(error)}
    error_type, reason = str(error.get("type")), _reason(error)
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
        if _OF_A_FIELD.search(reason):
            return OutcomeKind.REJECTED
    if status in _OVERLOADED:
        return OutcomeKind.OVERLOADED
    return OutcomeKind.FAILED


def _reason(error: dict[str, Any]) -> str:
    """The reason with that of its causes: the outermost one alone often says only 'failed to parse'."""
    parts: list[str] = []
    cause: Any = error
    while isinstance(cause, dict) and len(parts) < 4:
        if cause.get("reason") and cause["reason"] not in parts:
            parts.append(str(cause["reason"]))
        cause = cause.get("caused_by")
    return ": ".join(parts) or "no reason given"


def _unavailable(error: Exception) -> Outcome:
    kind = "timeout" if isinstance(error, ConnectionTimeout) else type(error).__name__
    return Outcome(OutcomeKind.UNAVAILABLE, kind, _describe(error))


def _describe(error: Exception) -> str:
    """What went wrong in one line, without addresses' passwords and without pages of HTML."""
    if isinstance(error, ConnectionTimeout):
        return "Connection timeout"
    if isinstance(error, ApiError):
        return f"HTTP {error.meta.status}: {shortened(error.message, 200)}"
    text = str(getattr(error, "message", error))
    if "Connection refused" in text:
        return "Connection refused"
    text = re.sub(r"//[^@/\s]*@", "//", text).partition("(")[2].rstrip(")") or text
    return text if len(text) <= 200 else f"{text[:199]}…"
