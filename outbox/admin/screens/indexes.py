"""The indexes: which there are, and all that is known of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final, Literal

from pydantic import Field

from outbox import mappings
from outbox.admin.chosen import NotFound
from outbox.admin.context import AdminContext
from outbox.admin.overview import queue, verified
from outbox.admin.shapes import Breaker, Model, Overview, PausedPart, Period, Queue, ReindexJob, Verified
from outbox.admin.statistics import Names, summed
from outbox.entities.registry import EntityRegistry
from outbox.errors import DestinationError, shortened
from outbox.mappings import IndexDrift
from outbox.store import by_index, conflicts, jobs, verifications
from outbox.store.by_index import Waiting
from outbox.store.figures import DAY_MS, MINUTE_MS, Outcomes
from outbox.store.models import now_ms
from outbox.store.shown import moment
from outbox.store.store import Store
from outbox.store.upkeep import HOUR_MS

JOBS: Final = 10
VERIFICATIONS: Final = 10


class IndexLine(Model):
    """An index at a glance."""

    index: str
    entities: list[str] = Field(description="that are registered with it")
    unfinished: int = Field(description="rows that are pending or claimed")
    oldest_seconds: float | None = Field(description="how long the oldest of them waits")
    dead: int
    paused: bool = Field(description="by an operator: it, or all rows")
    paused_tenants: list[str] = Field(description="whose rows an operator has paused, while those of others flow")
    blocked: str | None = Field(description="why a relay sends it nothing; null: it takes rows")


class PhysicalIndex(Model):
    """A physical index that rows go to."""

    name: str
    role: str = Field(description="live: readers get it; new: a reindex fills it; old: kept for a rollback")
    since: datetime
    refused: int = Field(description="documents that an old one did not take")


class MappingsSeen(Model):
    """An index compared with what is registered of it."""

    verdict: Literal["same", "different", "unknown"]
    differences: list[str]
    remedy: str | None = Field(description="the commands that make it as registered")
    error: str | None = Field(description="why it is unknown")


class Finished(Model):
    """Rows that came to their end in an hour, or on a day."""

    at: datetime
    done: int
    dead: int


class IndexDetails(Model):
    """All that is known of one index."""

    index: str
    as_of: datetime
    entities: list[str]
    queue: Queue
    paused: list[PausedPart] = Field(description="what operators have paused of it")
    breakers: list[Breaker] = Field(description="why relays send it nothing; index null: the destination is away")
    held: str | None = Field(description="its rows wait since others have filled it: why, and what to do")
    quarter: Period = Field(description="the last 15 minutes")
    hour: Period
    day: Period
    hours: list[Finished] = Field(description="the last 24, the last one is not over")
    days: list[Finished] = Field(description="the last seven, of UTC, the last one is not over")
    physical: list[PhysicalIndex]
    readers: list[str] | None = Field(description="what its readers get; null: the destination does not answer")
    mappings: MappingsSeen
    reindexes: list[ReindexJob] = Field(description="the newest")
    verifications: list[Verified] = Field(description="the newest of its entities")


def index_list(admin: AdminContext, name: str = "") -> list[IndexLine]:
    """All indexes whose name has `name` in it; those that need somebody come first."""
    overview = admin.overviews.newest()
    with admin.database.store() as store:
        waiting = by_index.waiting(store, now_ms())
        held = {each.index: each.reason for each in conflicts.held_by_others(store)}
    blocked = {each.index: each.reason for each in _breakers(overview) if each.index is not None} | held
    lines = [_line(admin.registry, index, waiting[index], overview, blocked) for index in waiting if name in index]
    return sorted(lines, key=lambda line: (not _needs_somebody(line), line.index))


def _needs_somebody(line: IndexLine) -> bool:
    return bool(line.dead or line.paused or line.paused_tenants or line.blocked)


def _line(
    registry: EntityRegistry | None, index: str, waiting: Waiting, overview: Overview, blocked: dict[str, str]
) -> IndexLine:
    parts = _paused(overview, index)
    return IndexLine(
        index=index,
        entities=_entities(registry, index),
        unfinished=waiting.unfinished,
        oldest_seconds=None if waiting.oldest_ms is None else waiting.oldest_ms / 1000,
        dead=waiting.dead,
        paused=any(each.tenant_id is None for each in parts),
        paused_tenants=[each.tenant_id for each in parts if each.tenant_id is not None],
        blocked=blocked.get(index),
    )


def index_details(admin: AdminContext, index: str) -> IndexDetails:
    """Raises `NotFound` for an index that no row names and none was sent to."""
    overview, now = admin.overviews.newest(), now_ms()
    with admin.database.store() as store:
        backlog, physical = by_index.backlog(store, index, now), by_index.targets(store, index)
        if not (physical or backlog.unfinished or backlog.dead or _entities(admin.registry, index)):
            raise NotFound(f"there is no index {shortened(index)}: no row was sent to it, waits for it or is dead")
        reindexes = [
            ReindexJob.of(store, each, admin.settings.admin_hide) for each in jobs.newest_of(store, index, JOBS)
        ]
        ended = admin.of_indexes.read(store, index, now)
        held = next((each.reason for each in conflicts.held_by_others(store) if each.index == index), None)
        compared = _verifications(store, _entities(admin.registry, index))
    readers, seen = _asked(admin, overview, index, physical[0].name if physical else index)
    return IndexDetails(
        index=index,
        as_of=moment(now),
        entities=_entities(admin.registry, index),
        queue=queue(backlog),
        paused=_paused(overview, index),
        breakers=[each for each in _breakers(overview) if each.index in (None, index)],
        held=held,
        quarter=Period.of(ended.outcomes(now - 15 * MINUTE_MS)),
        hour=Period.of(ended.outcomes(now - HOUR_MS)),
        day=Period.of(ended.outcomes(now - now % HOUR_MS - DAY_MS)),
        hours=_finished(ended.periods, now, HOUR_MS, 24),
        days=_finished(ended.days, now, DAY_MS, 7),
        physical=[
            PhysicalIndex(name=each.name, role=each.role, since=moment(each.since), refused=each.refused)
            for each in physical
        ],
        readers=readers,
        mappings=seen,
        reindexes=reindexes,
        verifications=compared,
    )


def _entities(registry: EntityRegistry | None, index: str) -> list[str]:
    return [] if registry is None else [entity.name for entity in registry.of_index(index)]


def _breakers(overview: Overview) -> Iterable[Breaker]:
    return (breaker for relay in overview.relays if relay.running for breaker in relay.breakers)


def _paused(overview: Overview, index: str) -> list[PausedPart]:
    """What is paused of an index: all rows first, then it, then tenants."""
    of_all = overview.paused
    found = [each for each in overview.pauses if each.index in (None, index)]
    if of_all is not None:
        whole = PausedPart(
            index=None, tenant_id=None, since=of_all.since, by=of_all.by or "?", reason=of_all.reason or "?"
        )
        return [whole, *found]
    return found


def _verifications(store: Store, entities: Iterable[str]) -> list[Verified]:
    found = [each for each in verifications.newest(store) if each["finished_at"] and {*entities} & {*each["entities"]}]
    return [verified(each) for each in found[:VERIFICATIONS]]


def _finished(sums: Mapping[int, Names], now: int, span_ms: int, number: int) -> list[Finished]:
    last = now - now % span_ms
    found = []
    for start in range(last - (number - 1) * span_ms, last + 1, span_ms):
        names = [each for at, each in sums.items() if start <= at < start + span_ms]
        of_span = Outcomes.of(summed(counts for each in names for counts in each.values()))
        found.append(Finished(at=moment(start), done=of_span.done, dead=of_span.dead))
    return found


def _asked(admin: AdminContext, overview: Overview, index: str, target: str) -> tuple[list[str] | None, MappingsSeen]:
    """What the destination says of an index: what its readers get, and how it differs from what is registered."""

    def question() -> tuple[list[str], IndexDrift | None]:
        readers = admin.destination.inspect_index(index, target).readers
        with admin.database.store() as store:
            drift = mappings.drift_of(store, admin.destination, admin.registry or EntityRegistry(), index)
        return list(readers), drift

    if overview.destination is not None and not overview.destination.reachable:
        return None, _unknown("destination does not answer")
    try:
        readers, drift = admin.questions.ask(question)
    except DestinationError as error:
        return None, _unknown(str(error))
    if drift is None:
        known = _entities(admin.registry, index)
        return readers, _unknown("no rows went to it so far" if known else "no registered entity has it")
    if drift.unknown:
        return readers, _unknown(drift.unknown)
    return readers, MappingsSeen(
        verdict="different" if drift.differences else "same",
        differences=[str(each) for each in drift.differences],
        remedy=drift.remedy if drift.differences else None,
        error=None,
    )


def _unknown(why: str) -> MappingsSeen:
    return MappingsSeen(verdict="unknown", differences=[], remedy=None, error=why)
