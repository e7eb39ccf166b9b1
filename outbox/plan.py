"""Pure: the rows of a claim become one action for each document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from outbox.destinations.base import Action
from outbox.models import Action as RowAction
from outbox.models import Event, version


@dataclass(frozen=True, slots=True)
class Fold:
    """Rows of one document, in the order of their ids, and the one action they come to."""

    events: tuple[Event, ...]
    action: Action


def fold(events: Sequence[Event], documents: Mapping[int, bytes], targets: Mapping[str, str], epoch: int) -> list[Fold]:
    """One fold a document: a later full document or delete replaces whatever came before it.

    `documents` holds the content by event id; a row whose content is missing gets an empty one, which the
    destination rejects. `targets` names the physical index of each index.
    """
    by_document: dict[tuple[str, str], list[Event]] = {}
    for event in events:
        by_document.setdefault((event.index_name, event.document_id), []).append(event)
    return [
        Fold(tuple(rows), _action(rows[-1], documents, targets[rows[-1].index_name], epoch))
        for rows in by_document.values()
    ]


def _action(event: Event, documents: Mapping[int, bytes], target: str, epoch: int) -> Action:
    document = None if event.action == RowAction.DELETE else documents.get(event.id, b"")
    return Action(event.index_name, target, event.document_id, version(epoch, event.id), document)
