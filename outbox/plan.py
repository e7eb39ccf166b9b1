"""Pure: the rows of a claim become one action for each document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from outbox import merge
from outbox.destinations.base import Action
from outbox.models import Action as RowAction
from outbox.models import Event, version


@dataclass(frozen=True, slots=True)
class Fold:
    """Rows of one document, in the order of their ids, and the one action they come to."""

    events: tuple[Event, ...]
    action: Action


def fold(events: Sequence[Event], documents: Mapping[int, bytes], targets: Mapping[str, str], epoch: int) -> list[Fold]:
    """One fold a document: its rows in the order of their ids come to one action with the highest of their versions.

    `documents` holds the content by event id; a row whose content is missing gets an empty one, which the
    destination rejects. `targets` names the physical index of each index.
    """
    by_document: dict[tuple[str, str], list[Event]] = {}
    for event in events:
        by_document.setdefault((event.index_name, event.document_id), []).append(event)
    return [
        Fold(tuple(rows), _action(rows, documents, targets[rows[-1].index_name], epoch))
        for rows in by_document.values()
    ]


def _action(rows: Sequence[Event], documents: Mapping[int, bytes], target: str, epoch: int) -> Action:
    """The last full document or delete with all patches after it; or only patches, for what the destination holds."""
    last = rows[-1]
    starts = [at for at, row in enumerate(rows) if row.action != RowAction.UPDATE]
    patches = tuple(documents.get(row.id, b"") for row in rows[starts[-1] + 1 if starts else 0 :])
    action = Action(last.index_name, target, last.document_id, version(epoch, last.id), None, patches)
    if starts and rows[starts[-1]].action != RowAction.DELETE:
        return replace(action, document=_merged(documents.get(rows[starts[-1]].id, b""), patches), patches=())
    if starts and patches:
        return replace(action, document=b"", patches=())  # patches of what is deleted: comes to nothing, see below
    return action


def _merged(document: bytes, patches: Sequence[bytes]) -> bytes:
    """Where rows cannot be folded, an empty document: it is rejected unsent, and the rows go one by one."""
    if not patches:
        return document
    try:
        return merge.merged(document, patches)
    except ValueError:
        return b""
