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


def documents(store: Store, rows: Iterable[Event], token: str = "") -> set[tuple[str, str]]:
    """The documents of which another claim than that of `token` holds a row later than the first of these, which are in
    the order of their ids. Asks nothing where ids follow commits."""
    if store.dialect.ids_follow_commits:
        return set()
    given = store.dialect.table("first", index_name="TEXT", document_id="TEXT", id="BIGINT")
    found = store.run(
        f"SELECT d.index_name, d.document_id FROM {given} AS d WHERE EXISTS ("
        f" SELECT 1 FROM outbox_events AS h {store.dialect.indexed('held')} WHERE ({unfinished('h')})"
        " AND h.state = 'claimed' AND h.claim_token <> :token AND h.index_name = d.index_name"
        " AND h.document_id = d.document_id AND h.id > d.id)",
        first=[(*place, id_) for place, id_ in first_ids(rows).items()],
        token=token,
    )
    return {(row[0], row[1]) for row in found}
