"""What keeps versions rising: an epoch above all that were, and what is remembered of rows that are removed."""

from __future__ import annotations

from collections.abc import Sequence

from outbox.errors import FailedOver
from outbox.store.models import EPOCH_STEP
from outbox.store.store import Store, database_name


def draw(store: Store, number: int = 1) -> int:
    """The last of so many new versions in a row. Inside `write`, `alone`, after their rows are locked.

    Raises `FailedOver` where those that were drawn last may be lost, and would be drawn again.
    """
    if (version := store.dialect.draw_version(store.run, number)) is None:
        raise FailedOver(_said(store))
    return version


def failed_over(store: Store) -> FailedOver | None:
    """What has happened, and what to do, where the server is on another timeline than versions were drawn on."""
    noted = store.control().timeline
    same = noted is None or store.dialect.timeline(store.run) in (noted, None)
    return None if same else FailedOver(_said(store))


def _said(store: Store) -> str:
    return (
        f"database {database_name(store.connection.engine)} has failed over, or was restored: the server is on "
        f"timeline {store.dialect.timeline(store.run)} now, versions were drawn on {store.control().timeline}, and "
        "what was committed last may be missing; run 'outbox-relay epoch advance', then start the relays again"
    )


def require_timeline(store: Store) -> None:
    """Note the timeline of the server, unless one is noted. Raises `FailedOver` if it is another one than that."""
    if store.control().timeline is None and (found := store.dialect.timeline(store.run)) is not None:
        with store.write(durable=True):
            store.run("INSERT INTO outbox_control (id) VALUES (1) ON CONFLICT DO NOTHING")
            store.run("UPDATE outbox_control SET timeline = :found WHERE timeline IS NULL", found=found)
    if error := failed_over(store):
        raise error


def was_never_drawn(store: Store, held: int) -> bool:
    """Whether a version that an index holds is above all that this database has drawn.

    So another file has drawn it, of which this one is an older copy.
    """
    return held > store.highest_version()


def filled_indexes(store: Store) -> dict[str, str]:
    """The physical indexes that only rows of this database were delivered to, by name; none before its first claim."""
    if store.highest_version() <= EPOCH_STEP:
        return {}
    found = store.run("SELECT index_name, physical_index FROM outbox_indexes WHERE role = 'live' AND found = 0")
    return {row[0]: row[1] for row in found}


def raise_epoch(store: Store, above: int, now: int) -> int:
    """Make the epoch one above `above` and the current one, and release every claim. Begins what `write` is around."""
    store.take_turn(settled=True)
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
    """Delete rows, and remember the highest version that a request of one which is not done may still bring. Inside
    `write`.

    A dead row has that of its last request, a row that is not finished has that of its first: it may have been sent
    since with any that was drawn.
    """
    among = store.dialect.among("ids")
    undone = (
        "SELECT max(CASE WHEN state = 'dead' THEN version END), max(CASE WHEN state <> 'dead' THEN deliveries END)"
        f" FROM outbox_events WHERE state <> 'done' AND id {among}"
    )
    died, deliveries = store.run(undone, ids=ids).one()
    if highest := store.highest_version() if deliveries else died:
        store.run("INSERT INTO outbox_control (id) VALUES (1) ON CONFLICT DO NOTHING")
        store.run(
            "UPDATE outbox_control SET highest_pruned_version ="
            f" {store.dialect.greatest('highest_pruned_version', ':pruned')}",
            pruned=highest,
        )
    store.run(f"DELETE FROM outbox_documents WHERE event_id {among}", ids=ids)
    store.run(f"DELETE FROM outbox_failures WHERE event_id {among}", ids=ids)
    return store.run(f"DELETE FROM outbox_events WHERE id {among}", ids=ids).rowcount
