"""Pure: the rows of a claim become one action for each document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from outbox import merge
from outbox.destinations.base import Action, Outcome
from outbox.models import Action as RowAction
from outbox.models import Event, version


@dataclass(frozen=True, slots=True)
class Fold:
    """Rows of one document, in the order of their ids, and the one action they come to.

    `known` says what became of it where that is known without sending it.
    """

    events: tuple[Event, ...]
    action: Action
    known: Outcome | None = None


def fold(
    events: Sequence[Event], contents: Mapping[int, bytes | Outcome | None], targets: Mapping[str, str], epoch: int
) -> list[Fold]:
    """One fold a document: its rows in the order of their ids come to one action with the highest of their versions.

    `contents` by event id: a document or patch; None: no document; or an outcome. A row that is missing there, and
    should have content, gets an empty one, which the destination rejects. `targets`: the physical index of each.
    """
    by_document: dict[tuple[str, str], list[Event]] = {}
    for event in events:
        by_document.setdefault((event.index_name, event.document_id), []).append(event)
    return [_fold(rows, contents, targets[rows[-1].index_name], epoch) for rows in by_document.values()]


def _fold(rows: Sequence[Event], contents: Mapping[int, bytes | Outcome | None], target: str, epoch: int) -> Fold:
    """The last row that says all of the document, and the patches after it; or only patches, for what is stored."""
    last = rows[-1]
    wholes = [at for at, row in enumerate(rows) if row.action != RowAction.UPDATE]
    used = rows[wholes[-1] if wholes else 0 :]
    read = [None if row.action == RowAction.DELETE else contents.get(row.id, b"") for row in used]
    known = next((content for content in read if isinstance(content, Outcome)), None)
    document, patches = None, tuple(content for content in read if isinstance(content, bytes))
    if known:
        patches = ()
    elif wholes:
        # Patches of what is deleted come to nothing together: see below.
        document = _merged(patches[0], patches[1:]) if read[0] is not None else b"" if patches else None
        patches = ()
    action = Action(last.index_name, target, last.document_id, version(epoch, last.id), document, patches)
    return Fold(tuple(rows), action, known)


def _merged(document: bytes, patches: Sequence[bytes]) -> bytes:
    """Where rows cannot be folded, an empty document: it is rejected unsent, and the rows go one by one."""
    if not patches:
        return document
    try:
        return merge.merged(document, patches)
    except ValueError:
        return b""
