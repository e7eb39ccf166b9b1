"""Rows that were committed after later ones of their document, of which a relay may have some already.

Where ids do not follow commits, a row with a lower id can appear while a later one is claimed. It waits for the end of
that claim: both could be merged into the same document as it was before, and one of them would be lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from outbox.store.models import Event, unfinished
from outbox.store.store import Store

_CLAIMED = f"({unfinished('h')}) AND h.state = 'claimed'"  # by the index of all unfinished rows


def documents(store: Store, rows: Iterable[Event], token: str = "") -> set[tuple[str, str]]:
    """The documents of which another claim than that of `token` holds a row later than the first of these, which are in
    the order of their ids. Asks nothing where ids follow commits."""
    if store.dialect.ids_follow_commits:
        return set()
    first: dict[tuple[str, str], int] = {}
    for row in rows:
        first.setdefault((row.index_name, row.document_id), row.id)
    given = store.dialect.table("first", index_name="TEXT", document_id="TEXT", id="BIGINT")
    found = store.run(
        f"SELECT d.index_name, d.document_id FROM {given} AS d WHERE EXISTS ("
        f" SELECT 1 FROM outbox_events AS h {store.dialect.indexed('held')} WHERE {_CLAIMED}"
        " AND h.claim_token <> :token AND h.index_name = d.index_name AND h.document_id = d.document_id"
        " AND h.id > d.id)",
        first=[(*place, id_) for place, id_ in first.items()],
        token=token,
    )
    return {(row[0], row[1]) for row in found}


def park(store: Store, ids: Sequence[int], now: int, latest: int) -> None:
    """Have such rows wait until that claim ends, at the latest with its lease. Due at once where it has ended since."""
    dialect = store.dialect
    lease = dialect.greatest(":now + 1", dialect.least(":latest", "max(h.lease_expires_at)"))
    with store.write(durable=False, alone=True):
        store.run(
            f"""
            UPDATE outbox_events SET available_at = coalesce((
                SELECT {lease} FROM outbox_events AS h {dialect.indexed("held")}
                WHERE {_CLAIMED} AND h.index_name = outbox_events.index_name
                AND h.document_id = outbox_events.document_id AND h.id > outbox_events.id
                HAVING count(*) > 0), :now)
            WHERE id {dialect.among("ids")} AND state = 'pending'
            """,
            ids=ids,
            now=now,
            latest=latest,
        )
