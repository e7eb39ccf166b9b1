"""/metrics: figures in the words of Prometheus. The alert rules that ship with the package use these names."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from outbox.admin.alerts import ALERTS
from outbox.admin.busiest import OTHER, BusiestIndexes
from outbox.admin.overview import OverviewCache
from outbox.admin.shapes import Overview
from outbox.admin.statistics import Counts, IndexAction
from outbox.store.figures import Outcomes
from outbox.store.models import LATENCY_BOUNDS_MS

MOST_INDEXES: Final = 50
MOST_HISTOGRAMS: Final = 20
"""Fewer: the histogram of one index is fifteen time series, all its counters together are five."""


class Metrics(Collector):
    """Reads the tables whenever Prometheus asks. `indexes`: of entities, which have a label in any case."""

    def __init__(self, overviews: OverviewCache, indexes: Collection[str] = ()) -> None:
        self._overviews = overviews
        self._lock = threading.Lock()  # two that ask at once: the counts of the second must not be older
        self._busiest, self._measured = (BusiestIndexes(most, indexes) for most in (MOST_INDEXES, MOST_HISTOGRAMS))
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """Raises `DatabaseUnavailable`."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        return []  # else the registry would collect once at registration

    def collect(self) -> Iterator[Metric]:
        overview = self._overviews.newest()
        before = {each.entity: each.done + each.dead for each in overview.entities}
        with self._lock:
            counted = self._overviews.by_index_and_action()
            counters = self._busiest.labelled(counted, before)
            latencies = self._measured.labelled(counted, before)
        yield from _gauges(overview)
        yield from _relays(overview)
        yield from _reindexes(overview)
        yield from _counters(counters)
        yield _latency(latencies)


def _gauges(overview: Overview) -> Iterator[Metric]:
    rows = GaugeMetricFamily("outbox_rows", "Rows that are not done, by state", labels=["state"])
    for state in ("fresh", "retrying", "claimed", "dead"):
        rows.add_metric([state], getattr(overview.queue, state))
    yield rows
    yield _gauge("outbox_unfinished_rows", "Rows that are pending or claimed: the depth", overview.queue.unfinished)
    yield _gauge(
        "outbox_oldest_unfinished_age_seconds",
        "How long the oldest unfinished row waits; 0: none does",
        overview.queue.oldest_seconds or 0.0,
    )
    yield _gauge("outbox_paused", "1: an operator keeps all relays from claiming", overview.paused is not None)
    yield _gauge("outbox_database_bytes", "Size of the database file", overview.database_bytes)
    if overview.destination is not None:
        yield _gauge("outbox_destination_up", "1: the destination answers", overview.destination.reachable)
    alerts = GaugeMetricFamily("outbox_alert", "1: beyond its limit, as the dashboard says; 0: not", labels=["alert"])
    firing = {alert.name for alert in overview.alerts}
    for name in ALERTS:
        alerts.add_metric([name], name in firing)
    yield alerts
    if overview.verification is not None:
        found = overview.verification
        yield _gauge("outbox_verification_drift_documents", "Found wrong by the last verification", found.drift)
        yield _gauge("outbox_verification_finished_timestamp_seconds", "When it ended", found.finished_at.timestamp())


def _relays(overview: Overview) -> Iterator[Metric]:
    running = [relay for relay in overview.relays if relay.running]
    yield _gauge("outbox_relays", "Relays that run", len(running))
    breakers = GaugeMetricFamily(
        "outbox_breaker_open", "Relays that have paused an index; empty: the destination", labels=["index"]
    )
    paused = sorted((breaker.since, breaker.index) for relay in running for breaker in relay.breakers if breaker.index)
    named = list(dict.fromkeys(index for _, index in paused))[:MOST_INDEXES]  # those that are paused longest
    open_ = Counter(index if index in named else OTHER for _, index in paused)
    open_[""] = sum(breaker.index is None for relay in running for breaker in relay.breakers)
    for index, number in sorted(open_.items()):
        breakers.add_metric([index], number)
    yield breakers
    waited = CounterMetricFamily(
        "outbox_relay_lock_wait_seconds", "That a relay waited for the write lock of the database", labels=["relay"]
    )
    held = CounterMetricFamily("outbox_relay_lock_held_seconds", "That a relay held it", labels=["relay"])
    longest = GaugeMetricFamily(
        "outbox_relay_lock_longest_seconds", "The longest that a relay held it in one transaction", labels=["relay"]
    )
    for relay in running:
        name = f"{relay.host}:{relay.pid}"
        waited.add_metric([name], relay.lock.waited_seconds)
        held.add_metric([name], relay.lock.held_seconds)
        longest.add_metric([name], relay.lock.longest_seconds)
    yield from (waited, held, longest)


def _reindexes(overview: Overview) -> Iterator[Metric]:
    labels = ["reindex", "index", "phase"]
    documents = GaugeMetricFamily("outbox_reindex_documents", "Written so far by a running reindex", labels=labels)
    total = GaugeMetricFamily("outbox_reindex_expected_documents", "That it will write, about", labels=labels)
    for job in overview.reindexes:
        documents.add_metric([str(job.job_id), job.index, job.phase], job.documents)
        total.add_metric([str(job.job_id), job.index, job.phase], job.total_documents)
    yield documents
    yield total


def _counters(counted: Mapping[IndexAction, Counts]) -> Iterator[Metric]:
    labels = ["index", "action"]
    finished = CounterMetricFamily("outbox_finished_rows", "Rows that came to an end", labels=[*labels, "outcome"])
    retries = CounterMetricFamily("outbox_retries", "Failures that are tried again", labels=labels)
    lost = CounterMetricFamily("outbox_lost_claims", "Rows that another relay had taken over", labels=labels)
    for key, counts in sorted(counted.items()):
        outcomes = Outcomes.of(counts)
        finished.add_metric([*key, "done"], outcomes.done - outcomes.superseded)
        finished.add_metric([*key, "superseded"], outcomes.superseded)
        finished.add_metric([*key, "dead"], outcomes.dead)
        retries.add_metric(list(key), outcomes.retried)
        lost.add_metric(list(key), outcomes.lost_claims)
    yield from (finished, retries, lost)


def _latency(counted: Mapping[IndexAction, Counts]) -> Metric:
    latency = HistogramMetricFamily(
        "outbox_delivery_latency_seconds",
        "From the commit of a row until its end was recorded",
        labels=["index", "action"],
    )
    for key, counts in sorted(counted.items()):
        outcomes = Outcomes.of(counts)
        buckets, within = [], 0
        for bound, number in zip(LATENCY_BOUNDS_MS, outcomes.latency, strict=True):
            within += number
            buckets.append((str(bound / 1000), float(within)))
        latency.add_metric(list(key), [*buckets, ("+Inf", float(outcomes.done))], outcomes.latency_sum_ms / 1000)
    return latency


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, value=float(value))
