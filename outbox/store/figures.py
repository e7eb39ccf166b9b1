"""What operators look at: every SQL statement of what the dashboard, the admin API and the metrics show.

None walks through all finished rows, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Unpack

from outbox.documents import same_tenant
from outbox.store import causes, due, models, shown
from outbox.store.causes import Narrowing
from outbox.store.malformed import MalformedRows
from outbox.store.models import COUNTERS, LATENCY_BOUNDS_MS, STATISTICS, State
from outbox.store.store import Store, narrowed, of_tenants
from outbox.store.upkeep import HOUR_MS

MINUTE_MS: Final = 60_000
DAY_MS: Final = 24 * HOUR_MS
WEEK_MS: Final = 7 * DAY_MS
MOST_TENANTS: Final = 50
MOST_HELD: Final = 10_000
MOST_LOOKED_AT: Final = 100_000
MOST_WALKED: Final = 20_000
MOST_ID: Final = 10**13

# As whole numbers: PostgreSQL adds them up to a NUMERIC.
SUMS = ", ".join(f"CAST(coalesce(sum({name}), 0) AS BIGINT)" for name in STATISTICS)


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
        wanted, below, lower = part * self.done, 0, 0
        for bound, number in zip(LATENCY_BOUNDS_MS, self.latency, strict=True):
            if number and below + number >= wanted:
                return lower + (bound - lower) * (wanted - below) / number
            below, lower = below + number, bound
        return float(LATENCY_BOUNDS_MS[-1])


class Statistic(NamedTuple):
    """What became of rows of an index in a minute, or in an hour. `counts`: in the order of `STATISTICS`."""

    minute: int
    index_name: str
    action: str
    entity: str  # empty: the rows name none
    counts: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the entity, or of the index where the rows name none."""
        return self.entity or self.index_name


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


def backlog(store: Store, now: int) -> Backlog:
    """What waits of all rows."""
    fresh, retrying, claimed, dead = store.counted("fresh", "waiting", "leases", "dead")
    return Backlog(fresh, retrying, claimed, dead, _age(store.oldest_unfinished(), now))


def tenant_backlog(store: Store, tenants: tuple[str, ...], now: int) -> Backlog:
    """The same of one tenant, in all its spellings."""
    (mine, given), (dead_ones, _) = of_tenants(tenants, models.tenant()), of_tenants(tenants)
    indexed = store.dialect.indexed
    fresh, first, retrying, waits_since, claimed, held_since, dead = store.run(
        "SELECT fresh.*, waiting.*, claimed.*,"
        f" (SELECT count(*) FROM outbox_events {indexed('dead_of_tenant')} WHERE state = 'dead' AND {dead_ones})"
        f" FROM (SELECT count(*), min(id) FROM outbox_events {indexed('fresh')}"
        f" WHERE {models.fresh()} AND {mine}) AS fresh,"
        f" (SELECT count(*), min(created_at) FROM outbox_events {indexed('waiting')}"
        f" WHERE {models.waiting()} AND {mine}) AS waiting,"
        f" (SELECT count(*), min(created_at) FROM outbox_events {indexed('leases')}"
        f" WHERE state = 'claimed' AND {mine}) AS claimed",
        given,
    ).one()
    written = store.run(
        "SELECT CAST(created_at AS BIGINT) FROM outbox_events WHERE id = :id", id=first
    ).scalar_one_or_none()
    oldest = min((since for since in (written, waits_since, held_since) if since is not None), default=None)
    return Backlog(fresh, retrying, claimed, dead, _age(oldest, now))


def _age(since: int | None, now: int) -> int | None:
    return None if since is None else max(0, now - since)


# -- by time ----------------------------------------------------------------------------------------------------


def statistics(store: Store, since: int) -> list[Statistic]:
    """Sums of the tenants, from that minute on."""
    found = store.run(
        f"SELECT minute, index_name, action, entity, {SUMS}"
        " FROM outbox_stats WHERE minute >= :since GROUP BY minute, index_name, entity, action",
        since=since,
    )
    return [Statistic(row[0], row[1], row[2], row[3], tuple(row[4:])) for row in found]


def outcomes_of_tenant(store: Store, tenants: tuple[str, ...], since: int) -> Outcomes:
    """Of all rows of a tenant, in all its spellings, from the minute of that instant on, or from its hour where hours
    are summed up."""
    mine, given = of_tenants(tenants)
    found = store.run(
        f"SELECT {SUMS} FROM outbox_stats WHERE minute >= :since AND {mine}",
        {**given, "since": since - since % MINUTE_MS},
    ).one()
    return Outcomes.of(tuple(found))


def has_tenant(store: Store, tenants: tuple[str, ...]) -> bool:
    """Whether rows of it wait or are dead, or have ended since statistics are kept."""
    mine, given = of_tenants(tenants)
    if store.run(f"SELECT EXISTS (SELECT 1 FROM outbox_stats WHERE {mine})", given).scalar_one():
        return True
    now = tenant_backlog(store, tenants, 0)
    return bool(now.unfinished or now.dead)


def tenants(store: Store, most: int) -> list[str]:
    """Some tenants whose rows have ended since statistics are kept."""
    found = store.run(
        "SELECT DISTINCT tenant_id FROM outbox_stats WHERE tenant_id <> '' ORDER BY tenant_id LIMIT :most", most=most
    )
    return [row[0] for row in found]


def depths(store: Store, since: int) -> list[tuple[int, int, int]]:
    """(minute, unfinished rows, age of the oldest) of the minutes in which a relay or an admin server looked."""
    found = store.run(
        "SELECT minute, unfinished, oldest_ms FROM outbox_depths WHERE minute >= :since ORDER BY minute",
        since=since - since % MINUTE_MS,
    )
    return [(row[0], row[1], row[2]) for row in found]


# -- by tenant --------------------------------------------------------------------------------------------------


def lags(store: Store, now: int) -> list[Lag]:
    """Tenants that wait, the one that waits longest first; at most 50."""
    rows: dict[str, int] = {}
    oldest: dict[str, int] = {}
    spellings: dict[str, str] = {}
    for spelled, number, since in (*_fresh_by_tenant(store), *_held_by_tenant(store)):
        tenant = spellings.setdefault(same_tenant(spelled), spelled)
        rows[tenant] = rows.get(tenant, 0) + number
        oldest[tenant] = min(oldest.get(tenant, since), since)
    found = [Lag(tenant or None, rows[tenant], max(0, now - oldest[tenant])) for tenant in rows]
    return sorted(found, key=lambda lag: -lag.oldest_ms)[:MOST_TENANTS]


def _fresh_by_tenant(store: Store) -> Iterator[tuple[str, int, int]]:
    """(tenant, rows, when the oldest was written) of the lanes whose fresh rows wait longest."""
    try:
        lanes = due.fresh_lanes(store)[: 2 * MOST_TENANTS]
    except MalformedRows:  # the next claim of a relay ends them
        return
    for index, tenant in lanes:
        number, since = store.run(
            "SELECT number, (SELECT CAST(created_at AS BIGINT) FROM outbox_events WHERE id = oldest)"
            " FROM (SELECT count(*) AS number, min(id) AS oldest"
            f" FROM outbox_events {store.dialect.indexed('fresh')} WHERE {models.fresh()}"
            f" AND index_name = :index AND {models.tenant()} = :tenant) AS lane",
            index=index,
            tenant=tenant,
        ).one()
        if since is not None:  # else all of the lane was claimed meanwhile
            yield tenant, number, since


def _held_by_tenant(store: Store) -> Iterator[tuple[str, int, int]]:
    """The same of rows that are claimed or wait for another attempt."""
    indexed, row = store.dialect.indexed, f"SELECT {models.tenant()} AS tenant, created_at FROM outbox_events"
    found = store.run(
        "SELECT tenant, count(*), min(created_at) FROM ("
        f"{row} {indexed('leases')} WHERE state = 'claimed'"
        f" UNION ALL {row} {indexed('waiting')} WHERE {models.waiting()} LIMIT {MOST_HELD}) AS held GROUP BY tenant"
    )
    return ((row[0], row[1], row[2]) for row in found)


# -- by relay ---------------------------------------------------------------------------------------------------


class InHand(NamedTuple):
    """Rows that a relay has claimed: how many, one of their indexes, of how many, and when the last lease ends."""

    rows: int
    one_index: str
    indexes: int
    lease_until: int


def in_hand(store: Store) -> dict[int, InHand]:
    """What each relay has claimed and not settled so far, by its id."""
    found = store.run(
        "SELECT claimed_by, count(*), min(index_name), count(DISTINCT index_name), coalesce(max(lease_expires_at), 0)"
        f" FROM outbox_events {store.dialect.indexed('leases')} WHERE state = 'claimed' GROUP BY claimed_by"
    )
    return {row[0]: InHand(*row[1:]) for row in found}


# -- what is due ------------------------------------------------------------------------------------------------


class Due(NamedTuple):
    """A row that could be delivered, and since when."""

    index_name: str
    since: int


def longest_due(store: Store, before: int) -> Due | None:
    """A row that has been due since `before` or longer: not behind an earlier one of its document, nor before its time.

    Looks at the lanes that wait longest and at the retries that are due longest: some hundred rows.
    """
    indexed = store.dialect.indexed
    try:
        lanes = due.fresh_lanes(store)[:MOST_TENANTS]
    except MalformedRows:  # the next claim of a relay ends them
        lanes = []
    heads = [
        store.run(
            f"SELECT min(id) FROM outbox_events {indexed('fresh')} WHERE {models.fresh()}"
            f" AND index_name = :index AND {models.tenant()} = :tenant",
            index=index,
            tenant=tenant,
        ).scalar_one()
        for index, tenant in lanes
    ]
    retries = store.run(
        f"SELECT id FROM outbox_events {indexed('waiting')} WHERE {models.waiting()} AND available_at <= :before"
        " ORDER BY available_at, id LIMIT :most",
        before=before,
        most=MOST_TENANTS,
    )
    found = store.run(
        "SELECT c.index_name, coalesce(c.available_at, c.created_at) AS since FROM outbox_events AS c"
        f" WHERE c.id {store.dialect.among('ids')} AND coalesce(c.available_at, c.created_at) <= :before"
        f" AND NOT EXISTS (SELECT 1 FROM outbox_events AS h {indexed('held')} WHERE ({models.unfinished('h')})"
        " AND h.index_name = c.index_name AND h.document_id = c.document_id AND h.id < c.id)"
        " ORDER BY since LIMIT 1",
        ids=[*(head for head in heads if head is not None), *(row[0] for row in retries)],
        before=before,
    ).one_or_none()
    return None if found is None else Due(found[0], found[1])


# -- rows -------------------------------------------------------------------------------------------------------


def newest_rows(
    store: Store,
    *,
    state: State | None = None,
    before: int | None = None,
    limit: int = 50,
    **narrowing: Unpack[Narrowing],
) -> Rows:
    """Rows without their documents, newest first, narrowed by what is given; `before`: only with a lower id.

    Looks at `MOST_LOOKED_AT` rows at most, and then says where to go on: it may find fewer than there are, or none.
    Of a state that few rows are in it finds all.
    """
    (of_state, parameters), (fits, given) = narrowed(state=state), causes.fitting(**narrowing)
    condition, parameters = f"{of_state} AND {fits}", parameters | given
    first, last = MOST_ID if before is None else before, 0
    rows_of = "outbox_events AS e"
    if state is State.DEAD:
        few = _walked(store, condition, parameters, first, limit + 1)
        if len(few) <= limit:
            few, last = causes.newest(store, first, limit, **narrowing)
        rows_of = f"{store.dialect.table('few', id='BIGINT')} AS n CROSS JOIN {rows_of}"
        condition += " AND e.id = n.id"
        parameters["few"] = [(each,) for each in few]
    elif (named := _ids_in(store, state)) and _are_few(store, named):
        # Otherwise the database walks from the newest row on, past all that are done, to find one that is not.
        condition += f" AND e.id IN ({named})"
    elif parameters:
        last = store.run(
            "SELECT coalesce((SELECT id FROM outbox_events WHERE id < :before"
            " ORDER BY id DESC LIMIT 1 OFFSET :most), 0)",
            before=first,
            most=MOST_LOOKED_AT - 1,
        ).scalar_one()
    found = store.run(
        f"SELECT {shown.columns(store.dialect)} FROM {rows_of} WHERE e.id < :before AND e.id >= :last AND {condition}"
        " ORDER BY e.id DESC LIMIT :limit",
        parameters | {"before": first, "last": last, "limit": limit + 1},
    )
    rows = shown.rows(found)
    if len(rows) > limit:
        return Rows(rows[:limit], rows[limit - 1]["id"])
    return Rows(rows, last or None)


def _walked(store: Store, condition: str, parameters: Mapping[str, Any], before: int, most: int) -> list[int]:
    """The ids of those among the newest rows: where many are dead, there are enough, and to walk takes no time."""
    found = store.run(
        "SELECT e.id FROM (SELECT id FROM outbox_events WHERE id < :before ORDER BY id DESC LIMIT :walked) AS n"
        f" CROSS JOIN outbox_events AS e WHERE e.id = n.id AND {condition} LIMIT :most",
        {**parameters, "before": before, "walked": MOST_WALKED, "most": most},
    )
    return [row[0] for row in found]


def _ids_in(store: Store, state: State | None) -> str:
    """A query for the ids of all rows that are pending or claimed; empty for other states."""
    indexed = store.dialect.indexed
    if state is State.PENDING:
        return (
            f"SELECT id FROM outbox_events {indexed('fresh')} WHERE {models.fresh()}"
            f" UNION ALL SELECT id FROM outbox_events {indexed('waiting')} WHERE {models.waiting()}"
        )
    return f"SELECT id FROM outbox_events {indexed('leases')} WHERE state = 'claimed'" if state is State.CLAIMED else ""


def _are_few(store: Store, query: str) -> bool:
    number: int = store.run(f"SELECT count(*) FROM ({query} LIMIT :most) AS few", most=MOST_LOOKED_AT).scalar_one()
    return number < MOST_LOOKED_AT
