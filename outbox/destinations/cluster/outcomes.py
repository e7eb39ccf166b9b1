"""Pure: what an answer of a cluster means for the operations of the request. The first rule that fits decides."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import orjson

from outbox.destinations import merge
from outbox.destinations.base import (
    DOCUMENT_MISSING,
    FAILURE_STORE,
    ILLEGAL_DOCUMENT,
    NOT_IN_THE_INDEX,
    SOURCE_MISSING,
    Operation,
    Outcome,
    OutcomeKind,
    rejected,
)
from outbox.destinations.cluster.failures import describe, type_and_reason
from outbox.destinations.cluster.wire import Product, Refused, Unanswered
from outbox.destinations.kept import Kept

DOCUMENT_FAULTS: Final = frozenset(
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
"""Error types that no retry can cure."""

INDEX_FAULTS: Final = frozenset(
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
"""Error types that are about the index: every row of it would meet the same."""

# An index whose documents first pass through something that is away. The text of a document never comes first.
_INFERENCE = "inference_exception"
_AWAY = re.compile(
    r"(Exception when running|Error loading inference for) inference id \["
    r"|Inference (id|service) \[[^]]*\] not found for field \["
    r"|pipeline with id \[[^]]*\] does not exist"
    r"|Pipeline processor configured for non-existent pipeline \["
    r"|(Trained )?model (deployment )?\[[^]]*\] (is not allocated|is \[?STOPPING|must be deployed)",
    re.IGNORECASE,
)

TOO_MANY: Final = 429  # more than there is memory for, or threads; smaller requests may pass
_NOT_NOW = frozenset({409, TOO_MANY, 502, 503, 504})
_TOO_LARGE_OR_MALFORMED = frozenset({400, 413})

# One error type for many faults: only its text tells a document's from an index's.
_VAGUE = "illegal_argument_exception"
# How it begins: what a document says may be quoted later.
_OF_AN_INDEX = re.compile(r"(no write index|alias \[|index \[)", re.IGNORECASE)
_OF_A_DOCUMENT = re.compile(r"\b(field|fields|mapper|mapping|_id|term|object|malformed content)\b", re.IGNORECASE)

_VERSION_CONFLICT = "version_conflict_engine_exception"  # what a pipeline calls a conflict is none of versions
_CURRENT_VERSION = re.compile(r".*\bcurrent version \[(\d+)\]", re.DOTALL)  # the last one: the _id comes before it

APPLIED: Final = Outcome(OutcomeKind.APPLIED)
PUT_ASIDE: Final = Outcome(
    OutcomeKind.FAILED,
    FAILURE_STORE,
    "the index did not take the document, it went to the failure store of its data stream, which says why",
)
UNANSWERED: Final = Outcome(OutcomeKind.UNAVAILABLE, "unanswered", "the answer says nothing about this row")
REQUEST_FULL: Final = Outcome(OutcomeKind.SPLIT, "request_full", "other documents have filled the request")


def foreign(product: Product) -> Outcome:
    """Of an answer that the product does not give."""
    return Outcome(OutcomeKind.UNAVAILABLE, f"not_{product.name}", f"the answer is none of {product.title}'s")


def of_item(operation: Operation, item: Any) -> Outcome:
    """What one item of a `_bulk` answer says of the operation at its position.

    An item is matched by verb and id as well; one of something else leaves the operation unanswered.
    """
    verb = "delete" if operation.document is None else "index"
    result = item.get(verb) if isinstance(item, dict) else None
    if not isinstance(result, dict):
        return UNANSWERED
    if "result" in result and (why := _elsewhere(operation, result)):
        return Outcome(OutcomeKind.FAILED, NOT_IN_THE_INDEX, why)
    if result.get("_id") != operation.document_id:
        return UNANSWERED
    status, error = result.get("status"), result.get("error")
    if result.get("failure_store") == "used":
        return PUT_ASIDE
    if error is None and (status in (200, 201) or (status == 404 and operation.document is None)):
        return APPLIED
    error_type, reason = type_and_reason(error if isinstance(error, dict) else {"type": f"http_{status}"})
    if error_type == _VERSION_CONFLICT:
        current = _CURRENT_VERSION.search(reason)
        return Outcome(OutcomeKind.CONFLICT, error_type, reason, int(current[1]) if current else None)
    return Outcome(_kind(status, error_type, reason), error_type, reason)


def _elsewhere(operation: Operation, result: Mapping[str, Any]) -> str | None:
    """What a pipeline did with a document instead of having the index take it, if it did.

    The `result` is answered only where an index has a pipeline, and only of what went well.
    """
    if operation.document is None:
        return None
    if result["result"] == "noop":
        return "a pipeline of the index dropped the document"
    place = result.get("_index"), result.get("_id")
    if place == (operation.target, operation.document_id):
        return None
    return f"a pipeline of the index made the document {place[0]}/{place[1]} instead"


def _kind(status: Any, error_type: str, reason: str) -> OutcomeKind:
    """Of an item with an error, other than a conflict."""
    if status == 400 and error_type in DOCUMENT_FAULTS:
        return OutcomeKind.REJECTED
    if error_type in INDEX_FAULTS or status in (401, 403):
        return OutcomeKind.BLOCKED
    if error_type == _INFERENCE or _AWAY.match(reason):  # 429 too: it says nothing about the cluster
        return OutcomeKind.BLOCKED
    if status == 400 and error_type == _VAGUE:
        if _OF_AN_INDEX.match(reason):
            return OutcomeKind.BLOCKED
        if _OF_A_DOCUMENT.search(reason):
            return OutcomeKind.REJECTED
    if status in _NOT_NOW:
        return OutcomeKind.OVERLOADED
    return OutcomeKind.FAILED


def of_refused_request(error: Exception, *, single: bool, answers_others: Callable[[], bool]) -> Outcome:
    """What a failed `_bulk` request means for each of its operations; `single`: it had only one.

    `answers_others` makes another request now: what answers 400 to everything (a TLS port, a client that is too
    new) must condemn no document.
    """
    if isinstance(error, Refused) and error.status in _TOO_LARGE_OR_MALFORMED and answers_others():
        return unavailable(error)._replace(kind=OutcomeKind.REJECTED if single else OutcomeKind.SPLIT)
    return unavailable(error)


def unavailable(error: Exception) -> Outcome:
    """What any other failed request means for all that it asked for."""
    if isinstance(error, Refused):
        refused = OutcomeKind.OVERLOADED if error.status == TOO_MANY else OutcomeKind.UNAVAILABLE
        return Outcome(refused, f"http_{error.status}", describe(error))
    kind = error.kind if isinstance(error, Unanswered) else type(error).__name__
    return Outcome(OutcomeKind.UNAVAILABLE, kind, describe(error))


def not_looked_up(error: Exception) -> Outcome:
    """What a failed look at one index means for its rows: a right that is missing there says nothing of others."""
    found = unavailable(error)
    refused = isinstance(error, Refused) and error.status == 403
    return found._replace(kind=OutcomeKind.BLOCKED) if refused else found


def patched(operation: Operation, found: Any, kept: Kept) -> Operation | Outcome:
    """The operation with its patches merged into the document that `_mget` found; or what became of it.

    Numbers in the document must be as they were written, see `outbox.destinations.cluster.wire.read_json`.
    """
    if not isinstance(found, dict) or found.get("_id") != operation.document_id:
        return UNANSWERED
    if error := found.get("error"):
        error_type, reason = type_and_reason(error)
        return Outcome(_kind(404 if "not_found" in error_type else 400, error_type, reason), error_type, reason)
    stored = found.get("_source") if found.get("found") else None
    if found.get("found") and (kept.lost or not isinstance(stored, dict)):
        why = kept.lost or "the index gives no _source back"
        return rejected(SOURCE_MISSING, f"{why}, a partial update would lose that; write the full document")
    held = None if stored is None else kept.as_sent(stored)
    version = int(orjson.dumps(found["_version"])) if held is not None and operation.upserts else 0
    try:
        document = merge.updated(held, version, operation.patches, operation.upserts)
    except ValueError as error:
        return rejected(ILLEGAL_DOCUMENT, f"the stored update is no JSON object: {error}")
    if document is None:
        return rejected(DOCUMENT_MISSING, "there is no document to update; write the full document")
    return replace(operation, document=document, patches=(), upserts=())
