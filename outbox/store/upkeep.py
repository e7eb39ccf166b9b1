"""What maintenance does to the outbox tables: give back what dead relays held, remove and sum up what is old."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from outbox.store.models import KILLS_ITS_RELAY, POISON, RELAY_DIED, STATISTICS, UNANSWERED
from outbox.store.store import Store

HOUR_MS = 3_600_000
LARGE_WAL_BYTES = 160_000_000  # four times the log at which a writer moves it into the database by itself
EMPTY_WAL_WITHIN_MS = 50

_LANE = "index_name, entity, tenant_id, action"


class Finished(NamedTuple):
    """A row that is done. `whole`: no partial update. `behind_dead`: an earlier row of its document is dead."""

    id: int
    finished_at: int
    index_name: str
    document_id: str
    whole: bool
    behind_dead: bool

    @property
    def document(self) -> tuple[str, str]:
        return self.index_name, self.document_id


class Reaped(NamedTuple):
    """What became of rows whose relay did not finish them."""

    given_back: int
    dead: int


def reap(
    store: Store, now: int, longest_lease_ms: int, *, dead_relays: Iterable[int] = (), lone_after: int = 10
) -> Reaped:
    """Give back the rows whose lease has expired, or whose relay is known to be dead.

    A lease that ends later than the longest that any relay may have was written before the clock was set back.
    A row that was delivered alone and took its relay with it, twice in a row, is dead as poison.
    """
    with store.write(durable=False):
        buried = store.run(
            "UPDATE outbox_events SET state = 'dead', claim_token = NULL, claimed_by = NULL,"
            " lease_expires_at = NULL, available_at = NULL, finished_at = :now, error_type = :poison,"
            " error = :error"
            " WHERE state = 'claimed' AND claimed_by IN (SELECT value FROM json_each(:dead))"
            " AND error_type = :died AND deliveries >= :lone + 2",
            {
                "now": now,
                "poison": POISON,
                "error": KILLS_ITS_RELAY,
                "dead": json.dumps(list(dead_relays)),
                "died": RELAY_DIED,
                "lone": lone_after,
            },
        ).rowcount
        given_back = store.run(
            "UPDATE outbox_events SET state = 'pending', available_at = :now, claim_token = NULL,"
            " error_type = iif(claimed_by IN (SELECT value FROM json_each(:dead)) AND (deliveries <= :lone"
            " OR error_type IN (:unanswered, :died, :poison)), :died, :unanswered),"  # else it was not alone
            " claimed_by = NULL, lease_expires_at = NULL,"
            " error = 'its relay did not finish it in time, or was killed'"
            " WHERE state = 'claimed' AND (lease_expires_at <= :now OR lease_expires_at > :too_far"
            " OR claimed_by IN (SELECT value FROM json_each(:dead)))",
            {
                "now": now,
                "too_far": now + longest_lease_ms,
                "dead": json.dumps(list(dead_relays)),
                "lone": lone_after,
                "died": RELAY_DIED,
                "poison": POISON,
                "unanswered": UNANSWERED,
            },
        ).rowcount
    return Reaped(int(given_back), int(buried))


def finished(store: Store, before: int, after: tuple[int, int], limit: int) -> list[Finished]:
    """Up to `limit` rows that were done before that instant, the longest done first. Takes no lock.

    `after` is the instant and the id of the last one of the page before.
    """
    return [
        Finished(*row)
        for row in store.run(
            "SELECT id, finished_at, index_name, document_id, action <> 'update', EXISTS ("
            "  SELECT 1 FROM outbox_events AS d INDEXED BY ix_outbox_events_dead WHERE d.state = 'dead'"
            "  AND d.index_name = e.index_name AND d.document_id = e.document_id AND d.id < e.id)"
            " FROM outbox_events AS e INDEXED BY ix_outbox_events_done"
            " WHERE state = 'done' AND finished_at < ? AND (finished_at, id) > (?, ?)"
            " ORDER BY finished_at, id LIMIT ?",
            before,
            *after,
            limit,
        ).fetchall()
    ]


def remove_finished(store: Store, ids: Sequence[int]) -> int:
    """Remove rows that are done. Returns their number."""
    with store.write(durable=False):
        return store.remove(ids)


def prune_stats(store: Store, before: int) -> int:
    """Remove the statistics of the oldest minute, if it lies before that instant. Returns the number of rows."""
    with store.write(durable=False):
        store.run("DELETE FROM outbox_depths WHERE minute < ?", before)
        return int(
            store.run(
                "DELETE FROM outbox_stats WHERE minute = (SELECT min(minute) FROM outbox_stats) AND minute < ?",
                before,
            ).rowcount
        )


def compact_stats(store: Store, before: int) -> int:
    """Add one minute to the sums of its hour, if that was over before that instant. Returns the number of rows.

    0: of all those hours there are sums only.
    """
    minute = store.run(
        # Hours have few minutes and many rows: this looks at one row of each.
        "WITH RECURSIVE found (minute) AS ("
        "  SELECT max(minute) FROM outbox_stats WHERE minute < :before - :before % :hour"
        "  UNION ALL SELECT (SELECT max(minute) FROM outbox_stats WHERE minute < found.minute) FROM found"
        "  WHERE found.minute IS NOT NULL)"
        " SELECT minute FROM found WHERE minute % :hour <> 0 LIMIT 1",
        {"before": before, "hour": HOUR_MS},
    ).scalar()
    if minute is None:
        return 0
    with store.write(durable=False):
        store.run(
            f"INSERT INTO outbox_stats (minute, {_LANE}, {', '.join(STATISTICS)})"
            f" SELECT minute - minute % :hour, {_LANE}, {', '.join(STATISTICS)} FROM outbox_stats"
            " WHERE minute = :minute"
            f" ON CONFLICT DO UPDATE SET {', '.join(f'{name} = {name} + excluded.{name}' for name in STATISTICS)}",
            {"hour": HOUR_MS, "minute": minute},
        )
        return int(store.run("DELETE FROM outbox_stats WHERE minute = ?", minute).rowcount)


def note_depth(store: Store, now: int) -> None:
    """Note how full the outbox is; the most of a minute stays."""
    unfinished, oldest = store.unfinished(), store.oldest_unfinished()
    with store.write(durable=False):
        store.run(
            "INSERT INTO outbox_depths (minute, unfinished, oldest_ms) VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET unfinished = max(unfinished, excluded.unfinished),"
            " oldest_ms = max(oldest_ms, excluded.oldest_ms)",
            now - now % 60_000,
            unfinished,
            0 if oldest is None else max(0, now - oldest),
        )


def checkpoint(store: Store) -> None:
    """Move the write-ahead log into the database, as far as no reader is in the way.

    The file of the log is used anew from its beginning only when no reader looks into it at that moment, which
    under steady traffic may never be. So a large one is emptied, if all readers let go of it soon enough; writers
    wait that long.
    """
    _, frames, moved = store.run("PRAGMA wal_checkpoint(PASSIVE)").one()
    if moved < frames or store.wal_bytes() < LARGE_WAL_BYTES:
        return
    patience = store.run("PRAGMA busy_timeout").scalar_one()
    store.run(f"PRAGMA busy_timeout = {EMPTY_WAL_WITHIN_MS}")
    try:
        store.run("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        store.run(f"PRAGMA busy_timeout = {patience}")
