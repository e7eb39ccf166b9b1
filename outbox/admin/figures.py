"""Every SQL statement of what the admin server shows. None walks through finished rows, however many there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from outbox.jobs import Job, Jobs
from outbox.models import COUNTERS, FRESH, HELD, LATENCY_BOUNDS_MS, TENANT, WAITING, State
from outbox.store import HOUR_MS

MINUTE_MS: Final = 60_000
DAY_MS: Final = 24 * HOUR_MS
WEEK_MS: Final = 7 * DAY_MS
MOST_TENANTS: Final = 50
MOST_HELD: Final = 10_000

_LATENCIES = tuple(f"latency_le_{bound}ms" for bound in LATENCY_BOUNDS_MS)


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits now. Ages in milliseconds."""

    fresh: int
    retrying: int
    claimed: int
    dead: int
    oldest_ms: int | None

    @property
    def unfinished(self) -> int:
        """Rows that are pending or claimed: the depth of the queue."""
        return self.fresh + self.retrying + self.claimed


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of rows in a span of time. `latency`: rows by the bounds of `LATENCY_BOUNDS_MS`, not summed up."""

    done: int = 0
    dead: int = 0
    retried: int = 0
    superseded: int = 0
    lost_claims: int = 0
    latency_sum_ms: int = 0
    latency: tuple[int, ...] = (0,) * len(LATENCY_BOUNDS_MS)

    def plus(self, other: Outcomes, sign: int) -> Outcomes:
        """Together with the others; or, with the sign -1, without them."""
        counters = {name: getattr(self, name) + sign * getattr(other, name) for name in COUNTERS}
        pairs = zip(self.latency, other.latency, strict=True)
        return Outcomes(**counters, latency=tuple(mine + sign * theirs for mine, theirs in pairs))

    @property
    def finished(self) -> int:
        return self.done + self.dead

    @property
    def failure_rate(self) -> float | None:
        """The part of the finished rows that died; None when none finished."""
        return self.dead / self.finished if self.finished else None

    @property
    def average_ms(self) -> float | None:
        """From the commit of a row until its end was recorded."""
        return self.latency_sum_ms / self.done if self.done else None

    def quantile_ms(self, part: float) -> float | None:
        """Within its bucket as if spread evenly, as Prometheus does; at most the last bound."""
        if not self.done:
            return None
        wanted, seen, lower = part * self.done, 0, 0
        for bound, number in zip(LATENCY_BOUNDS_MS, self.latency, strict=True):
            if number and seen + number >= wanted:
                return lower + (bound - lower) * (wanted - seen) / number
            seen, lower = seen + number, bound
        return float(LATENCY_BOUNDS_MS[-1])


@dataclass(frozen=True, slots=True)
class Lag:
    """What waits of one tenant. None: rows without a tenant."""

    tenant: str | None
    rows: int
    oldest_ms: int


class Figures(Jobs):
    """The outbox tables with what operators look at. For one thread at a time, as the store."""

    def backlog(self, now: int) -> Backlog:
        fresh, retrying, claimed, dead = self._run(
            f"SELECT (SELECT count(*) FROM outbox_events INDEXED BY ix_outbox_events_fresh WHERE {FRESH}),"
            f" (SELECT count(*) FROM outbox_events INDEXED BY ix_outbox_events_waiting WHERE {WAITING}),"
            " (SELECT count(*) FROM outbox_events INDEXED BY ix_outbox_events_leases WHERE state = 'claimed'),"
            " (SELECT count(*) FROM outbox_events INDEXED BY ix_outbox_events_dead WHERE state = 'dead')"
        ).one()
        oldest = self.oldest_unfinished()
        return Backlog(fresh, retrying, claimed, dead, None if oldest is None else max(0, now - oldest))

    def tenant_backlog(self, tenant: str, now: int) -> Backlog:
        """The same of one tenant."""
        mine = f"{TENANT} = :tenant"
        fresh, first, retrying, claimed, held_since, dead = self._run(
            "SELECT fresh.*, held.*, (SELECT count(*) FROM outbox_events INDEXED BY ix_outbox_events_dead"
            f" WHERE state = 'dead' AND {mine})"
            f" FROM (SELECT count(*), min(id) FROM outbox_events INDEXED BY ix_outbox_events_fresh"
            f" WHERE {FRESH} AND {mine}) AS fresh,"
            " (SELECT coalesce(sum(state = 'pending'), 0), coalesce(sum(state = 'claimed'), 0), min(created_at)"
            f" FROM outbox_events INDEXED BY ix_outbox_events_held WHERE ({HELD}) AND {mine}) AS held",
            {"tenant": tenant},
        ).one()
        written = self._run("SELECT created_at FROM outbox_events WHERE id = ?", first).scalar_one_or_none()
        oldest = min((since for since in (written, held_since) if since is not None), default=None)
        return Backlog(fresh, retrying, claimed, dead, None if oldest is None else max(0, now - oldest))

    def outcomes(self, since: int, tenant: str | None = None) -> Outcomes:
        """Of all rows (of one tenant) from the minute of that instant on."""
        return self._outcomes((), since, tenant=tenant)[()]

    def outcomes_by_entity(self, since: int) -> dict[str, Outcomes]:
        """By entity, or by index where the rows name no entity."""
        found = self._outcomes(("iif(entity = '', index_name, entity)",), since)
        return {key[0]: outcomes for key, outcomes in found.items()}

    def outcomes_by_index(self, since: int, before: int | None) -> dict[tuple[str, ...], Outcomes]:
        """By index and action, of the minutes from `since` to `before`."""
        return self._outcomes(("index_name", "action"), since, before)

    def _outcomes(
        self, keys: tuple[str, ...], since: int, before: int | None = None, tenant: str | None = None
    ) -> dict[tuple[str, ...], Outcomes]:
        sums = [f"coalesce(sum({name}), 0)" for name in (*COUNTERS, *_LATENCIES)]
        found = self._run(
            f"SELECT {', '.join([*keys, *sums])} FROM outbox_stats"
            " WHERE minute >= :since AND (:before IS NULL OR minute < :before)"
            " AND (:tenant IS NULL OR tenant_id = :tenant)"
            f" {'GROUP BY ' if keys else ''}{', '.join(keys)}",
            {"since": since - since % MINUTE_MS, "before": before, "tenant": tenant},
        )
        outcomes = {}
        for row in found:
            key, counted = tuple(row[: len(keys)]), row[len(keys) :]
            counters = dict(zip(COUNTERS, counted, strict=False))
            outcomes[key] = Outcomes(**counters, latency=tuple(counted[len(COUNTERS) :]))
        return outcomes

    def history(self, since: int) -> list[tuple[int, int, int]]:
        """(minute, done, dead) of the minutes in which rows finished."""
        return [
            (row[0], row[1], row[2])
            for row in self._run(
                "SELECT minute, sum(done), sum(dead) FROM outbox_stats WHERE minute >= ? GROUP BY minute",
                since - since % MINUTE_MS,
            )
        ]

    def depths(self, since: int) -> list[tuple[int, int, int]]:
        """(minute, unfinished rows, age of the oldest) of the minutes in which somebody looked."""
        return [
            (row[0], row[1], row[2])
            for row in self._run(
                "SELECT minute, unfinished, oldest_ms FROM outbox_depths WHERE minute >= ? ORDER BY minute",
                since - since % MINUTE_MS,
            )
        ]

    def lags(self, now: int) -> list[Lag]:
        """Tenants that wait, the one that waits longest first; at most 50."""
        rows: dict[str, int] = {}
        oldest: dict[str, int] = {}

        def note(tenant: str, number: int, since: int) -> None:
            rows[tenant] = rows.get(tenant, 0) + number
            oldest[tenant] = min(oldest.get(tenant, since), since)

        for index_name, tenant in self._lanes((), None, ())[: 2 * MOST_TENANTS]:
            number, since = self._run(
                "SELECT rows, (SELECT created_at FROM outbox_events WHERE id = oldest) FROM (SELECT count(*) AS rows,"
                f" min(id) AS oldest FROM outbox_events INDEXED BY ix_outbox_events_fresh WHERE {FRESH}"
                f" AND index_name = ? AND {TENANT} = ?)",
                index_name,
                tenant,
            ).one()
            if number:
                note(tenant, number, since)
        for tenant, number, since in self._run(
            f"SELECT tenant, count(*), min(created_at) FROM (SELECT {TENANT} AS tenant, created_at FROM outbox_events"
            f" INDEXED BY ix_outbox_events_held WHERE {HELD} LIMIT {MOST_HELD}) GROUP BY tenant"
        ):
            note(tenant, number, since)
        found = [Lag(tenant or None, rows[tenant], max(0, now - oldest[tenant])) for tenant in rows]
        return sorted(found, key=lambda lag: -lag.oldest_ms)[:MOST_TENANTS]

    def page(
        self,
        *,
        state: State | None = None,
        index: str | None = None,
        tenant: str | None = None,
        document: str | None = None,
        error_type: str | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> list[dict[str, Any]]:
        """Rows without their documents, newest first, narrowed by what is given; `before`: only with a lower id."""
        conditions, parameters = _narrowed(
            state=state, index_name=index, tenant_id=tenant, document_id=document, error_type=error_type
        )
        parameters["limit"] = limit
        if before is not None:
            conditions.append("id < :before")
            parameters["before"] = before
        # Else SQLite walks from the newest row on, past all that are done, to find one that is not.
        if state in _FEW:
            conditions.append(f"id IN ({_FEW[state]})")
        rows = self._run(
            f"SELECT * FROM outbox_events WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT :limit", parameters
        )
        return [dict(row) for row in rows.mappings()]

    def dead_number(
        self,
        *,
        index: str | None = None,
        tenant: str | None = None,
        document: str | None = None,
        error_type: str | None = None,
    ) -> int:
        """How many rows are dead, narrowed by what is given."""
        conditions, parameters = _narrowed(
            index_name=index, tenant_id=tenant, document_id=document, error_type=error_type
        )
        return int(
            self._run(
                "SELECT count(*) FROM outbox_events INDEXED BY ix_outbox_events_dead"
                f" WHERE state = 'dead' AND {' AND '.join(conditions)}",
                parameters,
            ).scalar_one()
        )

    def dead_types(self) -> Sequence[tuple[str, str, int]]:
        """(index, type of error, number) of the dead rows, most first."""
        found = self._run(
            "SELECT index_name, coalesce(error_type, ''), count(*) FROM outbox_events INDEXED BY ix_outbox_events_dead"
            " WHERE state = 'dead' GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 20"
        )
        return [(row[0], row[1], row[2]) for row in found]

    def newest_jobs(self, limit: int) -> list[Job]:
        """Rebuilds of indexes, newest first."""
        return self.jobs("id > (SELECT max(id) FROM outbox_reindex_jobs) - ?", limit)[::-1]

    def file_bytes(self) -> int:
        """Size of the database file, without its write-ahead log."""
        return int(self._run("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()").scalar_one())


def _narrowed(**given: str | None) -> tuple[list[str], dict[str, Any]]:
    """Conditions for the columns that are given, and their parameters."""
    parameters: dict[str, Any] = {column: str(value) for column, value in given.items() if value is not None}
    return ["1", *(f"{column} = :{column}" for column in parameters)], parameters


_FEW = {
    State.PENDING: f"SELECT id FROM outbox_events INDEXED BY ix_outbox_events_fresh WHERE {FRESH}"
    f" UNION ALL SELECT id FROM outbox_events INDEXED BY ix_outbox_events_waiting WHERE {WAITING}",
    State.CLAIMED: "SELECT id FROM outbox_events INDEXED BY ix_outbox_events_leases WHERE state = 'claimed'",
    State.DEAD: "SELECT id FROM outbox_events INDEXED BY ix_outbox_events_dead WHERE state = 'dead'",
}
