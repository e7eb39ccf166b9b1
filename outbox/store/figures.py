"""Every SQL statement of what the admin server shows. None walks through finished rows, however many there are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from outbox.store import claims
from outbox.store.malformed import MalformedRows
from outbox.store.models import COUNTERS, FRESH, HELD, LATENCY_BOUNDS_MS, STATISTICS, TENANT, WAITING, State
from outbox.store.store import Store
from outbox.store.upkeep import HOUR_MS

MINUTE_MS: Final = 60_000
DAY_MS: Final = 24 * HOUR_MS
WEEK_MS: Final = 7 * DAY_MS
MOST_TENANTS: Final = 50
MOST_HELD: Final = 10_000
MOST_LOOKED_AT: Final = 100_000
MOST_ID: Final = 10**13

_SUMS = ", ".join(f"coalesce(sum({name}), 0)" for name in STATISTICS)


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

    @classmethod
    def of(cls, counts: Sequence[int]) -> Outcomes:
        """Of sums in the order of `STATISTICS`."""
        counters = dict(zip(COUNTERS, counts, strict=False))
        return cls(**counters, latency=tuple(counts[len(COUNTERS) :]))

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


class Statistic(NamedTuple):
    """What became of rows of an index in a minute, or in an hour. `counts`: in the order of `STATISTICS`."""

    minute: int
    index_name: str
    action: str
    name: str  # of the entity, or of the index where the rows name none
    counts: tuple[int, ...]


class Rows(NamedTuple):
    """Rows, newest first. `older`: the id below which to look for more; None: there are no more."""

    rows: list[dict[str, Any]]
    older: int | None


@dataclass(frozen=True, slots=True)
class Lag:
    """What waits of one tenant. None: rows without a tenant."""

    tenant: str | None
    rows: int
    oldest_ms: int


class Figures(Store):
    """The outbox tables with what operators look at. For one thread at a time, as the store."""

    def backlog(self, now: int) -> Backlog:
        fresh, retrying, claimed, dead = self.counted("fresh", "waiting", "leases", "dead")
        oldest = self.oldest_unfinished()
        return Backlog(fresh, retrying, claimed, dead, None if oldest is None else max(0, now - oldest))

    def tenant_backlog(self, tenant: str, now: int) -> Backlog:
        """The same of one tenant."""
        mine = f"{TENANT} = :tenant"
        fresh, first, retrying, claimed, held_since, dead = self.run(
            "SELECT fresh.*, held.*, (SELECT count(*) FROM outbox_events INDEXED BY ix_outbox_events_dead"
            f" WHERE state = 'dead' AND {mine})"
            f" FROM (SELECT count(*), min(id) FROM outbox_events INDEXED BY ix_outbox_events_fresh"
            f" WHERE {FRESH} AND {mine}) AS fresh,"
            " (SELECT coalesce(sum(state = 'pending'), 0), coalesce(sum(state = 'claimed'), 0), min(created_at)"
            f" FROM outbox_events INDEXED BY ix_outbox_events_held WHERE ({HELD}) AND {mine}) AS held",
            {"tenant": tenant},
        ).one()
        written = self.run("SELECT created_at FROM outbox_events WHERE id = ?", first).scalar_one_or_none()
        oldest = min((since for since in (written, held_since) if since is not None), default=None)
        return Backlog(fresh, retrying, claimed, dead, None if oldest is None else max(0, now - oldest))

    def statistics(self, since: int) -> list[Statistic]:
        """Sums of the tenants, from that minute on."""
        found = self.run(
            f"SELECT minute, index_name, action, iif(entity = '', index_name, entity), {_SUMS} FROM outbox_stats"
            " WHERE minute >= ? GROUP BY minute, index_name, entity, action",
            since,
        )
        return [Statistic(row[0], row[1], row[2], row[3], tuple(row[4:])) for row in found]

    def outcomes_of_tenant(self, tenant: str, since: int) -> Outcomes:
        """Of all rows of a tenant from the minute of that instant on, or from its hour where hours are summed up."""
        found = self.run(
            f"SELECT {_SUMS} FROM outbox_stats WHERE minute >= ? AND tenant_id = ?", since - since % MINUTE_MS, tenant
        ).one()
        return Outcomes.of(tuple(found))

    def depths(self, since: int) -> list[tuple[int, int, int]]:
        """(minute, unfinished rows, age of the oldest) of the minutes in which somebody looked."""
        return [
            (row[0], row[1], row[2])
            for row in self.run(
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

        try:
            lanes = claims.fresh_lanes(self)[: 2 * MOST_TENANTS]
        except MalformedRows:  # the next claim of a relay ends them
            lanes = []
        mine = f"{FRESH} AND index_name = json_extract(value, '$[0]') AND {TENANT} = json_extract(value, '$[1]')"
        for tenant, number, since in self.run(
            "SELECT tenant, rows, created_at FROM (SELECT json_extract(value, '$[1]') AS tenant,"
            f" (SELECT count(*) FROM outbox_events INDEXED BY ix_outbox_events_fresh WHERE {mine}) AS rows,"
            f" (SELECT min(id) FROM outbox_events INDEXED BY ix_outbox_events_fresh WHERE {mine}) AS oldest"
            " FROM json_each(?)) JOIN outbox_events ON id = oldest",
            json.dumps(lanes),
        ):
            note(tenant, number, since)
        for tenant, number, since in self.run(
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
    ) -> Rows:
        """Rows without their documents, newest first, narrowed by what is given; `before`: only with a lower id.

        Looks at `MOST_LOOKED_AT` rows at most, and then says where to go on: it may find fewer than there are, or none.
        Of a state that few rows are in it finds all.
        """
        conditions, parameters = _narrowed(
            state=state, index_name=index, tenant_id=tenant, document_id=document, error_type=error_type
        )
        parameters |= {"limit": limit + 1, "before": MOST_ID if before is None else before, "last": 0}
        if state in _FEW and self._are_few(state):
            # Else SQLite walks from the newest row on, past all that are done, to find one that is not.
            conditions.append(f"id IN ({_FEW[state]})")
        elif len(conditions) > 1:
            parameters["last"] = self.run(
                "SELECT coalesce((SELECT id FROM outbox_events WHERE id < ? ORDER BY id DESC LIMIT 1 OFFSET ?), 0)",
                parameters["before"],
                MOST_LOOKED_AT - 1,
            ).scalar_one()
        found = self.run(
            f"SELECT * FROM outbox_events WHERE id < :before AND id >= :last AND {' AND '.join(conditions)}"
            " ORDER BY id DESC LIMIT :limit",
            parameters,
        )
        rows = [dict(row) for row in found.mappings()]
        if len(rows) > limit:
            return Rows(rows[:limit], rows[limit - 1]["id"])
        return Rows(rows, parameters["last"] or None)

    def _are_few(self, state: State) -> bool:
        number: int = self.run(f"SELECT count(*) FROM ({_FEW[state]} LIMIT {MOST_LOOKED_AT})").scalar_one()
        return number < MOST_LOOKED_AT

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
            self.run(
                "SELECT count(*) FROM outbox_events INDEXED BY ix_outbox_events_dead"
                f" WHERE state = 'dead' AND {' AND '.join(conditions)}",
                parameters,
            ).scalar_one()
        )

    def dead_types(self) -> Sequence[tuple[str, str, int]]:
        """(index, type of error, number) of the dead rows, most first; looks at 10,000 of them at most."""
        found = self.run(
            "SELECT index_name, type, count(*) FROM (SELECT index_name, coalesce(error_type, '') AS type"
            f" FROM outbox_events INDEXED BY ix_outbox_events_dead WHERE state = 'dead' LIMIT {MOST_HELD})"
            " GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 20"
        )
        return [(row[0], row[1], row[2]) for row in found]


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
