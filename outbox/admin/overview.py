"""Everything at a glance, for the API, the dashboard and the health page."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from outbox.admin import alerts, shapes
from outbox.admin.causes import CausesCache
from outbox.admin.database import Database
from outbox.admin.poller import DestinationStatus
from outbox.admin.statistics import Counts, IndexAction, Statistics, StatisticsCache
from outbox.mappings import IndexDrift
from outbox.store import causes, figures, jobs, pauses, verifications
from outbox.store.drift import DriftKind
from outbox.store.figures import DAY_MS, MINUTE_MS, WEEK_MS, Backlog, Outcomes
from outbox.store.models import now_ms
from outbox.store.shown import moment
from outbox.store.store import Store
from outbox.store.upkeep import HOUR_MS

HISTORY_MS: Final = 3 * HOUR_MS
FRESH_FOR_MS: Final = 1_000
"""However many look, the tables are asked once a second."""


class OverviewCache:
    """The newest overview, never older than a second.

    `destination`: how the destination was at the last poll, `drift`: which indexes were not as registered, `indexes`:
    those of the entities, by their names. `silent_ms`: a relay without a sign of life for so long counts as gone.
    `hide`: fields whose values are shown to nobody.
    """

    def __init__(
        self,
        database: Database,
        destination: Callable[[], DestinationStatus | None],
        drift: Callable[[], Sequence[IndexDrift]],
        indexes: Mapping[str, str],
        *,
        silent_ms: int,
        hide: Collection[str],
    ) -> None:
        self._database, self._destination, self._drift = database, destination, drift
        self._silent_ms, self._hide = silent_ms, hide
        self._lock = threading.Lock()
        self._statistics = StatisticsCache(indexes)
        self.causes = CausesCache()
        """What rows died of; for whoever needs it apart from an overview, too."""
        self._by_index_and_action: Mapping[IndexAction, Counts] = {}
        self._newest: shapes.Overview | None = None
        self._made_at = 0

    def newest(self) -> shapes.Overview:
        """Raises `DatabaseUnavailable`."""
        with self._lock:
            now = now_ms()
            if self._newest is None or not 0 <= now - self._made_at < FRESH_FOR_MS:
                with self._database.store() as store:
                    statistics = self._statistics.read(store, now)
                    given = statistics, self.causes, self._destination(), self._drift(), now
                    self._newest = overview(store, *given, silent_ms=self._silent_ms, hide=self._hide)
                self._made_at, self._by_index_and_action = now, statistics.by_index_and_action
            return self._newest

    def by_index_and_action(self) -> Mapping[IndexAction, Counts]:
        """What has become of rows since this process began, as of the newest overview."""
        with self._lock:
            return self._by_index_and_action

    def read_statistics(self) -> None:
        """Read the newest minutes. If no one looked for hours, a relay would have summed them up by then."""
        with self._database.store() as store:
            self._statistics.read(store, now_ms())

    def invalidate(self) -> None:
        """After an operator has acted: the next look is a new one."""
        with self._lock:
            self._newest = None


def overview(
    store: Store,
    statistics: Statistics,
    died_of: CausesCache,
    destination: DestinationStatus | None,
    drift: Sequence[IndexDrift],
    now: int,
    *,
    silent_ms: int,
    hide: Collection[str],
) -> shapes.Overview:
    """`silent_ms`: a relay without a sign of life for so long counts as gone. `hide`: fields that nobody is shown."""
    backlog, control, relays = figures.backlog(store, now), store.control(), store.relays()
    paused = pauses.current(store.run)
    running = [relay for relay in relays if now - relay["heartbeat_at"] < silent_ms]
    full_hour = now - now % HOUR_MS
    found = alerts.alerts(
        backlog,
        statistics.outcomes(now - alerts.WINDOW_MS),
        unreachable=_unreachable(destination, running),
        relays=len(running),
        paused=paused,
    )
    by_entity, finished = statistics.by_entity(full_hour - DAY_MS), statistics.finished(now)
    return shapes.Overview(
        as_of=moment(now),
        alerts=[shapes.Alert(name=each.name, text=each.text, remedy=each.remedy) for each in found],
        queue=queue(backlog),
        paused=None
        if control.paused_at is None
        else shapes.PausedSince(since=moment(control.paused_at), by=control.paused_by, reason=control.pause_reason),
        pauses=[
            shapes.PausedPart(
                index=each.index, tenant_id=each.tenant, since=moment(each.since), by=each.by, reason=each.reason
            )
            for each in paused
            if not each.is_of_all
        ],
        destination=None if destination is None else _destination(destination),
        relays=[_relay(each, now, running=each in running) for each in relays],
        periods=shapes.Periods(
            hour=shapes.Period.of(statistics.outcomes(now - HOUR_MS)),
            day=shapes.Period.of(statistics.outcomes(full_hour - DAY_MS)),
            week=shapes.Period.of(statistics.outcomes(full_hour - WEEK_MS)),
        ),
        entities=[
            shapes.EntityPeriod(
                entity=name, **shapes.Period.columns(outcomes), hours=finished[name][0], days=finished[name][1]
            )
            for name, outcomes in sorted(by_entity.items())
        ],
        tenants=[
            shapes.TenantLag(tenant_id=lag.tenant, rows=lag.rows, oldest_seconds=lag.oldest_ms / 1000)
            for lag in figures.lags(store, now)
        ],
        history=_history(store, statistics, now),
        dead_types=[
            shapes.DeadType(index=index, error_type=type_, rows=rows)
            for index, type_, rows in causes.by_type(died_of.read(store, backlog.dead, now))
        ],
        reindexes=[shapes.ReindexJob.of(store, job, hide) for job in jobs.open_jobs(store)],
        verification=None if (last := verifications.last(store)) is None else verified(last),
        mappings=[shapes.DriftedIndex(index=each.index, found=each.summary, remedy=each.remedy) for each in drift],
        database_bytes=store.sizes().used,
    )


def _unreachable(destination: DestinationStatus | None, relays: list[dict[str, Any]]) -> str | None:
    """Why the destination does not answer: this process, or a relay that has paused it."""
    if destination is not None and destination.unreachable is not None:
        return destination.unreachable
    paused = (breaker["reason"] for relay in relays for breaker in relay["breakers"] if breaker["index"] is None)
    return next(paused, None)


def queue(backlog: Backlog) -> shapes.Queue:
    """What waits, as it is shown."""
    return shapes.Queue(
        unfinished=backlog.unfinished,
        fresh=backlog.fresh,
        retrying=backlog.retrying,
        claimed=backlog.claimed,
        dead=backlog.dead,
        oldest_seconds=None if backlog.oldest_ms is None else backlog.oldest_ms / 1000,
    )


def _destination(status: DestinationStatus) -> shapes.DestinationSeen:
    return shapes.DestinationSeen(
        reachable=status.unreachable is None,
        product=status.product,
        version=status.version,
        status=status.status,
        error=status.unreachable,
        as_of=moment(status.at),
    )


def _relay(row: dict[str, Any], now: int, *, running: bool) -> shapes.Relay:
    return shapes.Relay(
        id=row["id"],
        host=row["host"],
        pid=row["pid"],
        version=row["version"],
        started_at=moment(row["started_at"]),
        silent_seconds=max(0, now - row["heartbeat_at"]) / 1000,
        running=running,
        lock=shapes.LockTimes(
            waited_seconds=row["lock_waited_ms"] / 1000,
            held_seconds=row["lock_held_ms"] / 1000,
            longest_seconds=row["lock_longest_ms"] / 1000,
        ),
        breakers=[
            shapes.Breaker(index=each["index"], reason=each["reason"], since=moment(each["since"]))
            for each in row["breakers"]
        ],
    )


def _history(store: Store, statistics: Statistics, now: int) -> list[shapes.Minute]:
    since = now - HISTORY_MS
    depths = {minute: unfinished for minute, unfinished, _ in figures.depths(store, since)}
    finished, none = statistics.history(since), Outcomes()
    first = since - since % MINUTE_MS
    return [
        shapes.Minute(
            at=moment(minute),
            unfinished=depths.get(minute),
            done=finished.get(minute, none).done,
            dead=finished.get(minute, none).dead,
        )
        for minute in range(first, now + 1, MINUTE_MS)
    ]


def verified(row: dict[str, Any]) -> shapes.Verified:
    """A verification that is over."""
    kinds = {str(kind): row[kind] for kind in DriftKind}
    return shapes.Verified(
        finished_at=moment(row["finished_at"]),
        by=row["started_by"],
        entities=row["entities"],
        tenant_id=row["tenant_id"],
        sample=row["sample"],
        documents=row["documents"],
        drift=sum(kinds.values()),
        in_flight=row["in_flight"],
        repaired=row["repaired"],
        error=row["error"],
        **kinds,
    )
