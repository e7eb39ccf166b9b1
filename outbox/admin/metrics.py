"""/metrics: figures in the words of Prometheus. The alert rules that ship with the package use these names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from outbox.admin.alerts import ALERTS
from outbox.admin.ledger import Lane
from outbox.admin.overview import Overviews
from outbox.admin.shapes import Overview
from outbox.store.figures import Outcomes
from outbox.store.models import LATENCY_BOUNDS_MS


class Metrics(Collector):
    """Reads the tables whenever Prometheus asks."""

    def __init__(self, overviews: Overviews) -> None:
        self._overviews = overviews
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """Raises `DatabaseUnavailable`."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        return []  # else the registry would collect once at registration

    def collect(self) -> Iterator[Metric]:
        seen, counted = self._overviews.newest(), self._overviews.lanes()
        yield from _gauges(seen)
        yield from _relays(seen)
        yield from _reindexes(seen)
        yield from _counters(counted)


def _gauges(seen: Overview) -> Iterator[Metric]:
    rows = GaugeMetricFamily("outbox_rows", "Rows that are not done, by state", labels=["state"])
    for state in ("fresh", "retrying", "claimed", "dead"):
        rows.add_metric([state], getattr(seen.queue, state))
    yield rows
    yield _gauge("outbox_unfinished_rows", "Rows that are pending or claimed: the depth", seen.queue.unfinished)
    yield _gauge(
        "outbox_oldest_unfinished_age_seconds",
        "How long the oldest unfinished row waits; 0: none does",
        seen.queue.oldest_seconds or 0.0,
    )
    yield _gauge("outbox_paused", "1: an operator keeps all relays from claiming", seen.paused is not None)
    yield _gauge("outbox_database_bytes", "Size of the database file", seen.database_bytes)
    if seen.destination is not None:
        yield _gauge("outbox_destination_up", "1: the search engine answers", seen.destination.reachable)
    alerts = GaugeMetricFamily("outbox_alert", "1: beyond its limit, as the dashboard says; 0: not", labels=["alert"])
    firing = {alert.name for alert in seen.alerts}
    for name in ALERTS:
        alerts.add_metric([name], name in firing)
    yield alerts
    if seen.verification is not None:
        found = seen.verification
        yield _gauge("outbox_verification_drift_documents", "Found wrong by the last verification", found.drift)
        yield _gauge("outbox_verification_finished_timestamp_seconds", "When it ended", found.finished_at.timestamp())


def _relays(seen: Overview) -> Iterator[Metric]:
    running = [relay for relay in seen.relays if relay.running]
    yield _gauge("outbox_relays", "Relays that run", len(running))
    breakers = GaugeMetricFamily(
        "outbox_breaker_open", "Relays that have paused an index; empty: the destination", labels=["index"]
    )
    paused = [breaker.index or "" for relay in running for breaker in relay.breakers]
    for index in sorted({"", *paused}):
        breakers.add_metric([index], paused.count(index))
    yield breakers


def _reindexes(seen: Overview) -> Iterator[Metric]:
    labels = ["reindex", "index", "phase"]
    documents = GaugeMetricFamily("outbox_reindex_documents", "Written so far by a running reindex", labels=labels)
    total = GaugeMetricFamily("outbox_reindex_expected_documents", "That it will write, about", labels=labels)
    for job in seen.reindexes:
        documents.add_metric([str(job.job_id), job.index, job.phase], job.documents)
        total.add_metric([str(job.job_id), job.index, job.phase], job.total_documents)
    yield documents
    yield total


def _counters(counted: Mapping[Lane, Outcomes]) -> Iterator[Metric]:
    by_lane = ["index", "action"]
    finished = CounterMetricFamily("outbox_finished_rows", "Rows that came to an end", labels=[*by_lane, "outcome"])
    retries = CounterMetricFamily("outbox_retries", "Failures that are tried again", labels=by_lane)
    lost = CounterMetricFamily("outbox_lost_claims", "Rows that another relay had taken over", labels=by_lane)
    latency = HistogramMetricFamily(
        "outbox_delivery_latency_seconds", "From the commit of a row until its end was recorded", labels=by_lane
    )
    for lane, outcomes in sorted(counted.items()):
        finished.add_metric([*lane, "done"], outcomes.done - outcomes.superseded)
        finished.add_metric([*lane, "superseded"], outcomes.superseded)
        finished.add_metric([*lane, "dead"], outcomes.dead)
        retries.add_metric(list(lane), outcomes.retried)
        lost.add_metric(list(lane), outcomes.lost_claims)
        buckets, seen = [], 0
        for bound, number in zip(LATENCY_BOUNDS_MS, outcomes.latency, strict=True):
            seen += number
            buckets.append((str(bound / 1000), float(seen)))
        latency.add_metric(list(lane), [*buckets, ("+Inf", float(outcomes.done))], outcomes.latency_sum_ms / 1000)
    yield from (finished, retries, lost, latency)


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, value=float(value))
