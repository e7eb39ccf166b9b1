"""An outbox with months behind it, made fast; and how long what operators look at takes there."""

from __future__ import annotations

import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine

from outbox import schema, sqlite
from outbox.admin.causes import CausesCache
from outbox.admin.database import Database
from outbox.admin.metrics import Metrics
from outbox.admin.overview import OverviewCache, overview
from outbox.admin.statistics import StatisticsCache
from outbox.store import causes, figures, jobs, operators
from outbox.store.figures import DAY_MS, WEEK_MS
from outbox.store.models import LATENCY_BOUNDS_MS, State, now_ms
from outbox.store.store import Store
from outbox.store.upkeep import HOUR_MS

DEAD, PENDING = 2_000, 10_000
TENANTS, ENTITIES, INDEXES, DAYS = 50, 5, 3, 90
MINUTE_MS = 60_000


def fill(path: Path, rows: int) -> None:
    """`rows` finished rows of a day, dead and pending ones, and statistics of 90 days as they are after compaction."""
    engine = create_engine(f"sqlite:///{path}")
    sqlite.prepare(engine)
    schema.upgrade(engine)
    engine.dispose()
    now = now_ms()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        connection.execute(
            f"""
            INSERT INTO outbox_events (id, action, index_name, document_id, tenant_id, entity, document_bytes, state,
                attempts, deliveries, created_at, finished_at, outcome, error_type, error)
            WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < :all),
            drawn AS (SELECT n, random() & 0x7fffffff AS r, iif(n > :done + {DEAD}, 'pending',
                iif(n % (:all / {DEAD}) = 7 AND n <= :done + {DEAD}, 'dead', 'done')) AS state FROM n)
            SELECT n, iif(r % 10 = 0, 'update', 'index'), 'index-' || (r % {ENTITIES} % {INDEXES}),
                'document-' || (r % 1000000), 'tenant-' || (r % {TENANTS}), 'entity-' || (r % {ENTITIES}), 900, state,
                iif(state = 'dead', 4, 0), iif(state = 'pending', 0, 1), :now - (:all - n) * 86400000 / :all,
                iif(state = 'pending', NULL, :now - (:all - n) * 86400000 / :all + 20),
                iif(state = 'done', 'applied', NULL), iif(state = 'dead', 'mapper_parsing_exception', NULL),
                iif(state = 'dead', 'failed to parse field [created_at] of type [date]', NULL)
            FROM drawn
            """,
            {"all": rows + DEAD + PENDING, "done": rows, "now": now},
        )
        latencies = ", ".join(f"latency_le_{bound}ms" for bound in LATENCY_BOUNDS_MS[:4])
        for first, last, step in (
            (now - DAYS * 24 * HOUR_MS, now - 3 * HOUR_MS, HOUR_MS),
            (now - 3 * HOUR_MS, now, MINUTE_MS),
        ):
            connection.execute(
                f"""
                INSERT INTO outbox_stats (minute, index_name, entity, tenant_id, action, done, dead, latency_sum_ms,
                    {latencies})
                WITH RECURSIVE at (m) AS (
                    SELECT :first - :first % :step UNION ALL SELECT m + :step FROM at WHERE m + :step < :last),
                tenant (t) AS (SELECT 0 UNION ALL SELECT t + 1 FROM tenant WHERE t < {TENANTS} - 1),
                entity (e) AS (SELECT 0 UNION ALL SELECT e + 1 FROM entity WHERE e < {ENTITIES} - 1),
                action (a) AS (VALUES ('delete'), ('index'), ('update'))
                SELECT m, 'index-' || (e % {INDEXES}), 'entity-' || e, 'tenant-' || t, a, 100, 1, 2000, 40, 30, 20, 10
                FROM at, entity, tenant, action WHERE true ON CONFLICT DO NOTHING
                """,
                {"first": first, "last": last - last % step, "step": step},
            )
        connection.execute(
            """
            INSERT INTO outbox_depths (minute, unfinished, oldest_ms)
            WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 90 * 1440)
            SELECT :minute - n * 60000, n % 100, n % 1000 FROM n
            """,
            {"minute": now - now % MINUTE_MS},
        )
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def milliseconds(call: Callable[[], Any], times: int = 7) -> tuple[float, float]:
    """(first, median of the further ones)."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        took.append((time.perf_counter() - began) * 1_000)
    return took[0], statistics.median(took[1:])


def measure(path: Path) -> Iterator[tuple[str, float, float]]:
    """(what, milliseconds at first, median of the further times) of all that is looked at."""
    engine = create_engine(f"sqlite:///{path}")
    sqlite.prepare(engine)
    with closing(Store(engine)) as store:
        # As of the end of what was made, so that a file that is used again says the same.
        made = store.connection.exec_driver_sql("SELECT max(minute) FROM outbox_stats").scalar_one()
        now = made + MINUTE_MS - 1
        for what, call in (*_of_statistics(store, now), *_of_rows(store), *_of_operators(store)):
            yield (what, *milliseconds(call))
    overviews = OverviewCache(Database(engine), lambda: None, lambda: (), {}, silent_ms=1, hide=())
    metrics = Metrics(overviews)
    overviews.newest()

    def anew(call: Callable[[], Any]) -> None:
        overviews.invalidate()
        call()

    yield ("status of the API", *milliseconds(lambda: anew(overviews.newest)))
    yield ("/metrics", *milliseconds(lambda: anew(metrics.text)))
    engine.dispose()


Calls = Iterator[tuple[str, Callable[[], Any]]]


def _of_statistics(store: Store, now: int) -> Calls:
    cache = StatisticsCache({})
    statistics = cache.read(store, now)
    yield (
        "overview(), its cache of a second apart",
        lambda: overview(store, cache.read(store, now), CausesCache(), None, (), now, silent_ms=1, hide=()),
    )
    yield "statistics cache, first look", lambda: StatisticsCache({}).read(store, now)
    yield "statistics cache, further looks", lambda: cache.read(store, now)
    yield "statistics of a week", lambda: statistics.outcomes(now - WEEK_MS)
    yield "backlog", lambda: figures.backlog(store, now)
    yield "tenant_backlog", lambda: figures.tenant_backlog(store, ("tenant-1",), now)
    yield "outcomes_of_tenant, a day", lambda: figures.outcomes_of_tenant(store, ("tenant-1",), now - DAY_MS)
    yield "depths, three hours", lambda: figures.depths(store, now - 3 * HOUR_MS)
    yield "lags", lambda: figures.lags(store, now)


def _of_rows(store: Store) -> Calls:
    newest = store.highest_id()
    some = store.event(newest - 1)
    assert some is not None
    index, document = some["index_name"], some["document_id"]
    for what, given in (
        ("", {}),
        (", dead", {"state": State.DEAD}),
        (", pending", {"state": State.PENDING}),
        (", dead of a tenant", {"state": State.DEAD, "tenants": ("tenant-1",)}),
        (", done", {"state": State.DONE}),
        (", one document", {"index": index, "document": document}),
        (", no row is like that", {"error_type": "none", "tenants": ("none",)}),
        (", the same from the middle", {"error_type": "none", "before": newest // 2}),
    ):
        yield f"newest_rows{what}", partial(figures.newest_rows, store, **given)
    yield "event", lambda: store.event(newest // 2)
    yield "dead rows to retry", lambda: operators.dead(store, index=index, tenants=("tenant-1",))


def _of_operators(store: Store) -> Calls:
    yield "dead rows by cause", lambda: causes.counted(store)
    yield "count of the dead", lambda: causes.count(store)
    yield "newest jobs", lambda: jobs.newest(store, 50)
    yield "sizes", store.sizes
    yield "counts (status)", store.counts
    yield "unfinished", store.unfinished
    yield "oldest_unfinished", store.oldest_unfinished
