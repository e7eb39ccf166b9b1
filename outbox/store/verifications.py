"""What a verification asks of the outbox tables: documents on their way, versions for a repair, what it found."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from outbox.store import versions
from outbox.store.drift import DriftKind
from outbox.store.models import EPOCH_STEP, FOUND, unfinished
from outbox.store.store import Store, printable


def note_unfinished(store: Store) -> int:
    """Note which documents have unfinished rows, for `moving`. Returns the highest id issued before."""
    store.dialect.temporary(store.run, "unfinished", index_name="TEXT", document_id="TEXT")
    before = store.watermark()
    store.run(
        f"INSERT INTO unfinished SELECT index_name, document_id FROM outbox_events {store.dialect.indexed('held')}"
        f" WHERE {unfinished()} ON CONFLICT DO NOTHING"
    )
    return before


def on_its_way(store: Store, index: str, document_id: str, since: int) -> bool:
    """Whether one document has an unfinished row, or got a row after the id `since`."""
    return bool(
        store.run(
            f"SELECT EXISTS (SELECT 1 FROM outbox_events {store.dialect.indexed('held')}"
            f" WHERE ({unfinished()}) AND index_name = :index AND document_id = :document)"
            " OR EXISTS (SELECT 1 FROM outbox_events"
            " WHERE id > :since AND index_name = :index AND document_id = :document)",
            index=index,
            document=document_id,
            since=since,
        ).scalar_one()
    )


def moving(store: Store, places: Iterable[tuple[str, str]], since: int) -> set[tuple[str, str]]:
    """Those of the documents that had an unfinished row at `note_unfinished`, or got one after the id `since`.

    The outbox has changed no other document since then.
    """
    given = store.dialect.table("places", index_name="TEXT", document_id="TEXT")
    found = store.run(
        f"""
        WITH place (index_name, document_id) AS MATERIALIZED (SELECT index_name, document_id FROM {given} AS given)
        SELECT index_name, document_id FROM place JOIN unfinished USING (index_name, document_id)
        UNION SELECT index_name, document_id FROM outbox_events
        WHERE id > :since AND (index_name, document_id) IN (SELECT index_name, document_id FROM place)
        """,
        places=list(places),
        since=since,
    )
    return {(row[0], row[1]) for row in found}


def raise_above(store: Store, found: int, now: int) -> int | None:
    """Have all further claims draw versions above `found`, which an index holds. Returns the new epoch, if any.

    Within this epoch the next tokens are made higher; a version of a later one, or so high that few tokens would be
    left below it, takes an epoch of its own.
    """
    epoch, token = divmod(found, EPOCH_STEP)
    if epoch < store.control().epoch:
        return None
    if epoch > store.control().epoch or token > EPOCH_STEP // 2:
        with store.write(durable=True):
            return versions.raise_epoch(store, epoch, now)
    with store.write(durable=True):
        store.dialect.raise_tokens(store.run, token)
    return None


def refresh(store: Store, documents: Sequence[tuple[str, str, str | None, str]], now: int) -> None:
    """Write a `refresh` row for each document: index, id, tenant and entity."""
    with store.write(durable=True):
        given = store.dialect.table("documents", index_name="TEXT", document_id="TEXT", tenant_id="TEXT", entity="TEXT")
        store.run(
            "INSERT INTO outbox_events"
            " (action, index_name, document_id, tenant_id, entity, document_bytes, created_at)"
            f" SELECT 'refresh', index_name, document_id, tenant_id, entity, 0, :now FROM {given} AS d",
            now=now,
            documents=documents,
        )


def begin(
    store: Store,
    by: str,
    entities: Sequence[str],
    tenant_id: str | None,
    sample: float,
    now: int,
    *,
    unless_scheduled_since: int | None = None,
) -> int | None:
    """Note a verification. None if it is a scheduled one, and another relay began with it since that instant."""
    scheduled = unless_scheduled_since is not None
    unless = (
        "WHERE NOT EXISTS (SELECT 1 FROM outbox_verifications WHERE scheduled <> 0 AND started_at > :since)"
        if scheduled
        else ""
    )
    with store.write(durable=False, alone=True):
        store.run("DELETE FROM outbox_verifications WHERE id <= (SELECT max(id) FROM outbox_verifications) - 99")
        begun: int | None = store.run(
            "INSERT INTO outbox_verifications (started_at, started_by, scheduled, entities, tenant_id, sample)"
            f" SELECT :now, :by, :scheduled, :entities, :tenant, :sample {unless} RETURNING id",
            now=now,
            by=by,
            since=unless_scheduled_since,
            scheduled=int(scheduled),
            entities=json.dumps(list(entities)),
            tenant=tenant_id,
            sample=sample,
        ).scalar_one_or_none()
    return begun


def finish(store: Store, id_: int, found: Mapping[str, int], error: str | None, now: int) -> None:
    """Note what a verification has found, by the names of `models.FOUND`; or why it has not come to its end."""
    with store.write(durable=False):
        store.run(
            f"UPDATE outbox_verifications SET finished_at = :now, error = :error,"
            f" {', '.join(f'{name} = :{name}' for name in FOUND)} WHERE id = :id",
            {"now": now, "error": printable(error), "id": id_, **found},
        )


def with_drift(store: Store) -> list[dict[str, Any]]:
    """Those of the newest hundred that are over and found documents that are wrong."""
    return _select(store, f"WHERE finished_at IS NOT NULL AND {' + '.join(DriftKind)} > 0 ORDER BY id")


def last(store: Store) -> dict[str, Any] | None:
    """The newest verification that is over."""
    return next(iter(_select(store, "WHERE finished_at IS NOT NULL ORDER BY id DESC LIMIT 1")), None)


def newest(store: Store) -> list[dict[str, Any]]:
    """Those that are kept, running ones too, newest first."""
    return _select(store, "ORDER BY id DESC LIMIT 100")


def _select(store: Store, condition: str) -> list[dict[str, Any]]:
    rows = store.run(f"SELECT * FROM outbox_verifications {condition}").mappings()
    return [{**row, "entities": json.loads(row["entities"])} for row in rows]
