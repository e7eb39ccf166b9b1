"""One job that this process works on: how far it is, its lease, what it waits for, what it writes and what is refused.

The steps are functions of it; see `outbox.reindex.steps`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from loguru import logger

from outbox.destinations.base import Destination, Operation
from outbox.entities.loader import Row
from outbox.entities.registry import EntityRegistry
from outbox.errors import DestinationError, DestinationUnanswered
from outbox.reindex.selection import Selection
from outbox.reindex.writer import Traffic, Writer
from outbox.store import jobs
from outbox.store.jobs import Job, JobLost
from outbox.store.models import JobState, now_ms
from outbox.store.store import Store

NOTE_EVERY_MS: Final = 500
LONG_CALL_MS: Final = 600_000
LOOK_EVERY_S: Final = 0.05
MOST_NAMED: Final = 5

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is. `rate` in documents a second, `eta` in seconds; both of the scan."""

    job: int
    index: str
    phase: str
    rows: int
    total: int
    rate: float = 0.0
    eta: float | None = None
    note: str = ""


class LeftToRelays(Exception):
    """Raised from within the work on a job by a relay that ends: another relay resumes the job."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What every job is worked on with. See `Reindexer` for the meaning of the options."""

    store: Store
    destination: Destination
    registry: EntityRegistry
    rate: float | None
    requests: int
    request_bytes: int
    lease_ms: int
    interrupt: Callable[[], None]


class Work:
    """One job, from the moment at which this process took its lease. For one thread.

    `job` is its row as it was written last, and as it will be written with the next note. Whatever writes it renews the
    lease, and raises `JobLost` once the job is no longer this process's.
    """

    def __init__(self, job: Job, selection: Selection, resources: Resources) -> None:
        self.job, self.selection = job, selection
        self.store, self.destination, self.registry = resources.store, resources.destination, resources.registry
        self.rate = resources.rate
        self._resources = resources
        self._unwritten: dict[str, Any] = {}
        self._noted_at = now_ms()
        self._trouble: str | None = None
        self.traffic = Traffic(self.store.highest_id())

    # -- how far it is ------------------------------------------------------------------------------------------

    def progress(
        self, rows: int | None = None, total: int | None = None, rate: float = 0.0, note: str = ""
    ) -> Progress:
        """How far the job is, for those who follow it."""
        job = self.job
        total = job.total if total is None else total
        rows = job.documents if rows is None else rows
        eta = (total - rows) / rate if rate and total >= rows else None
        return Progress(job.id, job.index_name, job.phase, rows, max(total, rows), rate, eta, note)

    def note(self, **columns: Any) -> None:
        """Record how far the job is: at once if half a second has passed since the last time, else with the next note.

        Also what `interrupt` raises ends the work here.
        """
        self._resources.interrupt()
        self._unwritten |= columns
        self.job = replace(self.job, **columns)
        now = now_ms()
        if now - self._noted_at >= NOTE_EVERY_MS or now < self._noted_at:
            self._write_note(now)

    def note_now(self, **columns: Any) -> None:
        """Record how far the job is, at once."""
        self._resources.interrupt()
        self._unwritten |= columns
        self._write_note(now_ms())

    def _write_note(self, now: int) -> None:
        columns, self._unwritten = self._unwritten, {}
        self._update(now, self._resources.lease_ms, **columns)
        self._noted_at = now

    def _update(self, now: int, lease_ms: int, **columns: Any) -> None:
        self.job = jobs.update(self.store, self.job, now, lease_ms, durable="phase" in columns, **columns)

    def commit(self, change: Callable[..., Job], **given: Any) -> None:
        """Make a change to the tables that takes the job a step further: one of the functions of `jobs`."""
        self.job = change(self.store, self.job, now_ms(), self._resources.lease_ms, **given)

    def end(self, state: JobState) -> None:
        """The job has ended, unless another process has ended it meanwhile."""
        with suppress(JobLost):
            self.job = jobs.finish(self.store, self.job, state, now_ms())

    # -- waiting ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises what ends the work on the job: see `Reindexer`."""
        self._resources.interrupt()

    def sleep(self, seconds: float) -> None:
        """Pause, and keep the lease meanwhile."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, NOTE_EVERY_MS / 1_000))
            self.note()

    def ask(self, call: Callable[[], T]) -> T:
        """Make an administrative call, again and again while the destination is away. Raises what it refuses."""
        while True:
            self.note_now()
            # A refresh, or a look at all versions, may outlast the lease; that a process was killed shows at once.
            self._update(now_ms(), max(self._resources.lease_ms, LONG_CALL_MS))
            try:
                answer = call()
            except DestinationError as error:
                self.wait_if_away(error)
            else:
                self.report(None)
                return answer

    def wait_if_away(self, error: DestinationError) -> None:
        """Pause before a call that got no answer in time, or a destination that is away, is tried again.

        Raises the error if it is a refusal instead.
        """
        if not isinstance(error, DestinationUnanswered) and self.destination.ping() is None:
            raise error
        self.report(str(error))
        self.sleep(1)

    def report(self, trouble: str | None) -> None:
        """Log that the destination takes nothing at present, and why; or that it does again. Once each."""
        if trouble and not self._trouble:
            logger.warning("{job} waits for the destination: {reason}", reason=trouble, **fields(self.job))
        elif self._trouble and not trouble:
            logger.info("{job} continues: the destination answers again", **fields(self.job))
        self._trouble = trouble

    # -- writing ------------------------------------------------------------------------------------------------

    def writer(self) -> Writer[Any]:
        """For this job's documents; it sends nothing once the job is no longer this process's."""
        return Writer(
            self.destination,
            self._resources.requests,
            self._resources.request_bytes,
            check=self.note,
            report=self.report,
        )

    def write(self, operations: Sequence[Operation]) -> list[str]:
        """Apply operations, waiting while the destination is away. Returns what it refuses, each as one line."""
        with self.writer() as writer:
            writer.send(operations, None)
            return [line for page in writer.drain() for line in page.refused]

    def operations(self, rows: Sequence[Row]) -> list[Operation]:
        """Write the documents of these rows, of those that have one in this index."""
        return [
            self.operation(row.place.document_id, row.document)
            for row in rows
            if row.place and row.place.index_name == self.job.index_name and isinstance(row.document, bytes)
        ]

    def operation(self, document_id: str, document: bytes | None) -> Operation:
        """Write one document, or delete it, unless the index holds something newer than the watermark."""
        target = self.job.target
        return Operation(target, target, document_id, self.job.watermark or 0, document, or_equal=True)

    def refuse(self, lines: Sequence[str]) -> int:
        """Count what cannot be written, and name the first in place. A new index must be whole: raises there."""
        if lines and self.job.new_index:
            raise DestinationError(f"index {self.job.target} would miss {lines[0]}")
        for line in lines[: max(0, MOST_NAMED - self.job.refused)]:
            logger.warning("{job}: {reason}", reason=line, **fields(self.job))
        return len(lines)

    def refuse_if_read(self, target: str) -> None:
        """Raises `DestinationError` where readers would lose the index if it were dropped."""
        name = self.job.index_name
        readers = self.destination.inspect_index(name, target).readers
        if target in readers:
            raise DestinationError(
                f"readers of {name} get {', '.join(readers)}, which this job may not drop: after a restore from a "
                f"backup run 'outbox-relay epoch advance', else make alias {name} point to {self.job.old_index}"
            )


def fields(job: Job) -> dict[str, Any]:
    """What log lines about a job carry; the text shows `job`."""
    return {"job": str(job), "reindex": job.id, "index": job.index_name}


def until_claims_end(store: Store, index: str) -> Iterator[None]:
    """Until the claims have ended that may still send to a physical index which rows no longer go to."""
    before = jobs.claims_on(store, index, now_ms())
    while before & jobs.claims_on(store, index, now_ms()):
        yield
        time.sleep(LOOK_EVERY_S)
