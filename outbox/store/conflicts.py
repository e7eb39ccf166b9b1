"""What a relay asks, or notes, of an answer that does not speak for itself: a version conflict, one index refusing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from outbox.store.models import UNEXPLAINED, Event, Role, unfinished, waiting
from outbox.store.store import Store, printable


class Conflict(NamedTuple):
    """The index holds another version than that of a row; None: it does not hold the document that a row updates."""

    event: Event
    version: int | None


class Facts(NamedTuple):
    """What the tables say of a conflict."""

    drawn: bool = False  # a claim, or a reindex, of this database has drawn a version as high as that
    of_others: bool = False  # the index was there before any row was sent to it
    removed_since: bool = False  # a later row that removes the document, or may, was delivered and is unfinished


def explain(store: Store, conflicts: Sequence[Conflict]) -> dict[int, Facts]:
    """What the tables say of each conflict, by the id of its row. Asked after the answer that reported them.

    Three statements however many conflicts there are, and none without any.
    """
    facts = {event.id: Facts() for event, _ in conflicts}
    versions = {event: version for event, version in conflicts if version is not None}
    if versions:
        highest, found = store.highest_version(), filled_by_others(store)
        for event, version in versions.items():
            facts[event.id] = Facts(drawn=version <= highest, of_others=event.index_name in found)
    for row in _removed_since(store, [event.id for event, version in conflicts if version is None]):
        facts[row] = Facts(removed_since=True)
    return facts


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


def filled_by_others(store: Store) -> set[str]:
    """Indexes that others may have filled before any row was sent to them, and no epoch has been begun since."""
    return {row[0] for row in store.run("SELECT index_name FROM outbox_indexes WHERE found <> 0 AND role = 'live'")}


def held_by_others(store: Store) -> list[Held]:
    """The indexes that others have filled with versions that hold rows up, which `epoch advance` ends."""
    if not (found := filled_by_others(store)):
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
