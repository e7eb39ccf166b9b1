"""Rows that were committed after later ones of their document, of which a relay may have some already.

Where ids do not follow commits, a row with a lower id can appear while a later one is claimed. It waits for the end of
that claim: both could be merged into the same document as it was before, and one of them would be lost.
"""

from __future__ import annotations

from collections.abc import Iterable

from outbox.store.models import Event, unfinished
from outbox.store.store import Store


def first_ids(rows: Iterable[Event]) -> dict[tuple[str, str], int]:
    """The id of the first row of each document."""
    first: dict[tuple[str, str], int] = {}
    for row in rows:
        first.setdefault((row.index_name, row.document_id), row.id)
    return first


def waits_for(store: Store, other: str, row: str) -> str:
    """Whether a row has to wait for another unfinished one of its document: `other` and `row` are their tables."""
    earlier = f"{other}.id < {row}.id"
    return earlier if store.dialect.ids_follow_commits else f"({earlier} OR {other}.state = 'claimed')"


def overtaken(store: Store, row: str) -> str:
    """Whether a claim holds a later row of the document of which this one is the first: `row` is its table."""
    if store.dialect.ids_follow_commits:
        return "0"
    others = (
        f"SELECT 1 FROM outbox_events AS o {store.dialect.indexed('held')} WHERE ({unfinished('o')})"
        f" AND o.index_name = {row}.index_name AND o.document_id = {row}.document_id"
    )
    return (
        f"NOT EXISTS ({others} AND o.id < {row}.id)"  # else the earlier one is asked, and this one waits for it
        # Not by its state: PostgreSQL would go through all claimed rows for each, if there were few at its last look.
        f" AND EXISTS ({others} AND o.id > {row}.id AND o.claim_token IS NOT NULL)"
    )
