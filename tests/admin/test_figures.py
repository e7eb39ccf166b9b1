"""What the admin server counts, and which of it calls for somebody."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest
from sqlalchemy import Engine

from outbox.admin import formats
from outbox.admin.alerts import alerts
from outbox.admin.statistics import IndexStatistics, Statistics, StatisticsCache
from outbox.store import by_index, causes, figures, operators, upkeep
from outbox.store.figures import DAY_MS, Backlog, Outcomes, Statistic
from outbox.store.models import LATENCY_BOUNDS_MS, State
from outbox.store.pauses import Pause
from outbox.store.store import Store
from outbox.store.upkeep import HOUR_MS
from tests.support.outbox import Outbox

PAUSE = Pause(None, None, 0, "ada", "an incident")
NOW = 1_800_000_000_000 - 1_800_000_000_000 % HOUR_MS + 20 * 60_000


@pytest.fixture
def store(engine: Engine) -> Iterator[Store]:
    made = Store(engine)
    yield made
    made.close()


def finished(outbox: Outbox, minute: int, *, done: int = 0, dead: int = 0, tenant: str = "t", within: int = 10) -> None:
    """Statistics of one minute."""
    outbox.raw(
        "INSERT INTO outbox_stats (minute, index_name, entity, tenant_id, action, done, dead, latency_sum_ms,"
        f" latency_le_{within}ms) VALUES (:minute, 'i', 'e', :tenant, 'index', :done, :dead, :sum, :done)",
        minute=minute - minute % 60_000,
        tenant=tenant,
        done=done,
        dead=dead,
        sum=done * within,
    )


def sums(store: Store, since: int) -> tuple[Outcomes, dict[str, Outcomes]]:
    """Of all, and by entity; of the first sight of somebody who looks now."""
    seen = StatisticsCache({}).read(store, NOW)
    return seen.outcomes(since), seen.by_entity(since)


def sum_up(store: Store, before: int) -> int:
    """As a relay does. Returns the number of minutes that were added to their hours."""
    return sum(1 for _ in iter(lambda: upkeep.compact_stats(store, before), 0))


def by_minute(store: Store) -> list[tuple[int, int]]:
    """(minute, done) as it stands in the table."""
    return [(each.minute, each.counts[0]) for each in figures.statistics(store, 0)]


# -- statistics -------------------------------------------------------------------------------------------------------


def test_sums_of_hours_are_what_their_minutes_were(outbox: Outbox, store: Store) -> None:
    for ago in range(0, 30 * 60, 7):
        finished(outbox, NOW - ago * 60_000, done=ago + 1, dead=ago % 3, tenant=f"t{ago % 2}")
    spans = [NOW - hours * HOUR_MS - NOW % HOUR_MS for hours in (0, 3, 24, 40)]
    before = [sums(store, since) for since in spans]

    for _ in range(10):  # at no step of it anything is missing, or counted twice
        assert upkeep.compact_stats(store, NOW - 3 * HOUR_MS) == 1
        assert [sums(store, since) for since in spans] == before
    assert sum_up(store, NOW - 3 * HOUR_MS) > 200

    assert [sums(store, since) for since in spans] == before
    assert {minute % HOUR_MS for minute, _ in by_minute(store) if minute < NOW - 4 * HOUR_MS} == {0}


def test_hours_that_are_summed_up_already_or_not_over_stay_as_they_are(outbox: Outbox, store: Store) -> None:
    finished(outbox, NOW - 5 * HOUR_MS, done=3)
    finished(outbox, NOW - 60_000, done=4)
    assert sum_up(store, NOW - 3 * HOUR_MS) == 1
    rows = by_minute(store)
    assert upkeep.compact_stats(store, NOW - 3 * HOUR_MS) == 0
    assert by_minute(store) == rows
    assert rows[-1] == (NOW - 60_000, 4)


def test_minutes_that_come_late_to_an_hour_of_sums_are_added(outbox: Outbox, store: Store) -> None:
    hour = NOW - NOW % HOUR_MS - 5 * HOUR_MS
    finished(outbox, hour + 60_000, done=3)
    sum_up(store, NOW - 3 * HOUR_MS)
    finished(outbox, hour + 120_000, done=4)
    sum_up(store, NOW - 3 * HOUR_MS)
    assert by_minute(store) == [(hour, 7)]


def test_the_most_of_a_minute_stays(outbox: Outbox, store: Store) -> None:
    upkeep.note_depth(store, NOW)
    for at in range(3):
        outbox.index("i", str(at), {})
    upkeep.note_depth(store, NOW + 1)
    operators.purge(store, operators.pending(store))
    upkeep.note_depth(store, NOW + 2)
    assert [unfinished for _, unfinished, _ in figures.depths(store, NOW)] == [3]


def test_depths_are_pruned_with_the_statistics(store: Store) -> None:
    upkeep.note_depth(store, NOW)
    upkeep.note_depth(store, NOW + DAY_MS)
    upkeep.prune_stats(store, NOW + DAY_MS)
    assert len(figures.depths(store, 0)) == 1


def test_figures_of_a_tenant_are_of_nobody_else(outbox: Outbox, store: Store) -> None:
    ids = [outbox.index("i", f"d{number}", {}, tenant_id="ab"[number % 2]) for number in range(12)]
    states = ("pending", "pending", "claimed", "claimed", "dead", "dead", "done", "done")
    for row, state in zip(ids, states, strict=False):
        outbox.raw(
            "UPDATE outbox_events SET state = :state, available_at = 1, error_type = 'e' WHERE id = :row",
            state=state,
            row=row,
        )
    outbox.raw("UPDATE outbox_events SET created_at = :first + id", first=NOW - 1_000 - ids[0])
    finished(outbox, NOW, done=4, tenant="a")
    finished(outbox, NOW, done=1, tenant="b")

    assert figures.tenant_backlog(store, ("a",), NOW) == Backlog(
        fresh=2, retrying=1, claimed=1, dead=1, oldest_ms=1_000
    )
    assert figures.tenant_backlog(store, ("b",), NOW) == Backlog(fresh=2, retrying=1, claimed=1, dead=1, oldest_ms=999)
    assert figures.tenant_backlog(store, ("c",), NOW) == Backlog(0, 0, 0, 0, None)
    assert [figures.outcomes_of_tenant(store, (tenant,), 0).done for tenant in "abc"] == [4, 1, 0]
    assert (
        causes.count(store),
        causes.count(store, tenants=("a",)),
        causes.count(store, error_type="x"),
    ) == (2, 1, 0)


# -- what is kept of them ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "read", [figures.statistics, partial(by_index.statistics, index="i")], ids=["all", "one index"]
)
def test_whoever_looks_on_sees_what_a_first_look_sees(
    outbox: Outbox, store: Store, read: Callable[[Store, int], list[Statistic]]
) -> None:
    """Through a week and more, with minutes that become hours and are pruned, and with pauses of any length."""
    looked_on, chance = StatisticsCache({}, read), random.Random(7)
    now, began = NOW, NOW
    while now < began + 9 * DAY_MS:
        for _ in range(chance.randint(0, 3)):
            finished(outbox, now, done=chance.randint(1, 9), dead=chance.randint(0, 2), tenant=str(chance.random()))
        now += chance.choice((5_000, 60_000, 600_000, HOUR_MS, 5 * HOUR_MS, DAY_MS))
        for _ in range(chance.choice((0, 0, 1, 7, 500))):
            upkeep.compact_stats(store, now - 3 * HOUR_MS)
        on, first = looked_on.read(store, now), StatisticsCache({}, read).read(store, now)
        full_hour = now - now % HOUR_MS
        for since in (now - 15 * 60_000, now - HOUR_MS, full_hour - DAY_MS, full_hour - 6 * DAY_MS):
            assert on.outcomes(since) == first.outcomes(since)
        assert on.by_entity(full_hour - DAY_MS) == first.by_entity(full_hour - DAY_MS)
        assert on.history(now - 3 * HOUR_MS) == first.history(now - 3 * HOUR_MS)
    assert len(on.periods) <= 4 * 60 + 60 + 24 * 7 + 1  # memory does not grow with time


def test_statistics_of_one_index_are_not_those_of_another_however_few_are_kept(
    outbox: Outbox, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.admin.statistics.KEPT_INDEXES", 1)
    finished(outbox, NOW, done=5)
    cache = IndexStatistics()
    for _ in range(2):
        for index, done in (("i", 5), ("another", 0), ("i", 5)):
            assert cache.read(store, index, NOW + 1_000).outcomes(NOW - HOUR_MS).done == done


def counter(seen: Statistics) -> int:
    return Outcomes.of(seen.by_index_and_action[("i", "index")]).done if seen.by_index_and_action else 0


def test_counter_counts_what_came_since_the_first_look_and_never_falls(outbox: Outbox, store: Store) -> None:
    finished(outbox, NOW - 60_000, done=1_000)
    finished(outbox, NOW, done=500)
    cache, now, counted = StatisticsCache({}), NOW, 0
    assert counter(cache.read(store, now)) == 0
    for minutes in (0, 1, 2, 7, 61, 60 * 5, 60 * 24 * 95, 3):
        now += minutes * 60_000
        finished(outbox, now + 1_000, done=7, tenant=f"at {now}, {counted} so far")
        counted += 7
        assert counter(cache.read(store, now + 2_000)) == counted
        sum_up(store, now - 3 * HOUR_MS)
        while upkeep.prune_stats(store, now - 90 * DAY_MS):
            pass
        assert counter(cache.read(store, now + 3_000)) == counted


def test_outcome_that_is_noted_late_counts(outbox: Outbox, store: Store) -> None:
    cache = StatisticsCache({})
    cache.read(store, NOW)
    finished(outbox, NOW - 4 * 60_000, done=3)  # by a relay that had to wait for the write lock
    seen = cache.read(store, NOW + 1_000)
    assert (counter(seen), seen.outcomes(NOW - HOUR_MS).done) == (3, 3)
    finished(outbox, NOW + 60_000, done=4)
    seen = cache.read(store, NOW + 5 * 60_000)
    assert (counter(seen), seen.outcomes(NOW - HOUR_MS).done) == (7, 7)


def test_counter_whose_minutes_were_summed_up_before_anybody_looked_again(outbox: Outbox, store: Store) -> None:
    cache = StatisticsCache({})
    cache.read(store, NOW)
    finished(outbox, NOW, done=9)
    before = counter(cache.read(store, NOW + 1_000))
    finished(outbox, NOW + 7 * HOUR_MS, done=4)
    sum_up(store, NOW + 6 * HOUR_MS)  # the machine slept; a relay woke first
    assert counter(cache.read(store, NOW + 7 * HOUR_MS + 1_000)) >= before == 9


def test_clock_that_was_ahead_for_a_moment_hides_nothing(outbox: Outbox, store: Store) -> None:
    for ahead in (20 * 60_000, 3 * HOUR_MS):
        outbox.raw("DELETE FROM outbox_stats")
        cache = StatisticsCache({})
        cache.read(store, NOW)
        finished(outbox, NOW, done=5)
        assert counter(cache.read(store, NOW + 1_000)) == 5
        assert counter(cache.read(store, NOW + ahead)) == 5
        finished(outbox, NOW + 3 * 60_000, done=7)
        back = cache.read(store, NOW + 3 * 60_000)
        assert back.outcomes(NOW).done == 12
        finished(outbox, NOW + 10 * 60_000, done=9)
        later = cache.read(store, NOW + 11 * 60_000)
        assert later.outcomes(NOW).done == 21
        assert counter(later) >= 9 + 5  # what came before the clock was right again may be missing, and nothing falls


# -- rows -------------------------------------------------------------------------------------------------------------


def test_looking_for_what_is_not_there_ends_and_says_where_to_go_on(
    outbox: Outbox, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.store.figures.MOST_LOOKED_AT", 10)
    rows = outbox.index_many("i", [(f"d{at}", {}) for at in range(35)])
    outbox.raw("UPDATE outbox_events SET state = 'done', finished_at = 1")
    found, at, looks = [], None, 0
    while looks == 0 or at is not None:
        page = figures.newest_rows(store, document="d3", before=at)
        found, at, looks = [*found, *(row["id"] for row in page.rows)], page.older, looks + 1
    assert (found, looks) == ([rows[3]], 4)
    assert figures.newest_rows(store, document="d34") == (figures.newest_rows(store, limit=1).rows, rows[25])
    assert figures.newest_rows(store, limit=50).older is None  # without a filter there is nothing to look for


@pytest.mark.parametrize("state", [State.PENDING, State.DEAD, State.CLAIMED])
def test_few_rows_are_found_however_many_done_ones_are_newer(
    outbox: Outbox, store: Store, monkeypatch: pytest.MonkeyPatch, state: State
) -> None:
    rows = outbox.index_many("i", [(f"d{at}", {}) for at in range(30)])
    outbox.raw("UPDATE outbox_events SET state = 'done', finished_at = 1")
    outbox.raw("UPDATE outbox_events SET state = :state, finished_at = NULL WHERE id = :id", state=state, id=rows[0])
    monkeypatch.setattr("outbox.store.figures.MOST_LOOKED_AT", 5)
    assert [row["id"] for row in figures.newest_rows(store, state=state).rows] == [rows[0]]
    outbox.raw("UPDATE outbox_events SET state = :state, finished_at = NULL WHERE id > 10", state=state)
    walked, at = [], None
    while len(walked) < 21:  # so many that they are walked through as the others are
        page = figures.newest_rows(store, state=state, before=at, limit=4)
        walked, at = [*walked, *(row["id"] for row in page.rows)], page.older
        assert at is not None or len(walked) == 21
    assert walked == [*range(30, 10, -1), rows[0]]


# -- latency ----------------------------------------------------------------------------------------------------------


def latencies(*rows: tuple[int, int]) -> Outcomes:
    """Outcomes of rows by the bound they were within."""
    by_bound = dict(rows)
    return Outcomes(done=sum(by_bound.values()), latency=tuple(by_bound.get(bound, 0) for bound in LATENCY_BOUNDS_MS))


@pytest.mark.parametrize(
    ("outcomes", "part", "expected"),
    [
        (latencies((10, 100)), 0.5, 5),
        (latencies((10, 50), (25, 50)), 0.5, 10),
        (latencies((10, 50), (25, 50)), 0.75, 17.5),
        (latencies((10, 99), (1_000, 1)), 0.99, 10),
        (latencies((10, 98), (1_000, 2)), 0.99, 750),
        (Outcomes(done=100), 0.99, 60_000),  # all slower than the last bound
        (Outcomes(), 0.99, None),
    ],
)
def test_quantile_lies_within_its_bucket(outcomes: Outcomes, part: float, expected: float | None) -> None:
    assert outcomes.quantile_ms(part) == (None if expected is None else pytest.approx(expected))


# -- who waits --------------------------------------------------------------------------------------------------------


def test_tenant_that_waits_longest_comes_first_whatever_its_rows_wait_for(outbox: Outbox, store: Store) -> None:
    for at in range(5):
        outbox.index("i", f"a{at}", {}, tenant_id="many")
    old = outbox.index("i", "b", {}, tenant_id="old")
    retrying = outbox.index("other", "c", {}, tenant_id="retrying")
    outbox.index("i", "d", {})
    outbox.raw("UPDATE outbox_events SET created_at = :at", at=NOW - 1_000)
    outbox.raw("UPDATE outbox_events SET created_at = :at WHERE id = :id", at=NOW - 9_000, id=old)
    outbox.raw(
        "UPDATE outbox_events SET created_at = :at, available_at = :later WHERE id = :id",
        at=NOW - 5_000,
        later=NOW + 1_000,
        id=retrying,
    )
    found = [(lag.tenant, lag.rows, lag.oldest_ms) for lag in figures.lags(store, NOW)]
    assert found[:2] == [("old", 1, 9_000), ("retrying", 1, 5_000)]
    assert set(found[2:]) == {("many", 5, 1_000), (None, 1, 1_000)}


# -- alerts -----------------------------------------------------------------------------------------------------------


def names(
    *,
    fresh: int = 0,
    oldest_ms: int | None = None,
    relays: int = 1,
    unreachable: str | None = None,
    paused: Sequence[Pause] = (),
    **recent: int,
) -> list[str]:
    backlog = Backlog(fresh=fresh, retrying=0, claimed=0, dead=0, oldest_ms=oldest_ms)
    found = alerts(backlog, Outcomes(**recent), unreachable=unreachable, relays=relays, paused=paused)  # type: ignore[arg-type]
    return [alert.name for alert in found]


@pytest.mark.parametrize(
    ("beyond", "within", "name"),
    [
        ({"fresh": 1_001}, {"fresh": 1_000}, "queue_depth"),
        ({"done": 9_899, "dead": 101}, {"done": 9_900, "dead": 100}, "failures"),
        (
            {"done": 989, "fresh": 11, "oldest_ms": 60_001},
            {"done": 990, "fresh": 10, "oldest_ms": 60_001},
            "completion",
        ),
        ({"fresh": 500, "done": 1, "oldest_ms": 60_001}, {"fresh": 500, "done": 1, "oldest_ms": 60_000}, "completion"),
        ({"done": 10, "latency_sum_ms": 5_001}, {"done": 10, "latency_sum_ms": 5_000}, "latency"),
        ({"fresh": 1, "relays": 0}, {"fresh": 0, "relays": 0}, "no_relay"),
        ({"fresh": 1, "paused": [PAUSE]}, {"fresh": 0, "paused": [PAUSE]}, "paused"),
        ({"unreachable": "refused"}, {}, "cluster_unreachable"),
    ],
)
def test_alert_begins_beyond_its_limit_and_not_before(beyond: dict, within: dict, name: str) -> None:  # type: ignore[type-arg]
    assert name in names(**beyond)
    assert name not in names(**within)


def test_idle_outbox_calls_for_nobody() -> None:
    assert names() == []


# -- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"), (0, "0 ms"), (0.34, "340 ms"), (12.54, "12.5 s"), (250, "4 min 10 s"), (12_000, "3 h 20 min"),
        (187_200, "2 d 4 h"), (59.94, "59.9 s"), (59.96, "1 min 0 s"),
    ],
)  # fmt: skip
def test_span_has_units_and_no_more_digits_than_help(seconds: float | None, text: str) -> None:
    assert formats.span(seconds) == text


@pytest.mark.parametrize(
    ("part", "text"),
    [(None, "–"), (0, "0 %"), (1, "100 %"), (0.0003, "0.03 %"), (0.25, "25.0 %"), (0.9999, "99.99 %")],
)
def test_small_part_is_not_shown_as_none(part: float | None, text: str) -> None:
    assert formats.percent(part) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (999_600, "1.0 MB"), (94_208, "94 KB"), (1_500_000, "1.5 MB"), (2 * 10**13, "20 TB")],
)
def test_size_has_a_unit(number: int, text: str) -> None:
    assert formats.size(number) == text
