"""/metrics with a thousand indexes: as many time series as with fifty, and counters that only rise all the same."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine

from outbox.admin.busiest import OTHER, BusiestIndexes
from outbox.admin.metrics import MOST_HISTOGRAMS, MOST_INDEXES
from outbox.admin.statistics import NOTHING, Counts
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.store.models import now_ms
from tests.admin.world import API, Company, World, registered
from tests.support.outbox import Outbox
from tests.support.serving import TestClient, client_of

LATENCY = "outbox_delivery_latency_seconds_count"


def scraped(client: TestClient, name: str) -> dict[str, float]:
    """The samples of a metric, summed by the label `index`."""
    client.post(f"{API}/resume")  # what is shown is as of now, and not of the last second
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name:
                index = sample.labels["index"]
                found[index] = found.get(index, 0) + sample.value
    return found


def finished(outbox: Outbox, index: str, done: int) -> None:
    outbox.raw(
        "INSERT INTO outbox_stats (minute, index_name, entity, tenant_id, action, done, latency_sum_ms)"
        " VALUES (:minute, :index, '', '', 'index', :done, 0)"
        " ON CONFLICT DO UPDATE SET done = outbox_stats.done + excluded.done",
        minute=now_ms() // 60_000 * 60_000,
        index=index,
        done=done,
    )


@pytest.fixture
def client(engine: Engine, search_db: EmbeddedDestination) -> Iterator[TestClient]:
    with client_of(engine, search_db) as made:
        scraped(made, LATENCY)
        yield made


def test_name_that_a_loop_makes_up_adds_no_time_series_for_each_row(client: TestClient, outbox: Outbox) -> None:
    finished(outbox, "contacts", 5_000)
    outbox.raw(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)"
        " INSERT INTO outbox_stats (minute, index_name, entity, tenant_id, action, done, latency_sum_ms)"
        " SELECT :minute, 'contacts-' || i, '', '', 'index', i, 0 FROM n",
        minute=now_ms() // 60_000 * 60_000,
    )
    rows = scraped(client, "outbox_finished_rows_total")
    busiest = {"contacts", *(f"contacts-{number}" for number in range(1_000, 1_001 - MOST_INDEXES, -1))}
    assert rows.keys() == {*busiest, OTHER}
    assert sum(rows.values()) == 5_000 + 1_000 * 1_001 / 2
    latencies = scraped(client, LATENCY)
    assert len(latencies) == MOST_HISTOGRAMS + 1 and latencies.keys() < rows.keys()
    assert sum(latencies.values()) == sum(rows.values())


def test_index_of_each_tenant_counts_as_the_index_of_its_entity(embedded: World) -> None:
    scraped(embedded.client, LATENCY)
    embedded.save(*(Company(id=number, name="x", tenant=f"t{number}") for number in range(MOST_INDEXES + 10)))
    embedded.delivered()
    names = scraped(embedded.client, "outbox_finished_rows_total")
    assert names == {"companies": MOST_INDEXES + 10}


def test_index_of_an_entity_has_its_label_however_quiet_it_is(
    outbox: Outbox, engine: Engine, search_db: EmbeddedDestination
) -> None:
    with client_of(engine, search_db, registered()) as client:
        scraped(client, LATENCY)
        for number in range(MOST_INDEXES + 1):
            finished(outbox, f"busy-{number}", 10)
        finished(outbox, "contacts", 1)
        rows = scraped(client, "outbox_finished_rows_total")
    assert (rows["contacts"], rows[OTHER], len(rows)) == (1, 10, MOST_INDEXES + 2)


def test_server_that_starts_again_names_the_busiest_of_the_last_day(
    outbox: Outbox, engine: Engine, search_db: EmbeddedDestination
) -> None:
    outbox.raw(
        "INSERT INTO outbox_stats (minute, index_name, entity, tenant_id, action, done, latency_sum_ms)"
        " VALUES (:minute, 'contacts', '', '', 'index', 1000, 0)",
        minute=(now_ms() - 3 * 3_600_000) // 60_000 * 60_000,
    )
    with client_of(engine, search_db) as client:
        scraped(client, LATENCY)
        for number in range(MOST_INDEXES + 1):
            finished(outbox, f"a-{number}", 2)
        finished(outbox, "contacts", 1)
        assert scraped(client, "outbox_finished_rows_total")["contacts"] == 1


def done(**rows: int) -> dict[tuple[str, str], Counts]:
    return {(index, "index"): (number, *NOTHING[1:]) for index, number in rows.items()}


def shown(busiest: BusiestIndexes, before: dict[str, int] | None = None, **rows: int) -> dict[str, int]:
    return {index: counts[0] for (index, _), counts in busiest.labelled(done(**rows), before or {}).items()}


def test_index_that_takes_a_label_over_makes_no_counter_fall_or_jump() -> None:
    busiest = BusiestIndexes(2, {"entity"})
    assert shown(busiest, a=10, b=5, c=1, entity=1) == {"a": 10, "b": 5, OTHER: 1, "entity": 1}
    assert shown(busiest, a=10, b=5, c=9, entity=1) == {"a": 10, "b": 5, OTHER: 9, "entity": 1}  # not twice as many
    assert shown(busiest, a=10, b=5, c=12, entity=1) == {"a": 10, "c": 3, OTHER: 9, "entity": 1}
    assert shown(busiest, a=10, b=7, c=12, entity=1) == {"a": 10, "c": 3, OTHER: 11, "entity": 1}
    assert shown(busiest, a=10, b=27, c=13, entity=1) == {"b": 25, "c": 4, OTHER: 11, "entity": 1}


def test_index_that_is_called_other_is_counted_there() -> None:
    busiest = BusiestIndexes(1, ())
    assert shown(busiest, a=10, b=5, other=1) == {"a": 10, OTHER: 6}
    assert shown(busiest, a=10, b=5, other=50) == {"other": 55}
    assert shown(busiest, a=10, b=300, other=51) == {"b": 295, "other": 56}


def test_disk_that_is_full_pauses_a_thousand_indexes(client: TestClient, outbox: Outbox) -> None:
    for relay in (1, 2):
        outbox.store().register_relay("host", relay, "1.0", now_ms())
    paused = [{"index": f"t{number}", "reason": "x", "since": number} for number in range(1, 1_001)]
    outbox.raw("UPDATE outbox_relays SET breakers = :b", b=json.dumps(paused))
    relays = scraped(client, "outbox_breaker_open")
    longest = {f"t{number}": 2 for number in range(1, MOST_INDEXES + 1)}
    assert relays == {"": 0, **longest, OTHER: 2 * (1_000 - MOST_INDEXES)}


def test_relay_that_has_paused_the_destination_is_none_that_has_paused_an_index(
    outbox: Outbox, engine: Engine, search_db: EmbeddedDestination
) -> None:
    outbox.store().register_relay("host", 1, "1.0", now_ms())
    outbox.raw("UPDATE outbox_relays SET breakers = :b", b='[{"index": null, "reason": "x", "since": 1}]')
    with client_of(engine, search_db) as client:
        assert scraped(client, "outbox_breaker_open") == {"": 1}
