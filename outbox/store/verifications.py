"""What a verification asks of the outbox tables: documents on their way, versions for a repair, what it found."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from outbox.store.models import EPOCH_STEP, FOUND, FRESH, HELD
from outbox.store.store import Store, printable


def note_unfinished(store: Store) -> int:
    """Note which documents have unfinished rows, for `moving`. Returns the highest id issued before."""
    store.run(
        "CREATE TEMP TABLE IF NOT EXISTS unfinished ("
        " index_name TEXT, document_id TEXT, PRIMARY KEY (index_name, document_id)) WITHOUT ROWID"
    )
    store.run("DELETE FROM temp.unfinished")
    before = store.highest_id()
    store.run(
        "INSERT OR IGNORE INTO temp.unfinished"
        f" SELECT index_name, document_id FROM outbox_events INDEXED BY ix_outbox_events_fresh WHERE {FRESH}"
        " UNION ALL"
        f" SELECT index_name, document_id FROM outbox_events INDEXED BY ix_outbox_events_held WHERE {HELD}"
    )
    return before


def moving(store: Store, places: Iterable[tuple[str, str]], since: int) -> set[tuple[str, str]]:
    """Those of the documents that had an unfinished row at `note_unfinished`, or got one after the id `since`.

    The outbox has changed no other document since then.
    """
    found = store.run(
        """
        WITH place (index_name, document_id) AS MATERIALIZED (
            SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:places))
        SELECT index_name, document_id FROM place JOIN temp.unfinished USING (index_name, document_id)
        UNION SELECT index_name, document_id FROM outbox_events
        WHERE id > :since AND (index_name, document_id) IN (SELECT index_name, document_id FROM place)
        """,
        {"places": json.dumps(list(places)), "since": since},
    )
    return {(row[0], row[1]) for row in found}


def raise_above(store: Store, found: int, now: int) -> int | None:
    """Have all further rows carry versions above `found`, which an index holds. Returns the new epoch, if any.

    Within this epoch the next ids are made higher; a version of a later one, or so high that few ids would be
    left below it, takes an epoch of its own.
    """
    epoch, id_ = divmod(found, EPOCH_STEP)
    if epoch < store.control().epoch:
        return None
    if epoch > store.control().epoch or id_ > EPOCH_STEP // 2:
        with store.write(durable=True):
            return store.raise_epoch(epoch, now)
    with store.write(durable=True):
        store.raise_ids(id_)
    return None


def refresh(store: Store, documents: Sequence[tuple[str, str, str | None, str]], now: int) -> None:
    """Write a `refresh` row for each document: index, id, tenant and entity."""
    with store.write(durable=True):
        store.run(
            "INSERT INTO outbox_events"
            " (action, index_name, document_id, tenant_id, entity, document_bytes, created_at)"
            " SELECT 'refresh', json_extract(value, '$[0]'), json_extract(value, '$[1]'),"
            " json_extract(value, '$[2]'), json_extract(value, '$[3]'), 0, ? FROM json_each(?)",
            now,
            json.dumps(documents),
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
    with store.write(durable=False):
        store.run("DELETE FROM outbox_verifications WHERE id <= (SELECT max(id) FROM outbox_verifications) - 99")
        begun = store.run(
            "INSERT INTO outbox_verifications (started_at, started_by, scheduled, entities, tenant_id, sample)"
            " SELECT :now, :by, :since IS NOT NULL, :entities, :tenant, :sample"
            " WHERE :since IS NULL OR NOT EXISTS ("
            "  SELECT 1 FROM outbox_verifications WHERE scheduled AND started_at > :since)",
            {
                "now": now,
                "by": by,
                "since": unless_scheduled_since,
                "entities": json.dumps(list(entities)),
                "tenant": tenant_id,
                "sample": sample,
            },
        )
        return begun.lastrowid if begun.rowcount else None


def finish(store: Store, id_: int, found: Mapping[str, int], error: str | None, now: int) -> None:
    """Note what a verification has found, by the names of `models.FOUND`; or why it has not come to its end."""
    with store.write(durable=False):
        store.run(
            f"UPDATE outbox_verifications SET finished_at = :now, error = :error,"
            f" {', '.join(f'{name} = :{name}' for name in FOUND)} WHERE id = :id",
            {"now": now, "error": printable(error), "id": id_, **found},
        )


def last(store: Store) -> dict[str, Any] | None:
    """The newest verification that is over."""
    rows = store.run(
        "SELECT * FROM outbox_verifications WHERE finished_at IS NOT NULL ORDER BY id DESC LIMIT 1"
    ).mappings()
    return next(({**row, "entities": json.loads(row["entities"])} for row in rows), None)
