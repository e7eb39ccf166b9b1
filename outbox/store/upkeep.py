"""What maintenance does to the outbox tables: give back what dead relays held, remove and sum up what is old."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from outbox.store import failures, versions
from outbox.store.models import KILLS_ITS_RELAY, POISON, RELAY_DIED, STATISTICS, UNANSWERED, State
from outbox.store.store import LockTimes, Store

HOUR_MS = 3_600_000

COUNTED_BY = "index_name, entity, tenant_id, action"
"""What `outbox_stats` is counted by, besides the minute."""


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


def is_first(store: Store, relay: int, since: int) -> bool:
    """Whether no relay that was started before this one has given a sign of life since that instant: it does what one
    of all has to do. For a moment there can be two."""
    return not any(each["id"] < relay and each["heartbeat_at"] >= since for each in store.relays())


def reap(
    store: Store, now: int, longest_lease_ms: int, *, dead_relays: Iterable[int] = (), lone_after: int = 10
) -> Reaped:
    """Give back the rows whose lease has expired, or whose relay is known to be dead.

    A lease that ends later than the longest that any relay may have was written before the clock was set back.
    A row that was delivered alone and took its relay with it, twice in a row, is dead as poison.
    """
    of_dead = f"claimed_by {store.dialect.among('dead')}"
    given = {
        "now": now,
        "too_far": now + longest_lease_ms,
        "dead": list(dead_relays),
        "lone": lone_after,
        "died": RELAY_DIED,
        "poison": POISON,
        "unanswered": UNANSWERED,
        "kills": KILLS_ITS_RELAY,
    }
    if not _anything_to_reap(store, of_dead, given):
        return Reaped(0, 0)
    with store.write(durable=False):
        store.take_turn(settled=True)  # what is just being recorded is not forsaken
        kills = f"e.state = 'claimed' AND e.{of_dead} AND e.error_type = :died AND e.deliveries >= :lone + 2"
        failures.record(store, kills, given, became=State.DEAD, error_type=POISON, error=KILLS_ITS_RELAY, now=now)
        count_dead(store, kills, given, now)
        poison = store.run(
            "UPDATE outbox_events AS e SET state = 'dead', claim_token = NULL, claimed_by = NULL,"
            " lease_expires_at = NULL, available_at = NULL, finished_at = :now, error_type = :poison, error = :kills,"
            f" error_field = NULL, version = :drawn WHERE {kills}",  # its last request's, or above that
            {**given, "drawn": store.highest_version()},
        ).rowcount
        given_back = store.run(
            "UPDATE outbox_events SET state = 'pending', available_at = :now, claim_token = NULL,"
            f" error_type = CASE WHEN {of_dead} AND (deliveries <= :lone OR"  # else it was not alone
            "  error_type IN (:unanswered, :died, :poison)) THEN :died ELSE :unanswered END, error_field = NULL,"
            " claimed_by = NULL, lease_expires_at = NULL,"
            " error = 'its relay did not finish it in time, or was killed'"
            f" WHERE {_forsaken(of_dead)}",
            given,
        ).rowcount
    return Reaped(given_back, poison)


def _forsaken(of_dead: str) -> str:
    return f"state = 'claimed' AND (lease_expires_at <= :now OR lease_expires_at > :too_far OR {of_dead})"


def _anything_to_reap(store: Store, of_dead: str, given: Mapping[str, Any]) -> bool:
    """A look that takes no lock."""
    leases = f"SELECT 1 FROM outbox_events {store.dialect.indexed('leases')} WHERE {_forsaken(of_dead)}"
    return bool(store.run(f"SELECT EXISTS ({leases})", given).scalar_one())


def finished(store: Store, before: int, after: tuple[int, int], limit: int) -> list[Finished]:
    """Up to `limit` rows that were done before that instant, the longest done first. Takes no lock.

    `after` is the instant and the id of the last one of the page before.
    """
    indexed = store.dialect.indexed
    return [
        Finished(*row)
        for row in store.run(
            "SELECT id, finished_at, index_name, document_id, action <> 'update', EXISTS ("
            f"  SELECT 1 FROM outbox_events AS d {indexed('dead')} WHERE d.state = 'dead'"
            "  AND d.index_name = e.index_name AND d.document_id = e.document_id AND d.id < e.id)"
            f" FROM outbox_events AS e {indexed('done')}"
            " WHERE state = 'done' AND finished_at < :before AND (finished_at, id) > (:finished_at, :id)"
            " ORDER BY finished_at, id LIMIT :limit",
            before=before,
            finished_at=after[0],
            id=after[1],
            limit=limit,
        )
    ]


def remove_finished(store: Store, ids: Sequence[int]) -> int:
    """Remove rows that are done. Returns their number."""
    with store.write(durable=False):
        return versions.remove(store, ids)


_DIED = "state = 'dead' AND coalesce(finished_at, created_at) < :before"


def died(store: Store, before: int) -> list[int]:
    """The ids of the rows that died before that instant. Takes no lock, and looks at each dead row."""
    dead = store.dialect.indexed("dead")
    return [row[0] for row in store.run(f"SELECT id FROM outbox_events {dead} WHERE {_DIED}", before=before)]


def remove_died(store: Store, ids: Sequence[int], before: int) -> int:
    """Remove those of the rows that are still dead since before that instant. Returns their number."""
    with store.write(durable=False, alone=True):  # nobody retries one of them meanwhile
        still = f"SELECT id FROM outbox_events WHERE {_DIED} AND id {store.dialect.among('ids')}"
        return versions.remove(store, [row[0] for row in store.run(still, ids=ids, before=before)])


def prune_stats(store: Store, before: int) -> int:
    """Remove the statistics of the oldest minute, if it lies before that instant. Returns the number of rows."""
    with store.write(durable=False):
        store.run("DELETE FROM outbox_depths WHERE minute < :before", before=before)
        return store.run(
            "DELETE FROM outbox_stats WHERE minute = (SELECT min(minute) FROM outbox_stats) AND minute < :before",
            before=before,
        ).rowcount


def add_to_stats(counters: Sequence[str]) -> str:
    """The end of an INSERT into `outbox_stats`: what is there already for the same minute is added to."""
    added = ", ".join(f"{name} = outbox_stats.{name} + excluded.{name}" for name in counters)
    return f"ON CONFLICT (minute, {COUNTED_BY}) DO UPDATE SET {added}"


def count_dead(store: Store, condition: str, given: Mapping[str, Any], now: int) -> None:
    """Add the rows `e` for which the condition holds to the dead of this minute. Inside `write`."""
    store.run(
        f"INSERT INTO outbox_stats (minute, {COUNTED_BY}, dead) SELECT :minute, e.index_name, coalesce(e.entity, ''),"
        f" coalesce(e.tenant_id, ''), e.action, count(*) FROM outbox_events AS e WHERE {condition}"
        f" GROUP BY 2, 3, 4, 5 {add_to_stats(('dead',))}",
        {**given, "minute": now - now % 60_000},
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
        before=before,
        hour=HOUR_MS,
    ).scalar_one_or_none()
    if minute is None:
        return 0
    with store.write(durable=False):
        store.run(
            f"INSERT INTO outbox_stats (minute, {COUNTED_BY}, {', '.join(STATISTICS)})"
            f" SELECT minute - minute % :hour, {COUNTED_BY}, {', '.join(STATISTICS)} FROM outbox_stats"
            f" WHERE minute = :minute {add_to_stats(STATISTICS)}",
            hour=HOUR_MS,
            minute=minute,
        )
        return store.run("DELETE FROM outbox_stats WHERE minute = :minute", minute=minute).rowcount


def note_depth(store: Store, now: int) -> None:
    """Note how full the outbox is; the most of a minute stays."""
    unfinished, oldest = store.unfinished(), store.oldest_unfinished()
    with store.write(durable=False):
        highest = store.dialect.greatest
        store.run(
            "INSERT INTO outbox_depths (minute, unfinished, oldest_ms) VALUES (:minute, :unfinished, :oldest)"
            f" ON CONFLICT (minute) DO UPDATE SET"
            f" unfinished = {highest('outbox_depths.unfinished', 'excluded.unfinished')},"
            f" oldest_ms = {highest('outbox_depths.oldest_ms', 'excluded.oldest_ms')}",
            minute=now - now % 60_000,
            unfinished=unfinished,
            oldest=0 if oldest is None else max(0, now - oldest),
        )


def heartbeat(store: Store, relay: int, breakers: Sequence[Mapping[str, Any]], lock: LockTimes, now: int) -> bool:
    """Say that a relay is alive, what it has paused, and what it asked of the write lock since it started.

    Returns False if it is not on the list: it could not be heard for so long that others took it for dead.
    """
    with store.write(durable=False):
        updated = store.run(
            "UPDATE outbox_relays SET heartbeat_at = :now, breakers = :breakers, lock_waited_ms = :waited,"
            " lock_held_ms = :held, lock_longest_ms = :longest WHERE id = :relay",
            now=now,
            breakers=json.dumps(list(breakers)),
            waited=round(lock.waited_ms),
            held=round(lock.held_ms),
            longest=round(lock.longest_ms),
            relay=relay,
        ).rowcount
    return bool(updated)


def checkpoint(store: Store) -> None:
    """Tidy up what the database leaves to its users, such as a log that has grown."""
    store.dialect.checkpoint(store.run, store.connection.engine)
