"""What the admin server counts, and which of it calls for somebody."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from outbox.admin import words
from outbox.admin.alerts import alerts
from outbox.admin.figures import DAY_MS, Backlog, Figures, Outcomes
from outbox.models import LATENCY_BOUNDS_MS
from outbox.store import HOUR_MS
from tests.support.outbox import Outbox

NOW = 1_800_000_000_000 - 1_800_000_000_000 % HOUR_MS + 20 * 60_000


@pytest.fixture
def figures(engine: Engine) -> Iterator[Figures]:
    made = Figures(engine)
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


# -- statistics -------------------------------------------------------------------------------------------------------


def test_sums_of_hours_are_what_their_minutes_were(outbox: Outbox, figures: Figures) -> None:
    for ago in range(0, 30 * 60, 7):
        finished(outbox, NOW - ago * 60_000, done=ago + 1, dead=ago % 3, tenant=f"t{ago % 2}")
    spans = [NOW - hours * HOUR_MS - NOW % HOUR_MS for hours in (0, 3, 24, 40)]
    before = [(figures.outcomes(since), figures.outcomes_by_entity(since)) for since in spans]

    assert figures.compact_stats(NOW - 3 * HOUR_MS) == 27

    assert [(figures.outcomes(since), figures.outcomes_by_entity(since)) for since in spans] == before
    assert {minute % HOUR_MS for minute, _, _ in figures.history(0) if minute < NOW - 4 * HOUR_MS} == {0}


def test_hours_that_are_summed_up_already_or_not_over_stay_as_they_are(outbox: Outbox, figures: Figures) -> None:
    finished(outbox, NOW - 5 * HOUR_MS, done=3)
    finished(outbox, NOW - 60_000, done=4)
    assert figures.compact_stats(NOW - 3 * HOUR_MS) == 1
    rows = figures.history(0)
    assert figures.compact_stats(NOW - 3 * HOUR_MS) == 0
    assert figures.history(0) == rows
    assert rows[-1] == (NOW - 60_000, 4, 0)


def test_minutes_that_come_late_to_an_hour_of_sums_are_added(outbox: Outbox, figures: Figures) -> None:
    hour = NOW - NOW % HOUR_MS - 5 * HOUR_MS
    finished(outbox, hour + 60_000, done=3)
    figures.compact_stats(NOW - 3 * HOUR_MS)
    finished(outbox, hour + 120_000, done=4)
    figures.compact_stats(NOW - 3 * HOUR_MS)
    assert figures.history(0) == [(hour, 7, 0)]


def test_the_most_of_a_minute_stays(outbox: Outbox, figures: Figures) -> None:
    figures.note_depth(NOW)
    for at in range(3):
        outbox.index("i", str(at), {})
    figures.note_depth(NOW + 1)
    figures.purge()
    figures.note_depth(NOW + 2)
    assert [unfinished for _, unfinished, _ in figures.depths(NOW)] == [3]


def test_depths_are_pruned_with_the_statistics(figures: Figures) -> None:
    figures.note_depth(NOW)
    figures.note_depth(NOW + DAY_MS)
    figures.prune_stats(NOW + DAY_MS)
    assert len(figures.depths(0)) == 1


def test_figures_of_a_tenant_are_of_nobody_else(outbox: Outbox, figures: Figures) -> None:
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

    assert figures.tenant_backlog("a", NOW) == Backlog(fresh=2, retrying=1, claimed=1, dead=1, oldest_ms=1_000)
    assert figures.tenant_backlog("b", NOW) == Backlog(fresh=2, retrying=1, claimed=1, dead=1, oldest_ms=999)
    assert figures.tenant_backlog("c", NOW) == Backlog(0, 0, 0, 0, None)
    assert [figures.outcomes(0, tenant).done for tenant in ("a", "b", "c", None)] == [4, 1, 0, 5]
    assert (figures.dead_number(), figures.dead_number(tenant="a"), figures.dead_number(error_type="x")) == (2, 1, 0)


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


def test_tenant_that_waits_longest_comes_first_whatever_its_rows_wait_for(outbox: Outbox, figures: Figures) -> None:
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
    found = [(lag.tenant, lag.rows, lag.oldest_ms) for lag in figures.lags(NOW)]
    assert found[:2] == [("old", 1, 9_000), ("retrying", 1, 5_000)]
    assert set(found[2:]) == {("many", 5, 1_000), (None, 1, 1_000)}


# -- alerts -----------------------------------------------------------------------------------------------------------


def names(
    *,
    fresh: int = 0,
    oldest_ms: int | None = None,
    relays: int = 1,
    unreachable: str | None = None,
    paused: bool = False,
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
        ({"fresh": 1, "paused": True}, {"fresh": 0, "paused": True}, "paused"),
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
    assert words.span(seconds) == text


@pytest.mark.parametrize(
    ("part", "text"),
    [(None, "–"), (0, "0 %"), (1, "100 %"), (0.0003, "0.03 %"), (0.25, "25.0 %"), (0.9999, "99.99 %")],
)
def test_small_part_is_not_shown_as_none(part: float | None, text: str) -> None:
    assert words.percent(part) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (999_600, "1.0 MB"), (94_208, "94 KB"), (1_500_000, "1.5 MB"), (2 * 10**13, "20 TB")],
)
def test_size_has_a_unit(number: int, text: str) -> None:
    assert words.size(number) == text
