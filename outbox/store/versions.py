"""What keeps versions rising: an epoch above all that were, and what is remembered of rows that are removed."""

from __future__ import annotations

from collections.abc import Sequence

from outbox.store.models import version
from outbox.store.store import Store


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
    return store.run(f"DELETE FROM outbox_events WHERE id {among}", ids=ids).rowcount
