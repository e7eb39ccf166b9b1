"""What a relay asks, or notes, of an answer that does not speak for itself: a version conflict, one index refusing."""

from __future__ import annotations

from outbox.store.models import EPOCH_STEP, HELD, Event, Role
from outbox.store.store import Store, printable


def explained(store: Store, event: Event, reported: int | None, epoch: int) -> bool:
    """Whether a delivery of this outbox accounts for the version that a conflict reports.

    True for a version of a row of the same document that was delivered (`event` itself: at least twice), for
    versions up to the highest that was pruned, and for the one that a reindex of the index gave its documents.
    """
    if reported is None:
        return False
    if reported <= store.control().highest_pruned_version:
        return True
    reported_epoch, id_ = divmod(reported, EPOCH_STEP)
    if reported_epoch > epoch:
        return False
    delivered: int | None = event.deliveries
    if id_ != event.id:
        delivered = store.run(
            "SELECT deliveries FROM outbox_events WHERE id = ? AND index_name = ? AND document_id = ?",
            id_,
            event.index_name,
            event.document_id,
        ).scalar_one_or_none()
    if delivered is not None and delivered >= (2 if id_ == event.id else 1):
        return True
    return is_of_reindex(store, event.index_name, reported)


def is_of_reindex(store: Store, index: str, reported: int) -> bool:
    """Whether a version is the one that a reindex of the index gave its documents."""
    return bool(
        store.run(
            "SELECT EXISTS (SELECT 1 FROM outbox_reindex_jobs WHERE index_name = ? AND watermark = ?)",
            index,
            reported,
        ).scalar_one()
    )


def is_update(store: Store, event: Event, reported: int | None) -> bool:
    """Whether a version is that of a partial update of the event's document."""
    return bool(
        store.run(
            "SELECT EXISTS (SELECT 1 FROM outbox_events WHERE id = ? AND action = 'update'"
            " AND index_name = ? AND document_id = ?)",
            (reported or 0) % EPOCH_STEP,
            event.index_name,
            event.document_id,
        ).scalar_one()
    )


def removed_since(store: Store, event: Event) -> bool:
    """Whether a later row that removes the document, or may, was delivered and has not come to its end."""
    return bool(
        store.run(
            "SELECT EXISTS (SELECT 1 FROM outbox_events INDEXED BY ix_outbox_events_held"
            f" WHERE ({HELD}) AND index_name = ? AND document_id = ? AND id > ?"
            " AND action IN ('delete', 'refresh') AND deliveries > 0)",
            event.index_name,
            event.document_id,
            event.id,
        ).scalar_one()
    )


def refused(store: Store, index: str, target: str, documents: int, error: str, *, blocked: bool, now: int) -> bool:
    """Note that a further physical index did not take what the live one took. Whether the rows must wait.

    A reindex fails by it, and its index gets no rows any more; an old index that takes nothing at all gets none
    either. The rows must wait if the index has become the live one meanwhile, or is about to.
    """
    with store.write(durable=True):
        store.run(
            "UPDATE outbox_reindex_jobs SET state = 'failing', error = ?, updated_at = ?"
            " WHERE new_index = ? AND state = 'running' AND phase NOT IN ('swap', 'drop')",
            printable(error),
            now,
            target,
        )
        store.run(
            "DELETE FROM outbox_indexes WHERE index_name = :index AND physical_index = :target"
            " AND (role = 'old' AND :blocked OR role = 'new' AND EXISTS (SELECT 1 FROM outbox_reindex_jobs"
            "      WHERE new_index = :target AND state = 'failing'))",
            {"index": index, "target": target, "blocked": blocked},
        )
        store.run(
            "UPDATE outbox_indexes SET refused = refused + ?"
            " WHERE index_name = ? AND physical_index = ? AND role = 'old'",
            documents,
            index,
            target,
        )
        role = store.run(
            "SELECT role FROM outbox_indexes WHERE index_name = ? AND physical_index = ?", index, target
        ).scalar_one_or_none()
    return role in (Role.LIVE, Role.NEW)
