"""Pure: the rows of a claim become one operation for each document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from outbox.destinations import merge
from outbox.destinations.base import Operation, Outcome
from outbox.destinations.merge import Upsert
from outbox.store.models import Action, Event

Content = bytes | Outcome | None
"""A document or the fields of an update, as JSON; None: no document; or what is known of the row without sending it."""

# To look a member up in its class costs ten times as much, at each row.
UPDATE: Final = Action.UPDATE
DELETE: Final = Action.DELETE


class Fold(NamedTuple):
    """Rows of one document, in the order of their ids, and the one operation they come to.

    `known` says what became of it where that is known without sending it.
    """

    events: tuple[Event, ...]
    operation: Operation
    known: Outcome | None = None


def fold(
    events: Sequence[Event], contents: Mapping[int, Content], targets: Mapping[str, str], version: int
) -> list[Fold]:
    """One fold a document: its rows in the order of their ids come to one operation with this version.

    `contents` by event id: a document or patch; None: no document; or an outcome. A row that is missing there, and
    should have content, gets an empty one, which the destination rejects. `targets`: the physical index of each.
    """
    by_document: dict[tuple[str, str], tuple[Event, ...]] = {}
    for event in events:
        rows = (event,)
        if (earlier := by_document.setdefault((event.index_name, event.document_id), rows)) is not rows:
            by_document[event.index_name, event.document_id] = earlier + rows
    return [_fold(rows, contents, targets, version) for rows in by_document.values()]


def _fold(rows: tuple[Event, ...], contents: Mapping[int, Content], targets: Mapping[str, str], version: int) -> Fold:
    """All rows of one document."""
    name, document_id = rows[-1].index_name, rows[-1].document_id
    content, patches, upserts = _folded(rows, contents)
    document, known = (None, content) if isinstance(content, Outcome) else (content, None)
    return Fold(rows, Operation(name, targets[name], document_id, version, document, patches, upserts), known)


def _folded(
    rows: Sequence[Event], contents: Mapping[int, Content]
) -> tuple[Content, tuple[bytes, ...], tuple[Upsert, ...]]:
    """The last row that says all of the document, with the patches after it; or only patches, for what is stored."""
    if len(rows) == 1 and rows[0].action != UPDATE:  # as nearly all are
        return _content(rows[0], contents), (), ()
    wholes = [at for at, row in enumerate(rows) if row.action != UPDATE]
    read = [_content(row, contents) for row in rows[wholes[-1] if wholes else 0 :]]
    known = next((content for content in read if isinstance(content, Outcome)), None)
    if known:
        return known, (), ()
    base = read.pop(0) if wholes else None
    updates = [merge.split(content) for content in read if isinstance(content, bytes)]
    if not wholes:
        upserts = (
            Upsert(at, upsert, row.version)
            for at, (row, (_, upsert)) in enumerate(zip(rows, updates, strict=True))
            if upsert is not None
        )
        return None, tuple(patch for patch, _ in updates), tuple(upserts)
    if base is None and updates and updates[0][1] is not None:
        base = updates.pop(0)[1]
    # Patches of what is deleted come to nothing together: see below.
    patches = [patch for patch, _ in updates]
    return _merged(base, patches) if isinstance(base, bytes) else b"" if patches else None, (), ()


def _content(row: Event, contents: Mapping[int, Content]) -> Content:
    return None if row.action == DELETE else contents.get(row.id, b"")


def _merged(document: bytes, patches: Sequence[bytes]) -> bytes:
    """Where rows cannot be folded, an empty document: it is rejected unsent, and the rows go one by one."""
    if not patches:
        return document
    try:
        return merge.merged(document, patches)
    except ValueError:
        return b""
