"""From which version on no request can be on its way to a document, so that it need not be written once more."""

from __future__ import annotations

from collections.abc import Sequence

from outbox.store.claims import Claim
from outbox.store.models import EPOCH_STEP, Event
from outbox.store.store import Store


def settled_from(store: Store, claim: Claim, events: Sequence[Event]) -> dict[int, int]:
    """By the id of each claimed row, a version: where the index holds its document with this one or a higher one, no
    request with a version between that and the row's can come any more. The claim must be the row's first.

    No row before it is unfinished then. A row that is done was answered, so the index has come to its version. What is
    left are rows that died, rows that are gone, and documents of a reindex, which are applied over their own version.
    """
    dead = store.run(
        f"""
        SELECT given.id, (
            SELECT max(d.version) FROM outbox_events AS d {store.dialect.indexed("dead")} WHERE d.state = 'dead' AND
            d.index_name = given.index_name AND d.document_id = given.document_id)
        FROM {store.dialect.table("given", id="BIGINT", index_name="TEXT", document_id="TEXT")} AS given
        """,
        given=[(event.id, event.index_name, event.document_id) for event in events],
    )
    watermarks = store.run(
        f"SELECT index_name, max(watermark) FROM outbox_reindex_jobs WHERE watermark IS NOT NULL"
        f" AND index_name {store.dialect.among('indexes')} GROUP BY index_name",
        indexes=sorted({event.index_name for event in events}),
    )
    of_index = {name: watermark + 1 for name, watermark in watermarks}
    # Last: a row that is removed meanwhile was found dead, or is covered by this.
    pruned = store.control().highest_pruned_version
    # Of this epoch at least: what was sent before a backup was restored, its database does not know.
    epoch = claim.version - claim.version % EPOCH_STEP
    died = {id_: died or 0 for id_, died in dead}
    return {event.id: max(epoch, pruned, of_index.get(event.index_name, 0), died[event.id]) for event in events}
