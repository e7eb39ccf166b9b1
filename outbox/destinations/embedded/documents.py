"""Documents of the file: operations applied to them by the rule of versions, and the documents as they are held."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from outbox.destinations import merge
from outbox.destinations.base import (
    DOCUMENT_MISSING,
    ILLEGAL_DOCUMENT,
    TENANT_FIELD,
    Listed,
    Operation,
    Outcome,
    OutcomeKind,
    Stored,
    rejected,
    unsendable,
)
from outbox.destinations.embedded import indexes, mapping
from outbox.destinations.same import is_held
from outbox.documents import DEEPEST, is_too_deep

_STORE = """
INSERT INTO documents (number, index_name, document_id, version, deleted, source) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (number) DO UPDATE SET version = excluded.version, deleted = excluded.deleted, source = excluded.source
"""

# By its own index: whatever else is in the file is not looked at.
_LIST = """
SELECT document_id, version, json_extract(source, :tenant_field) FROM documents
WHERE index_name = :index AND document_id > :after AND NOT deleted AND number % :parts = :part
ORDER BY document_id LIMIT :size
"""


_APPLIED = Outcome(OutcomeKind.APPLIED)
_UNCHANGED = Outcome(OutcomeKind.UNCHANGED)


class Held(NamedTuple):
    """A document as the file has it. `source` is None for a tombstone."""

    number: int
    version: int
    source: str | None


def parsed(operation: Operation) -> dict[str, Any] | Outcome | None:
    """The document as it is to be stored, parsed; None for deletes and patches; or why it cannot be stored."""
    if refused := unsendable(operation):
        return refused
    return None if operation.document is None else _read(operation.document)


def _read(document: bytes) -> dict[str, Any] | Outcome:
    """A document that all readers of the file can read; or why it is none. JSON knows larger numbers than they do."""
    try:
        content = orjson.loads(document)
    except orjson.JSONDecodeError as error:
        return rejected("document_parsing_exception", f"failed to parse: {error}")
    if not isinstance(content, dict):
        return rejected(ILLEGAL_DOCUMENT, "the stored document is no JSON object")
    if is_too_deep(document.decode()):
        return rejected("document_parsing_exception", f"failed to parse: nested more than {DEEPEST} levels deep")
    return content


def apply(
    connection: sqlite3.Connection, operations: Sequence[Operation], contents: Sequence[dict[str, Any] | Outcome | None]
) -> list[Outcome]:
    """What becomes of each operation, in their order; `contents`: as `parsed` has them. Their words are due then."""
    targets = {(operation.index, operation.target) for operation in operations}
    usable = {each: indexes.usable(connection, *each) for each in targets}
    (last,) = connection.execute("SELECT max(number) FROM documents").fetchone()
    next_number = (last or 0) + 1
    written: dict[tuple[str, str], Held] = {}
    outcomes: list[Outcome] = []
    for operation, content in zip(operations, contents, strict=True):
        mappings = usable[operation.index, operation.target]
        if isinstance(mappings, Outcome) or isinstance(content, Outcome):
            outcomes.append(mappings if isinstance(mappings, Outcome) else content)  # type: ignore[arg-type]
            continue
        key = (operation.target, operation.document_id)
        held = written.get(key) or _find_one(connection, *key)
        outcome = _decide(operation, content, held, mappings)
        if isinstance(outcome, Outcome):
            outcomes.append(outcome)
            continue
        written[key] = Held(held.number if held else next_number, operation.version, outcome.source)
        next_number += held is None
        outcomes.append(_APPLIED)
    connection.executemany(
        _STORE,
        [
            (each.number, index, document_id, each.version, each.source is None, each.source)
            for (index, document_id), each in written.items()
        ],
    )
    connection.executemany(
        "INSERT OR IGNORE INTO words_due (document) VALUES (?)", [(each.number,) for each in written.values()]
    )
    return outcomes


class _Source(NamedTuple):
    """What is to be stored; None for a tombstone."""

    source: str | None


def _decide(
    operation: Operation, content: dict[str, Any] | None, held: Held | None, mappings: Mapping[str, Any]
) -> _Source | Outcome:
    """What to store for an operation, or what became of it. As in Elasticsearch, faults come before versions."""
    document = operation.document
    if operation.patches:
        try:
            stored = merge.parsed(held.source.encode()) if held and held.source is not None else None
            document = merge.updated(stored, held.version if held else 0, operation.patches, operation.upserts)
        except ValueError as error:
            return rejected(ILLEGAL_DOCUMENT, f"the stored update is no JSON object: {error}")
        if document is None:
            return rejected(DOCUMENT_MISSING, "there is no document to update; write the full document")
        merged = _read(document)
        if isinstance(merged, Outcome):
            return merged
        content = merged
    if content and mappings and (fault := mapping.fault(mappings, content)):
        return rejected(*fault)
    if held and held.version >= operation.version + operation.or_equal:
        return Outcome(OutcomeKind.CONFLICT, "version_conflict", "the stored document is newer", held.version)
    if document is not None and held and operation.unless_held is not None and held.version >= operation.unless_held:
        known = held.source
        if known is not None and _is_held(document, known.encode()):
            return _UNCHANGED
    return _Source(None if document is None else document.decode())


def _is_held(document: bytes, known: bytes) -> bool:
    try:
        return known == document or is_held(document, merge.parsed(known))
    except ValueError:  # an earlier version took it
        return False


def _find_one(connection: sqlite3.Connection, index: str, document_id: str) -> Held | None:
    found = connection.execute(
        "SELECT number, version, source FROM documents WHERE index_name = ? AND document_id = ?", (index, document_id)
    ).fetchone()
    return Held(*found) if found else None


def find(connection: sqlite3.Connection, index: str, document_ids: Sequence[str]) -> dict[str, Held]:
    """What is held under these ids, tombstones too."""
    found = {document_id: _find_one(connection, index, document_id) for document_id in document_ids}
    return {document_id: each for document_id, each in found.items() if each}


def stored(found: Mapping[str, Held]) -> dict[str, Stored]:
    """The documents among what is held."""
    return {
        document_id: Stored(each.version, content_of(each.source))
        for document_id, each in found.items()
        if each.source is not None
    }


def content_of(source: str) -> dict[str, Any]:
    """A document as it is stored; empty if it is nested too deeply, which earlier versions took."""
    try:
        content: dict[str, Any] = json.loads(source)
    except RecursionError:
        return {}
    return content


def texts(found: Mapping[str, Held]) -> dict[str, bytes]:
    """The same as they are stored."""
    return {document_id: each.source.encode() for document_id, each in found.items() if each.source is not None}


def page(
    connection: sqlite3.Connection, index: str, after: str, size: int, share: tuple[int, int], *, tenants: bool
) -> dict[str, Listed]:
    """The documents with the next ids after `after`, in their order."""
    part, parts = share
    field = f"$.{TENANT_FIELD}" if tenants else None
    asked = {"index": index, "after": after, "part": part, "parts": parts, "size": size, "tenant_field": field}
    return {
        document_id: Listed(version, None if tenant is None else str(tenant))
        for document_id, version, tenant in connection.execute(_LIST, asked)
    }


def count(connection: sqlite3.Connection, index: str) -> int:
    found = "SELECT count(*) FROM documents WHERE index_name = ? AND NOT deleted"
    return int(connection.execute(found, (index,)).fetchone()[0])


def highest_version(connection: sqlite3.Connection, index: str) -> int:
    """0 for an empty index. Versions of tombstones count: they refuse lower ones for good."""
    (highest,) = connection.execute("SELECT max(version) FROM documents WHERE index_name = ?", (index,)).fetchone()
    return highest or 0
