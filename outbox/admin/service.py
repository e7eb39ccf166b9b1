"""What an operator can do from the API and the dashboard, and the log of who did it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from loguru import logger

from outbox import logs, tenants
from outbox.admin.background import BackgroundTasks
from outbox.admin.chosen import NotFound, chosen, spellings
from outbox.admin.database import Database
from outbox.admin.followed import FollowedVerifications
from outbox.destinations.base import Destination
from outbox.entities.registry import EntityRegistry
from outbox.errors import ConfigurationError, DestinationError, OutboxError, ReindexFailed
from outbox.reindex.reindexer import Reindexer
from outbox.reindex.selection import Selection, rows_of, select
from outbox.settings import Settings
from outbox.store import audit, jobs, operators, pauses
from outbox.store.audit import Note
from outbox.store.jobs import Job
from outbox.store.models import State, now_ms
from outbox.store.operators import Report, Retried
from outbox.store.pauses import Pause
from outbox.store.store import Store
from outbox.verify import Verification, lens, share
from outbox.verify.lens import Look

LONGEST_START_S: Final = 10.0
"""A request for a reindex is answered within that time, whether the destination answers or not."""


@dataclass(frozen=True, slots=True)
class Started:
    """A reindex that has begun. `estimated`: documents that it will write, about."""

    job: Job
    estimated: int


class AdminService:
    """Acts for operators. May be used from several threads. `by`, everywhere: who asked, for the log and the tables.

    Raises `DatabaseUnavailable` and `SchemaError` as `Database.store` says.
    """

    def __init__(
        self, database: Database, settings: Settings, destination: Destination, registry: EntityRegistry | None
    ) -> None:
        self._database, self._settings = database, settings
        self._destination, self._registry = destination, registry
        self._background = BackgroundTasks()
        self.followed = FollowedVerifications()

    def stop(self) -> None:
        """Have what runs in the background end where it is."""
        self._background.stop()

    # -- pausing ------------------------------------------------------------------------------------------------

    def pause(self, reason: str, by: str, *, index: str | None = None, tenant: str | None = None) -> Pause:
        """Everything, an index, a tenant or both. Raises `ConfigurationError` for an index that rows never went to, and
        `UnknownTenant`."""
        paused = Pause(index, tenant, now_ms(), by, reason)
        spelled = spellings(self._registry, tenant)
        with self._database.store() as store:
            if index is not None:
                pauses.require_index(store, index)
            if tenant is not None:
                tenants.require(store, self._registry, tenant)
            told = audit.described({"index": index, "tenant": tenant, "reason": reason})
            with audit.noted(store, by, "pause", told):
                pauses.pause(store, reason, by, paused.since, index=index, tenants=spelled)
        text = "paused by {by}: {reason}" if paused.is_of_all else "{what} paused by {by}: {reason}"
        logger.warning(text, what=logs.safe(paused.what), by=logs.safe(by), reason=logs.safe(reason))
        return paused

    def resume(self, by: str, *, index: str | None = None, tenant: str | None = None) -> bool:
        """What was paused by the same words. False if it was not."""
        with self._noted(by, "resume", index=index, tenant=tenant) as (store, _):
            resumed = pauses.resume(store, index=index, tenants=spellings(self._registry, tenant))
        if resumed:
            part = Pause(index, tenant, 0, by, "")
            text = "resumed by {by}" if part.is_of_all else "{what} resumed by {by}"
            logger.info(text, what=logs.safe(part.what), by=logs.safe(by))
        return resumed

    # -- dead and pending rows ----------------------------------------------------------------------------------

    def retry(self, by: str, **selection: Any) -> Retried:
        """Put dead rows back to pending, see `operators.retry_dead`. Raises as `chosen` does."""
        with self._noted(by, "dead retry", **selection) as (store, note):
            rows = chosen(store, self._registry, State.DEAD, **selection)
            result = operators.retry_dead(store, rows, now_ms(), report=note.add)
            note.affected = len(note.ids)
        logger.info(
            "{rows} retried by {by}; selection: {selection}",
            rows=logs.Rows(result.pending),
            by=logs.safe(by),
            selection=logs.safe(audit.described(selection)),
        )
        return result

    def discard(self, by: str, **selection: Any) -> int:
        """Remove dead rows for good. Returns their number. Raises as `chosen` does."""
        return self._remove(operators.discard_dead, "dead discard", "discarded", State.DEAD, by, selection)

    def purge(self, by: str, **selection: Any) -> int:
        """Remove pending rows for good. Returns their number. Raises as `chosen` does."""
        return self._remove(operators.purge, "purge", "purged", State.PENDING, by, selection)

    def _remove(
        self,
        remove: Callable[[Store, Sequence[int], Report], int],
        action: str,
        what: str,
        state: State,
        by: str,
        selection: dict[str, Any],
    ) -> int:
        with self._noted(by, action, **selection) as (store, note):
            rows = chosen(store, self._registry, state, **selection)
            try:
                note.affected = remove(store, rows, note.add)
            finally:
                _log_removal(what, len(note.ids), state, by, selection)
        return len(note.ids)

    def count(self, state: State, **selection: Any) -> int:
        """How many rows that would be. Raises as `chosen` does."""
        with self._database.store() as store:
            return len(chosen(store, self._registry, state, **selection))

    # -- one document -------------------------------------------------------------------------------------------

    def look(self, index: str, document_id: str) -> Look:
        """One document as the database and the index have it now."""
        with self._database.store() as store:
            return lens.look(store, self._destination, self._registry, index, document_id)

    def deliver_again(self, by: str, index: str, document_id: str) -> None:
        """Have a relay make one document anew, see `lens.deliver_again`."""
        with self._noted(by, "deliver again", index=index, document=document_id) as (store, _):
            lens.deliver_again(store, self._destination, self._registry, index, document_id)
        logger.info(
            "{document} delivered again by {by}", document=logs.safe(f"{index}/{document_id}"), by=logs.safe(by)
        )

    # -- reindex ------------------------------------------------------------------------------------------------

    def reindex(
        self, by: str, entity: str, *, tenant: str | None = None, since: str | None = None, keep_old: bool = False
    ) -> Started:
        """Begin to rebuild the indexes of an entity, one after another. Returns the first job.

        Raises `ConfigurationError` for what does not exist, `ReindexFailed` if it cannot begin, and `DestinationError`
        if the destination does not answer in time: nothing has begun then, and nothing will.
        """
        registry = self._required_registry()
        with self._database.store() as store:
            chosen = select(store, registry, entities=[entity], tenant=tenant, since=since, keep_old=keep_old)
            estimated = sum(rows_of(store, each) for each in chosen)
            for each in chosen:
                if (job := jobs.open_job(store, each.index)) and not jobs.is_abandoned(store, job, now_ms()):
                    raise ReindexFailed(f"{job} is running already, at step '{job.phase}'")
        start = _StartReport()

        def work() -> None:
            told = {"entity": entity, "tenant": tenant, "since": since, "keep_old": keep_old}
            try:
                with self._noted(by, "reindex", **told) as (store, _):
                    self._rebuild(store, registry, chosen, start)
            except OutboxError as error:
                if not start.report(0, error) or start.job:
                    raise
            finally:
                start.report(0)

        self._background.start(work, f"reindex of {entity}, begun by {by}")
        if not start.wait(LONGEST_START_S):
            raise DestinationError(
                f"the destination has not answered within {LONGEST_START_S:g} s: the reindex of {entity} does not "
                "begin; ask again when it answers"
            )
        if start.error is not None:
            raise start.error
        logger.info("reindex of {entity} begun by {by}", entity=logs.safe(entity), by=logs.safe(by))
        with self._database.store() as store:
            job = jobs.find(store, start.job)
        if job is None:
            raise NotFound(f"nothing of {entity} has an index so far: there is nothing to rebuild")
        return Started(job, estimated)

    def _rebuild(
        self, store: Store, registry: EntityRegistry, chosen: Sequence[Selection], start: _StartReport
    ) -> None:
        store.pin()
        reindexer = self._reindexer(store, registry)
        for each in chosen:
            number = 0
            with closing(reindexer.run(each)) as steps:
                for step in steps:
                    number = step.job
                    if not start.report(number):
                        break
            if start.given_up and number:
                raise ReindexFailed(f"{reindexer.cancel(number)}: the destination did not answer in time")

    def cancel(self, by: str, number: int) -> Job:
        """Have a reindex stopped and its new index removed. Raises `NotFound`, or `ReindexFailed` if it is too late."""
        with self._database.store() as store:
            job = jobs.find(store, number)
        if job is None:
            raise NotFound(f"there is no reindex {number}")
        if not job.is_open:
            raise ReindexFailed(f"{job} has ended already: {job.state}")

        def work() -> None:
            with self._noted(by, "reindex", cancel=number) as (store, _):
                self._reindexer(store, self._registry or EntityRegistry()).cancel(number)

        logger.warning(
            "{reindex} cancelled by {by}",
            reindex=logs.safe(str(job)),
            by=logs.safe(by),
            job=job.id,
            index=job.index_name,
        )
        self._background.start(work, f"cancelling of {job}")
        return job

    def _reindexer(self, store: Store, registry: EntityRegistry) -> Reindexer:
        settings = self._settings
        return Reindexer(
            store,
            self._destination,
            registry,
            requests=settings.concurrency,
            interrupt=self._background.raise_if_stopping,
            request_bytes=settings.batch_bytes,
            lease_s=settings.lease,
            request_timeout_s=settings.request_timeout,
        )

    # -- verify -------------------------------------------------------------------------------------------------

    def verify(
        self,
        by: str,
        *,
        entity: str | None = None,
        tenant: str | None = None,
        sample: float = 1.0,
        repair: bool = False,
    ) -> None:
        """Begin to compare entities with their indexes; what is found is recorded as the last verification.

        Raises `ConfigurationError` for what does not exist.
        """
        registry = self._required_registry()
        entities = [] if entity is None else [entity]

        def verification(store: Store) -> Verification:
            return Verification(
                store, self._destination, registry, entities=entities, tenant_id=tenant, sample=sample, repair=repair
            )

        with self._database.store() as store:
            verification(store)  # raises for what does not exist, before the request is answered

        told = {"entity": entity, "tenant": tenant, "sample": share(sample), "repair": repair}

        def work() -> None:
            with self._noted(by, "verify", **told) as (store, _):
                self.followed.follow(verification(store), by, stopping=lambda: self._background.stopping)

        compared = entity or "all entities"
        logger.info("verification of {entity} begun by {by}", entity=logs.safe(compared), by=logs.safe(by))
        self._background.start(work, f"verification begun by {by}")

    @contextmanager
    def _noted(self, by: str, action: str, **told: object) -> Iterator[tuple[Store, Note]]:
        """The outbox tables for what is done within, and its note in the audit."""
        with self._database.store() as store, audit.noted(store, by, action, audit.described(told)) as note:
            yield store, note

    def _required_registry(self) -> EntityRegistry:
        if self._registry is None:
            raise ConfigurationError("no registry of entities: set OUTBOX_ENTITIES, e.g. myapp.search:registry")
        return self._registry


class _StartReport:
    """How the thread of a reindex reports that it has begun, or why not; the first report counts."""

    def __init__(self) -> None:
        self._reported = threading.Event()
        self._lock = threading.Lock()
        self.given_up = False
        self.job = 0
        self.error: OutboxError | None = None

    def report(self, job: int, error: OutboxError | None = None) -> bool:
        """False if the request has given up waiting: the reindex must not go on."""
        with self._lock:
            if not self._reported.is_set() and not self.given_up:
                self.job, self.error = job, error
                self._reported.set()
            return not self.given_up

    def wait(self, seconds: float) -> bool:
        """False if nothing was reported in time."""
        self._reported.wait(seconds)
        with self._lock:
            self.given_up = not self._reported.is_set()
            return not self.given_up


def _log_removal(what: str, rows: int, state: State, by: str, selection: dict[str, Any]) -> None:
    logger.warning(
        "{what}: {counted} removed for good by {by}; selection: {selection}",
        what=what,
        counted=logs.rows(rows, kind=state),
        rows=rows,
        by=logs.safe(by),
        selection=logs.safe(audit.described(selection)),
    )
