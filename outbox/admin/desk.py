"""What an operator can have done, and the log of who did. The API and the dashboard ask for the same things here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger
from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from outbox import logs, schema
from outbox.destinations.base import Destination
from outbox.entities.registry import EntityRegistry
from outbox.errors import ConfigurationError, DatabaseUnavailable, DestinationError, OutboxError, ReindexFailed
from outbox.reindex import reindexer as reindex
from outbox.reindex.reindexer import LeftToRelays, Reindexer, Selection
from outbox.settings import Settings
from outbox.store import jobs, operators
from outbox.store.figures import Figures
from outbox.store.jobs import Job
from outbox.store.models import State, now_ms
from outbox.store.operators import Retried
from outbox.verify import Checked, Verification

LONGEST_START_S = 10.0
"""Whoever asks for a reindex gets an answer within that time, whether the search engine answers or not."""

LONGEST_END_S = 20.0


class NotFound(OutboxError):
    """What was asked for does not exist."""


@dataclass(frozen=True, slots=True)
class Started:
    """A reindex that has begun. `estimated`: documents that it will write, about."""

    job: Job
    estimated: int


class Desk:
    """Acts for operators. Each call opens the outbox for itself, so it may be used from several threads.

    Raises `DatabaseUnavailable` wherever the database is read or written, and `SchemaError` where its tables have come
    to another revision than this version needs: it is served again as soon as they are at that one.
    """

    def __init__(
        self, engine: Engine, settings: Settings, destination: Destination, registry: EntityRegistry | None
    ) -> None:
        self.settings, self.destination, self.registry = settings, destination, registry
        self._engine = engine
        self._lock = threading.Lock()
        self._file: tuple[int, int] | None = None
        self._known_layout: int | None = None
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()

    @contextmanager
    def figures(self) -> Iterator[Figures]:
        """The outbox tables, for one request: of the file that has the database's name now."""
        self._look_at_file()
        try:
            self._look_at_tables()
            with closing(Figures(self._engine)) as opened:
                yield opened
        except (DatabaseError, PoolTimeout) as error:
            raise DatabaseUnavailable(f"database {self._engine.url.database}: {error}") from error

    def _look_at_file(self) -> None:
        """Open connections would go on to read a file that was removed, and new ones would make an empty one."""
        try:
            found = Path(str(self._engine.url.database)).stat()
        except OSError as error:
            raise DatabaseUnavailable(
                f"database {self._engine.url.database} cannot be opened: {error.strerror}; check OUTBOX_DATABASE_URL"
            ) from error
        with self._lock:
            before, self._file = self._file, (found.st_dev, found.st_ino)
        if before is not None and before != self._file:
            logger.warning(f"database {self._engine.url.database} is another file now; it is opened anew")
            self._known_layout = None
            self._engine.dispose()

    def _look_at_tables(self) -> None:
        """What a migration changes beneath this process is nothing that it may read or write as it did."""
        with closing(Figures(self._engine)) as opened:  # closed before more is asked: all connections may be in use
            layout = opened.schema_token()
        if layout != self._known_layout:
            schema.require_head(self._engine)
            self._known_layout = layout

    def stop(self) -> None:
        """Have what runs in the background end where it is: a reindex can be resumed, a verification is given up."""
        self._stopping.set()
        until = time.monotonic() + LONGEST_END_S
        for thread in self._threads:
            thread.join(timeout=max(0.0, until - time.monotonic()))

    # -- pausing ------------------------------------------------------------------------------------------------

    def pause(self, reason: str, by: str) -> None:
        with self.figures() as store:
            operators.pause(store, reason, by, now_ms())
        logger.warning(logs.safe(f"paused by {by}: {reason}"))

    def resume(self, by: str) -> bool:
        """False if it was not paused."""
        with self.figures() as store:
            resumed = operators.resume(store)
        if resumed:
            logger.info(logs.safe(f"resumed by {by}"))
        return resumed

    # -- dead rows ----------------------------------------------------------------------------------------------

    def retry(self, by: str, **selection: Any) -> Retried:
        """Put dead rows back to pending, see `operators.retry_dead`. Raises `NotFound` if none of the named is dead."""
        with self.figures() as store:
            result = operators.retry_dead(store, _dead(store, selection), now_ms())
        logger.info(logs.safe(f"{logs.rows(result.pending)} retried by {by}; selection: {_words(selection)}"))
        return result

    def discard(self, by: str, **selection: Any) -> int:
        """Remove dead rows for good. Returns their number. Raises `NotFound` if none of the named is dead."""
        with self.figures() as store:
            removed = operators.discard_dead(store, _dead(store, selection))
        discarded = f"discarded: {logs.rows(removed, kind='dead')} removed for good"
        logger.warning(logs.safe(f"{discarded} by {by}; selection: {_words(selection)}"))
        return removed

    # -- reindex ------------------------------------------------------------------------------------------------

    def reindex(self, by: str, entity: str, *, tenant: str | None = None, since: str | None = None) -> Started:
        """Begin to rebuild the indexes of an entity, one after another. Returns the first job.

        Raises `ConfigurationError` for what does not exist, `ReindexFailed` if it cannot begin, and `DestinationError`
        if the search engine does not answer in time: nothing has begun then, and nothing will.
        """
        registry = self._known_entities()
        with self.figures() as store:
            chosen = reindex.select(store, registry, entities=[entity], tenant=tenant, since=since)
            estimated = sum(reindex.rows_of(store, each) for each in chosen)
            for each in chosen:
                if (job := jobs.open_job(store, each.index)) and not jobs.is_abandoned(store, job, now_ms()):
                    raise ReindexFailed(f"{job} is running already, at step '{job.phase}'")
        begun = _Begun()
        self._in_background(lambda: self._rebuild(registry, chosen, begun), f"reindex of {entity}, begun by {by}")
        if not begun.wait(LONGEST_START_S):
            raise DestinationError(
                f"the search engine has not answered within {LONGEST_START_S:g} s: the reindex of {entity} does not "
                "begin; ask again when it answers"
            )
        if begun.error is not None:
            raise begun.error
        logger.info(logs.safe(f"reindex of {entity} begun by {by}"))
        with self.figures() as store:
            job = jobs.find(store, begun.job)
        if job is None:
            raise NotFound(f"nothing of {entity} has an index so far: there is nothing to rebuild")
        return Started(job, estimated)

    def _rebuild(self, registry: EntityRegistry, chosen: Sequence[Selection], begun: _Begun) -> None:
        try:
            with self.figures() as store:
                store.pin()
                reindexer = self._reindexer(store, registry)
                for each in chosen:
                    number = 0
                    with closing(reindexer.run(each)) as steps:
                        for step in steps:
                            number = step.job
                            if not begun.tell(number):
                                break
                    if begun.given_up and number:
                        logger.warning(logs.safe(reindexer.cancel(number)))
                        return
        except OutboxError as error:
            if not begun.tell(0, error) or begun.job:
                raise
        finally:
            begun.tell(0)

    def cancel(self, by: str, number: int) -> Job:
        """Have a reindex stopped and its new index removed. Raises `NotFound`, or `ReindexFailed` if it is too late."""
        with self.figures() as store:
            job = jobs.find(store, number)
        if job is None:
            raise NotFound(f"there is no reindex {number}")
        if not job.is_open:
            raise ReindexFailed(f"{job} has ended already: {job.state}")

        def work() -> None:
            with self.figures() as store:
                self._reindexer(store, self.registry or EntityRegistry()).cancel(number)

        logger.warning(logs.safe(f"{job} cancelled by {by}"))
        self._in_background(work, f"cancelling of {job}")
        return job

    def _reindexer(self, store: Figures, registry: EntityRegistry) -> Reindexer:
        settings = self.settings
        return Reindexer(
            store,
            self.destination,
            registry,
            requests=settings.concurrency,
            interrupt=self._unless_stopping,
            lease_s=settings.lease,
            request_timeout_s=settings.request_timeout,
        )

    def _unless_stopping(self) -> None:
        if self._stopping.is_set():
            raise LeftToRelays

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
        """Begin to compare entities with their indexes; what is found stands in the last verification.

        Raises `ConfigurationError` for what does not exist.
        """
        registry = self._known_entities()
        entities = [] if entity is None else [entity]

        def verification(store: Figures) -> Verification:
            return Verification(
                store, self.destination, registry, entities=entities, tenant_id=tenant, sample=sample, repair=repair
            )

        with self.figures() as store:
            verification(store)  # raises, before anybody is told that it has begun

        def work() -> None:
            with self.figures() as store, closing(verification(store).recorded(by)) as steps:
                for step in steps:
                    if self._stopping.is_set() and isinstance(step, Checked):
                        return

        logger.info(logs.safe(f"verification of {entity or 'all entities'} begun by {by}"))
        self._in_background(work, f"verification begun by {by}")

    def _known_entities(self) -> EntityRegistry:
        if self.registry is None:
            raise ConfigurationError("no registry of entities: set OUTBOX_ENTITIES, e.g. myapp.search:registry")
        return self.registry

    def _in_background(self, work: Callable[[], None], what: str) -> None:
        def run() -> None:
            try:
                work()
            except LeftToRelays:
                logger.warning(logs.safe(f"{what} is left to the next relay, or to whoever asks for it again"))
            except OutboxError as error:
                logger.error(logs.safe(f"{what}: {error}"))

        thread = threading.Thread(target=run, name=f"outbox-admin {what}", daemon=True)
        with self._lock:
            self._threads = [each for each in self._threads if each.is_alive()]
            thread.start()
            self._threads.append(thread)


class _Begun:
    """How the thread of a reindex tells that it has begun, or why not; the first word counts."""

    def __init__(self) -> None:
        self._told = threading.Event()
        self._lock = threading.Lock()
        self.given_up = False
        self.job = 0
        self.error: OutboxError | None = None

    def tell(self, job: int, error: OutboxError | None = None) -> bool:
        """False if whoever asked has given up waiting: it must not go on."""
        with self._lock:
            if not self._told.is_set() and not self.given_up:
                self.job, self.error = job, error
                self._told.set()
            return not self.given_up

    def wait(self, seconds: float) -> bool:
        """False if nothing was told in time."""
        self._told.wait(seconds)
        with self._lock:
            self.given_up = not self._told.is_set()
            return not self.given_up


def _dead(store: Figures, selection: dict[str, Any]) -> list[int]:
    ids = [row["id"] for row in operators.dead(store, **selection)]
    if not ids and selection.get("ids"):
        numbers = ", ".join(map(str, selection["ids"]))
        raise NotFound(f"no dead row {numbers}: it was retried or discarded meanwhile, or is not {State.DEAD.value}")
    return ids


def _words(selection: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(selection.items()) if value) or "all"
