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


def awaited(store: Store, row: str) -> str:
    """The id of the unfinished row of its document that a row waits for: the nearest earlier one, or if there is none a
    later one that is claimed; else NULL. `row` is its table."""
    dialect = store.dialect

    def others(of: str) -> str:
        return (
            f"FROM outbox_events AS {of} {dialect.indexed('held')} WHERE ({unfinished(of)})"
            f" AND {of}.index_name = {row}.index_name AND {of}.document_id = {row}.document_id"
        )

    earlier = f"(SELECT max(h.id) {others('h')} AND h.id < {row}.id)"
    if dialect.ids_follow_commits:
        return earlier
    # Not by its state: PostgreSQL would go through all claimed rows for each, if there were few at its last look.
    return f"coalesce({earlier}, (SELECT o.id {others('o')} AND o.id > {row}.id AND o.claim_token IS NOT NULL LIMIT 1))"
