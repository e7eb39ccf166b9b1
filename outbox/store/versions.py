"""What keeps versions rising: an epoch above all that were, and what is remembered of rows that are removed."""

from __future__ import annotations

from collections.abc import Sequence

from outbox.store.models import EPOCH_STEP, version
from outbox.store.store import Store


def was_never_sent(store: Store, held: int) -> bool:
    """Whether a version that an index holds is of no row that this database has sent, now or before it was pruned.

    Nor of a reindex, nor below those that a repair has gone above. So another file has sent it, of which this one is an
    older copy.
    """
    epoch, row = divmod(held, EPOCH_STEP)
    control = store.control()
    scanned = store.run("SELECT coalesce(max(watermark), 0) FROM outbox_reindex_jobs").scalar_one()
    if epoch != control.epoch or held <= max(control.highest_pruned_version, scanned):
        return epoch > control.epoch
    deliveries = store.run("SELECT deliveries FROM outbox_events WHERE id = :row", row=row).scalar_one_or_none()
    return deliveries == 0 or row > store.dialect.highest_id(store.run)


def filled_indexes(store: Store) -> dict[str, str]:
    """The physical indexes that only rows of this database were delivered to, by name."""
    found = store.run(
        "SELECT index_name, physical_index FROM outbox_indexes AS i WHERE role = 'live' AND found = 0 AND ("
        " EXISTS (SELECT 1 FROM outbox_control WHERE highest_pruned_version > 0) OR EXISTS ("
        " SELECT 1 FROM outbox_events AS e WHERE e.index_name = i.index_name AND e.state = 'done'))"
    )
    return {row[0]: row[1] for row in found}


def raise_epoch(store: Store, above: int, now: int) -> int:
    """Make the epoch one above `above` and the current one, and release every claim. Inside `write`, alone."""
    store.run("INSERT INTO outbox_control (id) VALUES (1) ON CONFLICT DO NOTHING")
    epoch = max(store.control().epoch, above) + 1
    store.run("UPDATE outbox_control SET epoch = :epoch", epoch=epoch)
    store.run("UPDATE outbox_indexes SET found = 0 WHERE found <> 0")  # what others have filled is older from now on
    store.run(
        "UPDATE outbox_events SET state = 'pending', available_at = :now, claim_token = NULL,"
        " claimed_by = NULL, lease_expires_at = NULL WHERE state = 'claimed'",
        now=now,
    )
    return epoch


def remove(store: Store, ids: Sequence[int]) -> int:
    """Delete rows, and remember the highest version among them that an index may hold. Inside `write`."""
    among = store.dialect.among("ids")
    highest = store.run(f"SELECT max(id) FROM outbox_events WHERE deliveries > 0 AND id {among}", ids=ids).scalar_one()
    if highest:
        store.run("INSERT INTO outbox_control (id) VALUES (1) ON CONFLICT DO NOTHING")
        store.run(
            "UPDATE outbox_control SET highest_pruned_version ="
            f" {store.dialect.greatest('highest_pruned_version', ':pruned')}",
            pruned=version(store.control().epoch, highest),
        )
    store.run(f"DELETE FROM outbox_documents WHERE event_id {among}", ids=ids)
    store.run(f"DELETE FROM outbox_failures WHERE event_id {among}", ids=ids)
    return store.run(f"DELETE FROM outbox_events WHERE id {among}", ids=ids).rowcount
