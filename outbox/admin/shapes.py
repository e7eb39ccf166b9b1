"""What goes out of the API, as pydantic models: the OpenAPI document is made of them, and of `outbox.admin.asked`."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from outbox.admin.hidden import without, without_value
from outbox.store import jobs
from outbox.store.figures import Outcomes
from outbox.store.jobs import Job
from outbox.store.models import JobState, now_ms
from outbox.store.shown import moment
from outbox.store.store import Store
from outbox.verify.lens import Look

Text = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\x00]*$")]
Number = Annotated[int, Field(ge=1, le=10**12)]


class Model(BaseModel):
    """snake_case here, camelCase on the wire; a member that is unknown is an error, not silence."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, Any]] | None = None


class ReindexStarted(Model):
    job_id: int
    status: str
    estimated_documents: int


class ReindexJob(Model):
    """A rebuild of an index."""

    job_id: int
    index: str
    status: str = Field(description="running, failing, cancelling, done, failed, cancelled")
    phase: str = Field(description="the step it is at: create, scan, sweep, check, swap, drop")
    old_index: str
    new_index: str | None = Field(description="null: it works in place")
    tenant_id: str | None
    from_date: str | None
    documents: int = Field(description="written so far")
    total_documents: int
    rate: float | None = Field(description="documents a second, on average since it began; null: none so far")
    eta_seconds: float | None = Field(description="until all are written at that rate; null: it does not write")
    removed: int
    refused: int
    abandoned: bool = Field(description="open, and no process works on it")
    error: str | None
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, store: Store, job: Job, hide: Collection[str]) -> ReindexJob:
        """`hide`: fields whose values are shown to nobody."""
        seconds = ((job.finished_at or job.updated_at) - job.created_at) / 1000
        rate = job.documents / seconds if job.documents and seconds > 0 else None
        writes = rate is not None and job.state == JobState.RUNNING and job.phase == "scan"
        return cls(
            job_id=job.id,
            index=job.index_name,
            status=job.state,
            phase=job.phase,
            old_index=job.old_index,
            new_index=job.new_index,
            tenant_id=job.tenant_id,
            from_date=job.since,
            documents=job.documents,
            total_documents=job.total,
            rate=rate,
            eta_seconds=max(0, job.total - job.documents) / rate if rate and writes else None,
            removed=job.removed,
            refused=job.refused,
            abandoned=job.is_open and jobs.is_abandoned(store, job, now_ms()),
            error=without_value(job.error, hide),
            created_at=moment(job.created_at),
            updated_at=moment(job.updated_at),
            finished_at=None if job.finished_at is None else moment(job.finished_at),
        )


class Event(Model):
    """A row of the outbox."""

    id: int
    action: str
    index: str
    document_id: str
    tenant_id: str | None
    entity: str | None
    state: str
    outcome: str | None
    attempts: int
    deliveries: int
    error_type: str | None
    error_field: str | None = Field(description="the field that the error names")
    error: str | None
    created_at: datetime
    available_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def columns(cls, row: dict[str, Any], hide: Collection[str]) -> dict[str, Any]:
        instants = {name: row[name] and moment(row[name]) for name in ("created_at", "available_at", "finished_at")}
        same = {name: row[name] for name in cls.model_fields if name in row}
        return same | {"index": row["index_name"], "error": without_value(row["error"], hide)} | instants

    @classmethod
    def of(cls, row: dict[str, Any], hide: Collection[str]) -> Event:
        """`hide`: fields whose values are shown to nobody."""
        return cls(**cls.columns(row, hide))


class Page(Model):
    """Rows, newest first."""

    items: list[Event]
    next_cursor: str | None = Field(description="for the parameter cursor; null: there are no more")


class Document(Model):
    """One document as the database and the index have it now."""

    index: str
    document_id: str
    entity: str | None = Field(description="which makes it; null: no registered entity has this index")
    expected: Any = Field(description="what the database says; null: it has no such row")
    held: Any = Field(description="what the index holds; null: no such document")
    version: int | None
    on_its_way: bool = Field(description="a change of it is not delivered yet")
    verdict: Literal["same", "missing", "different", "extra", "version", "failed", "unknown"]
    differs: list[str] = Field(description="paths of the fields that differ")
    error: str | None
    compared_without: str | None = Field(description="what of it cannot be read back, and was not compared")

    @classmethod
    def of(cls, found: Look, hide: Collection[str]) -> Document:
        known = found.unknown is None and found.entity is not None
        return cls(
            index=found.index,
            document_id=found.document_id,
            entity=found.entity,
            expected=without(found.expected, hide),
            held=without(found.held, hide),
            version=found.version,
            on_its_way=found.on_its_way,
            verdict=found.drift.kind.value if found.drift else "same" if known else "unknown",
            differs=list(found.differs),
            error=without_value(found.unknown or (found.drift.error if found.drift else None), hide),
            compared_without=found.compared_without,
        )


class Done(Model):
    """What an operator did."""

    id: int
    began_at: datetime
    ended_at: datetime | None = Field(description="null: it goes on, or was killed")
    acted_by: str
    action: str = Field(description="as the command is called")
    about: str
    affected: int | None = Field(description="rows or documents; null: it is not about any")
    error: str | None

    @classmethod
    def of(cls, row: dict[str, Any], hide: Collection[str]) -> Done:
        instants = {name: row[name] and moment(row[name]) for name in ("began_at", "ended_at")}
        return cls(**(row | instants | {"error": without_value(row["error"], hide)}))


class Retried(Model):
    selected: int = Field(description="rows that fit")
    pending: int = Field(description="rows that are tried again")
    superseded: int = Field(description="rows whose document was replaced meanwhile: done")
    overtaken: dict[str, int] = Field(description="rows that stay dead, and the later row that was delivered")


class Removed(Model):
    selected: int = Field(description="rows that fit")
    removed: int


class Paused(Model):
    paused: bool
    changed: bool


class Accepted(Model):
    status: Literal["running"] = "running"


class Alert(Model):
    name: str
    text: str
    remedy: str


class Queue(Model):
    unfinished: int = Field(description="rows that are pending or claimed: the depth")
    fresh: int = Field(description="pending, and never claimed so far")
    retrying: int = Field(description="pending, for another attempt or behind an earlier row of their document")
    claimed: int
    dead: int
    oldest_seconds: float | None = Field(description="how long the oldest unfinished row waits")


class PausedPart(Model):
    """Rows that operators have paused: of an index, of a tenant, or of a tenant in an index."""

    index: str | None = Field(description="null: every index")
    tenant_id: str | None = Field(description="null: rows of every tenant")
    since: datetime
    by: str
    reason: str


class PausedSince(Model):
    since: datetime
    by: str | None
    reason: str | None


class DestinationSeen(Model):
    reachable: bool
    product: str
    version: str
    status: str
    error: str | None
    as_of: datetime


class Breaker(Model):
    """What a relay has paused. `index`: null for the destination as a whole."""

    index: str | None
    reason: str
    since: datetime


class LockTimes(Model):
    """What a relay has asked of the write lock of the database since it started."""

    waited_seconds: float
    held_seconds: float
    longest_seconds: float = Field(description="the longest that one transaction held it")


class Relay(Model):
    id: int
    host: str
    pid: int
    version: str
    started_at: datetime
    silent_seconds: float = Field(description="since its last sign of life")
    running: bool = Field(description="false: silent for too long, it was killed or hangs")
    lock: LockTimes
    breakers: list[Breaker]


class Period(Model):
    """What became of rows in a span of time."""

    done: int
    dead: int
    retried: int
    superseded: int
    lost_claims: int
    failure_rate: float | None = Field(description="part of the finished rows that died; null: none finished")
    average_ms: float | None = Field(description="from the commit of a row to its end")
    p50_ms: float | None
    p99_ms: float | None = Field(description="60000: that or more")

    @classmethod
    def columns(cls, outcomes: Outcomes) -> dict[str, Any]:
        return {
            "done": outcomes.done,
            "dead": outcomes.dead,
            "retried": outcomes.retried,
            "superseded": outcomes.superseded,
            "lost_claims": outcomes.lost_claims,
            "failure_rate": outcomes.failure_rate,
            "average_ms": outcomes.average_ms,
            "p50_ms": outcomes.quantile_ms(0.5),
            "p99_ms": outcomes.quantile_ms(0.99),
        }

    @classmethod
    def of(cls, outcomes: Outcomes) -> Period:
        return cls(**cls.columns(outcomes))


class Periods(Model):
    """Of the day and the week the statistics are kept by hour: those begin with a full hour."""

    hour: Period
    day: Period
    week: Period


class EntityPeriod(Period):
    """The last day of an entity, or of an index without one."""

    entity: str
    hours: list[int] = Field(description="rows that ended in each of the last 24 hours; the last is not over")
    days: list[int] = Field(description="rows that ended on each of the last seven days, of UTC")


class TenantLag(Model):
    tenant_id: str | None
    rows: int
    oldest_seconds: float


class Minute(Model):
    at: datetime
    unfinished: int | None = Field(description="the highest that was recorded; null: none was")
    done: int
    dead: int


class DeadType(Model):
    index: str
    error_type: str
    rows: int


class Comparison(Model):
    """What a comparison of index and database has found."""

    by: str
    entities: list[str]
    tenant_id: str | None
    sample: float
    documents: int
    drift: int
    missing: int
    different: int
    extra: int
    version: int
    failed: int
    in_flight: int
    repaired: int
    error: str | None


class Verified(Comparison):
    """The last comparison of index and database that is over."""

    finished_at: datetime


class DriftedIndex(Model):
    """An index that has other mappings or settings than the registered ones."""

    index: str
    found: str
    remedy: str


class Overview(Model):
    """Everything at a glance."""

    as_of: datetime
    alerts: list[Alert]
    queue: Queue
    paused: PausedSince | None = Field(description="that all rows are paused")
    pauses: list[PausedPart] = Field(description="indexes and tenants that are paused")
    destination: DestinationSeen | None = Field(description="null: not asked so far")
    relays: list[Relay]
    periods: Periods
    entities: list[EntityPeriod]
    tenants: list[TenantLag] = Field(description="that wait, longest first; at most 50")
    history: list[Minute] = Field(description="the last three hours")
    dead_types: list[DeadType]
    reindexes: list[ReindexJob] = Field(description="those that have not ended")
    verification: Verified | None
    mappings: list[DriftedIndex] = Field(description="indexes that are not as registered, as of the last minute or so")
    database_bytes: int
