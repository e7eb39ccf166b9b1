"""What a relay asks, or notes, of an answer that does not speak for itself: a version conflict, one index refusing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from outbox.store.models import EPOCH_STEP, UNEXPLAINED, Action, Event, Role, unfinished, waiting
from outbox.store.store import Store, printable


class Conflict(NamedTuple):
    """The index holds another version than that of a row; None: it does not hold the document that a row updates."""

    event: Event
    version: int | None


class Facts(NamedTuple):
    """What the tables say of a conflict."""

    deliveries: int = 0  # of the row of this document whose version the index holds
    of_update: bool = False  # that row is a partial update
    of_reindex: bool = False  # the version is the one that a reindex of the index gave its documents
    pruned: bool = False  # the version is not above the highest that was pruned
    of_others: bool = False  # the index was there before any row was sent to it
    removed_since: bool = False  # a later row that removes the document, or may, was delivered and is unfinished


def explain(store: Store, conflicts: Sequence[Conflict]) -> dict[int, Facts]:
    """What the tables say of each conflict, by the id of its row. Asked after the answer that reported them.

    Five statements however many conflicts there are, and none without any.
    """
    facts = {event.id: Facts() for event, _ in conflicts}
    versions = {event: version for event, version in conflicts if version is not None}
    if versions:
        rows = _rows(store, versions)
        watermarks = _watermarks(store, set(versions.values()))
        found = store.found_indexes()
        # Last: a row that is pruned meanwhile was found, or is covered by this.
        highest_pruned = store.control().highest_pruned_version
        for event, version in versions.items():
            row = version % EPOCH_STEP
            action, deliveries = rows.get((row, event.index_name, event.document_id), ("", 0))
            facts[event.id] = Facts(
                deliveries=deliveries,
                of_update=action == Action.UPDATE,
                of_reindex=(event.index_name, version) in watermarks,
                pruned=version <= highest_pruned,
                of_others=event.index_name in found,
            )
    for row in _removed_since(store, [event.id for event, version in conflicts if version is None]):
        facts[row] = Facts(removed_since=True)
    return facts


def _rows(store: Store, versions: dict[Event, int]) -> dict[tuple[int, str, str], tuple[str, int]]:
    """Action and deliveries of the rows that have these versions, by id, index and document."""
    # The claimed row itself counts as it was claimed: another relay may have it by now.
    own = {event for event, version in versions.items() if version % EPOCH_STEP == event.id}
    found = {(event.id, event.index_name, event.document_id): (event.action, event.deliveries) for event in own}
    if others := {event: version for event, version in versions.items() if event not in own}:
        among = store.dialect.among
        listed = store.run(
            "SELECT id, index_name, document_id, action, deliveries FROM outbox_events"
            f" WHERE id {among('ids')} AND index_name {among('indexes')} AND document_id {among('documents')}",
            ids=sorted({version % EPOCH_STEP for version in others.values()}),
            indexes=sorted({event.index_name for event in others}),
            documents=sorted({event.document_id for event in others}),
        )
        found |= {(id_, *place): (action, deliveries) for id_, *place, action, deliveries in listed}
    return found


def _watermarks(store: Store, versions: set[int]) -> set[tuple[str, int]]:
    """Which of the versions are those of a reindex, and of what index."""
    found = store.run(
        f"SELECT index_name, watermark FROM outbox_reindex_jobs WHERE watermark {store.dialect.among('versions')}",
        versions=sorted(versions),
    )
    return {(index_name, watermark) for index_name, watermark in found}


def _removed_since(store: Store, ids: Sequence[int]) -> list[int]:
    """Those of the rows after which another one that removes their document, or may, was delivered."""
    if not ids:
        return []
    dialect = store.dialect
    found = store.run(
        f"SELECT e.id FROM outbox_events AS e WHERE e.id {dialect.among('ids')} AND EXISTS ("
        f" SELECT 1 FROM outbox_events AS h {dialect.indexed('held')} WHERE ({unfinished('h')})"
        " AND h.index_name = e.index_name AND h.document_id = e.document_id AND h.id > e.id"
        " AND h.action IN ('delete', 'refresh') AND h.deliveries > 0)",
        ids=ids,
    )
    return [row[0] for row in found]


@dataclass(frozen=True, slots=True)
class Held:
    """Rows that wait since their index holds versions of others."""

    index: str
    rows: int
    reason: str  # what the last one met, and what to do


def held_by_others(store: Store) -> list[Held]:
    """The indexes that others have filled with versions that hold rows up, which `epoch advance` ends."""
    if not (found := store.found_indexes()):
        return []
    rows = store.run(
        f"SELECT index_name, count(*), max(error) FROM outbox_events {store.dialect.indexed('waiting')}"
        f" WHERE {waiting()} AND error_type = :unexplained AND index_name {store.dialect.among('found')}"
        " GROUP BY index_name ORDER BY index_name",
        unexplained=UNEXPLAINED,
        found=sorted(found),
    )
    return [Held(*row) for row in rows]


def unexplained_documents(store: Store, most: int) -> dict[str, list[str]]:
    """The ids by index of documents, up to so many, whose rows have met a version that nothing explains."""
    rows = store.run(
        "SELECT DISTINCT index_name, document_id FROM outbox_events"
        " WHERE (state = 'pending' OR state = 'dead') AND error_type = :unexplained LIMIT :most",
        unexplained=UNEXPLAINED,
        most=most,
    )
    found: dict[str, list[str]] = {}
    for index_name, document_id in rows:
        found.setdefault(index_name, []).append(document_id)
    return found


def record_refusal(
    store: Store, index: str, target: str, documents: int, error: str, *, blocked: bool, now: int
) -> bool:
    """Note that a further physical index did not take what the live one took. Whether the rows must wait.

    A reindex fails by it, and its index gets no rows any more; an old index that takes nothing at all gets none
    either. The rows must wait if the index has become the live one meanwhile, or is about to.
    """
    with store.write(durable=True):
        store.run(
            "UPDATE outbox_reindex_jobs SET state = 'failing', error = :error, updated_at = :now"
            " WHERE new_index = :target AND state = 'running' AND phase NOT IN ('swap', 'drop')",
            error=printable(error),
            now=now,
            target=target,
        )
        store.run(
            "DELETE FROM outbox_indexes WHERE index_name = :index AND physical_index = :target"
            " AND (role = 'old' AND :blocked OR role = 'new' AND EXISTS (SELECT 1 FROM outbox_reindex_jobs"
            "      WHERE new_index = :target AND state = 'failing'))",
            index=index,
            target=target,
            blocked=blocked,
        )
        store.run(
            "UPDATE outbox_indexes SET refused = refused + :documents"
            " WHERE index_name = :index AND physical_index = :target AND role = 'old'",
            documents=documents,
            index=index,
            target=target,
        )
        role = store.run(
            "SELECT role FROM outbox_indexes WHERE index_name = :index AND physical_index = :target",
            index=index,
            target=target,
        ).scalar_one_or_none()
    return role in (Role.LIVE, Role.NEW)
