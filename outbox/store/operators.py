"""What operators have done to the outbox tables: a new epoch, dead and pending rows, the end of a tenant."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Unpack

from outbox.store import causes, versions
from outbox.store.causes import Narrowing
from outbox.store.models import OPEN_JOBS, OVERTAKEN, State, unfinished
from outbox.store.store import Store, of_tenants, pause_after

_LATEST: Final = 2**63 - 1
"""Above every version."""

EPOCH_ADVANCED = "the epoch was advanced, as after a restore: no index was changed or removed; begin it anew"


Report = Callable[[Sequence[int]], object]
"""Is told the ids of the rows that a step has changed, as soon as it is committed."""


def no_report(_ids: Sequence[int]) -> None:
    """Nobody asks for them."""


class Move(NamedTuple):
    """The rows of the index `name` go to the physical index `new` instead of `old`."""

    name: str
    old: str
    new: str


class Selection(Narrowing, total=False):
    """Which rows are meant: those that fit all that is given."""

    ids: Sequence[int]
    written_before: int | None  # an instant
    up_to: int | None  # an id


@dataclass(frozen=True, slots=True)
class Retried:
    """What became of dead rows that were to be tried again. `overtaken`: by which later row each was."""

    pending: int
    superseded: int
    overtaken: Mapping[int, int]


# -- the epoch ---------------------------------------------------------------------------------------------------


def advance_epoch(store: Store, above: int, now: int, moves: Iterable[Move] = ()) -> int:
    """Make the epoch one above `above` and the current one, as after a restore. Returns the new epoch.

    Every claim is released. Open reindex jobs fail, and nothing is removed for them: they may have come to their
    end after the backup, so that readers have what they would drop. `moves`: where rows go instead.
    """
    timeline = store.dialect.timeline(store.run)
    with store.write(durable=True):
        epoch = versions.raise_epoch(store, above, now)
        store.run("UPDATE outbox_control SET timeline = :timeline", timeline=timeline)
        for name, old, new in moves:
            given = {"name": name, "old": old, "new": new}
            store.run("DELETE FROM outbox_indexes WHERE index_name = :name AND physical_index = :new", given)
            store.run(
                "UPDATE outbox_indexes SET physical_index = :new WHERE index_name = :name AND physical_index = :old",
                given,
            )
        store.run(
            "UPDATE outbox_reindex_jobs SET state = 'failed', error = :error, updated_at = :now,"
            f" finished_at = :now, lease_token = NULL, lease_expires_at = NULL WHERE {OPEN_JOBS}",
            error=EPOCH_ADVANCED,
            now=now,
        )
        store.run("DELETE FROM outbox_indexes WHERE role = 'new'")
    return epoch


# -- dead and pending rows --------------------------------------------------------------------------------------


def dead(
    store: Store, *, died_by: int | None = None, limit: int | None = None, **selection: Unpack[Selection]
) -> list[dict[str, Any]]:
    """Dead rows in the order of their ids, narrowed by what is given; `died_by`: not those that died later."""
    condition, given = selected(store, **selection)
    indexed = store.dialect.indexed(causes.index_of_dead(selection))
    if died_by is not None:
        condition += " AND coalesce(finished_at, 0) <= :died_by"
    rows = store.run(
        f"SELECT * FROM outbox_events {indexed} WHERE state = 'dead' AND {condition}"
        f" ORDER BY id {'' if limit is None else 'LIMIT :limit'}",
        {**given, "died_by": died_by, "limit": limit},
    )
    return rows.mappings()


def selected(
    store: Store,
    *,
    ids: Sequence[int] = (),
    written_before: int | None = None,
    up_to: int | None = None,
    **narrowing: Unpack[Narrowing],
) -> tuple[str, dict[str, Any]]:
    """A condition that holds for the rows of a selection, and its parameters."""
    condition, given = causes.fitting(**narrowing)
    if ids:
        condition += f" AND id {store.dialect.among('ids')}"
    if written_before is not None:
        condition += " AND created_at < :written_before"
    if up_to is not None:
        condition += " AND id <= :up_to"
    return condition, {**given, "ids": list(ids), "written_before": written_before, "up_to": up_to}


def retry_dead(
    store: Store,
    ids: Iterable[int],
    now: int,
    pause: Callable[[float], object] = time.sleep,
    *,
    report: Report = no_report,
) -> Retried:
    """Put dead rows back to pending, at their old place in the order, where that still means something. In steps.

    A row whose document has moved on stays dead as `overtaken`, with the later row's id in its error: delivered
    now it would be called superseded, and what it said would be dropped in silence. Unless the later row was
    a whole document or a delete: what the dead row said is history then, and it is done as superseded.

    Each step decides by what is so in its transaction, as a retry of its rows alone would. Earlier rows come first:
    one that is delivered between two steps overtakes none that is still to come. What was interrupted can be repeated.

    `pause` is called between two steps with the seconds to wait.
    """
    ordered = sorted(set(ids))
    noted = _note_documents(store, ordered)
    pending, superseded = 0, 0
    overtaken: dict[int, int] = {}
    for step in _steps(store, ordered, pause):
        highest = store.watermark()
        with store.write(durable=True, alone=True):  # a claim beside it would take later rows of the same documents
            _note_rows(store, noted)
            again, late, left = _retry(store, step, now)
        report([*again, *late])
        noted = highest
        pending, superseded = pending + len(again), superseded + len(late)
        overtaken.update(left)
    store.run("DELETE FROM retried")
    return Retried(pending, superseded, overtaken)


def _note_documents(store: Store, ids: Sequence[int]) -> int:
    """Note all rows of the documents of dead rows from the first of these on, for `_retry`. Takes no lock.

    No index finds the rows of a document that are done, so this looks at every row there is. Returns an id up to which
    all rows are noted.
    """
    highest = store.watermark()
    store.dialect.temporary(store.run, "retried", index_name="TEXT", document_id="TEXT", id="BIGINT")
    store.run(
        "INSERT INTO retried SELECT index_name, document_id, id FROM outbox_events"
        f" WHERE id {store.dialect.among('ids')}",
        ids=ids,
    )
    _note_rows(store, min(ids, default=0))
    return highest


def _note_rows(store: Store, since: int) -> None:
    """Note the rows of the same documents with ids above `since` as well."""
    store.run(
        "INSERT INTO retried SELECT index_name, document_id, id FROM outbox_events AS e WHERE id > :since"
        " AND EXISTS (SELECT 1 FROM retried AS r"
        "  WHERE r.index_name = e.index_name AND r.document_id = e.document_id) ON CONFLICT DO NOTHING",
        since=since,
    )


def _retry(store: Store, ids: Sequence[int], now: int) -> tuple[list[int], list[int], dict[int, int]]:
    """One step of `retry_dead`, inside `write`. Returns the rows that are pending, superseded, overtaken.

    A document has moved on if a later row is claimed, or was delivered by a later claim than the dead one; or if an
    update that comes again may have been applied, which has to find the document as it left it. (A row that was
    finished before there were versions of claims has none, and its id is below them all.)
    """
    among, sent = store.dialect.among, "coalesce(e.version, e.id)"
    moved_on = "(e.state = 'claimed' OR e.state = 'pending' AND e.action = 'update' AND e.version IS NOT NULL)"
    found = store.run(
        f"""
        WITH noted AS MATERIALIZED (
            SELECT e.id, e.state, {sent} AS sent,
                   max(CASE WHEN e.state = 'done' THEN {sent} WHEN {moved_on} THEN :latest END)
                       OVER later AS later_sent,
                   max(CASE WHEN e.state = 'done' AND e.action <> 'update' THEN {sent} END) OVER later AS whole_sent,
                   max(CASE WHEN e.state = 'done' OR {moved_on} THEN e.id END) OVER later AS later_id
            FROM retried AS r JOIN outbox_events AS e ON e.id = r.id
            WHERE (r.index_name, r.document_id) IN (
                SELECT index_name, document_id FROM outbox_events WHERE id {among("ids")})
            WINDOW later AS (PARTITION BY r.index_name, r.document_id ORDER BY r.id DESC
                             ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING))
        SELECT id, later_id, coalesce(whole_sent > sent, FALSE) FROM noted
        WHERE state = 'dead' AND later_sent > sent AND id {among("ids")}
        """,
        ids=ids,
        latest=_LATEST,
    )
    superseded = [id_ for id_, _, whole in found if whole]
    overtaken = {id_: later for id_, later, whole in found if not whole}
    given = {"now": now, "ids": ids, "superseded": superseded, "overtaken": list(overtaken), "type": OVERTAKEN}
    store.run(
        "UPDATE outbox_events SET state = 'done', outcome = 'superseded', finished_at = :now"
        f" WHERE id {among('superseded')}",
        given,
    )
    store.run(
        "UPDATE outbox_events SET error_type = :type, error_field = NULL, error = 'row ' || (SELECT o.later FROM"
        f" {store.dialect.table('by', id='BIGINT', later='BIGINT')} AS o WHERE o.id = outbox_events.id)"
        " || ' of the same document was delivered meanwhile: write the document anew and discard this row;"
        " it had died of ' || error_type || ': ' || error"
        f" WHERE id {among('overtaken')} AND error_type <> :type",
        {**given, "by": list(overtaken.items())},
    )
    pending_again = store.run(
        "UPDATE outbox_events SET state = 'pending', attempts = 0, available_at = :now, finished_at = NULL,"
        f" version = NULL WHERE state = 'dead' AND id {among('ids')} AND id {store.dialect.outside('overtaken')}"
        " RETURNING id",
        given,
    )
    return [row[0] for row in pending_again], superseded, overtaken


def discard_dead(store: Store, ids: Sequence[int], report: Report = no_report) -> int:
    """Remove dead rows for good, in steps. Returns their number."""
    return _remove(store, ids, report, "state = :dead", dead=State.DEAD.value)


def pending(store: Store, **selection: Unpack[Selection]) -> list[int]:
    """The ids of pending rows, narrowed by what is given."""
    condition, given = selected(store, **selection)
    found = store.run(
        f"SELECT id FROM outbox_events {store.dialect.indexed('held')} WHERE ({unfinished()}) AND state = 'pending'"
        f" AND {condition} ORDER BY id",
        given,
    )
    return [row[0] for row in found]


def purge(store: Store, ids: Sequence[int], report: Report = no_report) -> int:
    """Remove rows that are pending for good, in steps. Returns their number."""
    return _remove(store, ids, report, "state = :pending", pending=State.PENDING.value)


def _remove(store: Store, ids: Sequence[int], report: Report, condition: str, **given: str) -> int:
    """Delete those of the rows for which the condition holds when their turn comes. Returns their number."""
    removed = 0
    for step in _steps(store, ids):
        with store.write(durable=True, alone=True):  # nobody claims or retries one of them meanwhile
            among = store.dialect.among("ids")
            listed = store.run(f"SELECT id FROM outbox_events WHERE {condition} AND id {among}", ids=step, **given)
            removable = [row[0] for row in listed]
            versions.remove(store, removable)
        report(removable)
        removed += len(removable)
    return removed


def _steps(store: Store, ids: Sequence[int], pause: Callable[[float], object] = time.sleep) -> Iterator[Sequence[int]]:
    """Some at a time, with pauses in which others get the write lock."""
    began: float | None = None
    for step in store.in_steps(ids):
        if began is not None:
            pause(pause_after(began))
        began = time.monotonic()
        yield step


# -- one tenant -------------------------------------------------------------------------------------------------


def rows_of_tenant(store: Store, tenants: tuple[str, ...]) -> int:
    """How many rows a tenant has, in all its spellings, finished ones too."""
    mine, given = of_tenants(tenants)
    return int(store.run(f"SELECT count(*) FROM outbox_events WHERE {mine}", given).scalar_one())


def documents_of_tenant(store: Store, tenants: tuple[str, ...]) -> dict[str, set[str]]:
    """The ids of the documents that rows of a tenant speak of, by index; not those that a later row makes another's."""
    mine, given = of_tenants(tenants, "e.tenant_id")
    ours, _ = of_tenants(tenants, "l.tenant_id")
    found: dict[str, set[str]] = defaultdict(set)
    for index_name, document_id in store.run(
        f"SELECT DISTINCT e.index_name, e.document_id FROM outbox_events AS e WHERE {mine} AND NOT EXISTS ("
        f"  SELECT 1 FROM outbox_events AS l {store.dialect.indexed('held')} WHERE ({unfinished('l')})"
        f"  AND l.index_name = e.index_name AND l.document_id = e.document_id AND l.id > e.id AND NOT {ours})",
        given,
    ):
        found[index_name].add(document_id)
    return found


def remove_rows_of_tenant(store: Store, tenants: tuple[str, ...], report: Report = no_report) -> int:
    """Remove all rows of a tenant but those that a relay has in its hands, in steps. Returns their number."""
    mine, given = of_tenants(tenants)
    found = store.run(f"SELECT id FROM outbox_events WHERE {mine}", given)
    return _remove(store, [row[0] for row in found], report, "state <> :claimed", claimed=State.CLAIMED.value)


def write_deletes(store: Store, index: str, document_ids: Sequence[str], tenant: str, now: int) -> int:
    """Have documents removed, in the order of all rows. Returns their number."""
    with store.write(durable=True):
        return store.run(
            "INSERT INTO outbox_events (action, index_name, document_id, tenant_id, document_bytes, created_at)"
            " SELECT 'delete', :index, document_id, :tenant, 0, :now"
            f" FROM {store.dialect.table('documents', document_id='TEXT')} AS d",
            index=index,
            tenant=tenant,
            now=now,
            documents=[(document_id,) for document_id in document_ids],
        ).rowcount


def targets_at_rest(store: Store, index: str) -> list[str] | None:
    """The physical indexes that rows of an index go to; None while a relay delivers to it."""
    claimed = store.run(
        "SELECT EXISTS (SELECT 1 FROM outbox_events WHERE state = 'claimed' AND index_name = :index)", index=index
    ).scalar_one()
    if claimed:
        return None
    targets = store.run("SELECT physical_index FROM outbox_indexes WHERE index_name = :index", index=index)
    return [row[0] for row in targets]


def forget_index(store: Store, index: str) -> None:
    """Send no more rows to where an index was."""
    with store.write(durable=True):
        store.run("DELETE FROM outbox_indexes WHERE index_name = :index", index=index)
