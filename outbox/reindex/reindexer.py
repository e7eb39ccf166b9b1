"""Rebuild an index from the database while rows keep flowing, without downtime, lost updates or resurrected deletes.

Each step is entered by a commit, so whoever takes over a job goes on where it was:

    create   the new physical index, which nobody reads; then commit: rows go to both
    scan     all rows in the order of their key; documents carry the watermark, the highest row id issued until then
    wait     until no row up to the watermark is unfinished: what it says might still overtake nothing it should
    sweep    remove what the new index holds and the database does not
    check    restore the settings, count, compare a sample
    swap     readers get the new index, in one step; then commit: rows go to it
    drop     the old one, when nobody sends to it any more

In place there is no new index: the documents go into the live one, and it ends after the sweep.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import socket
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any, Final, NamedTuple, TypeVar

from loguru import logger
from sqlalchemy import Date, DateTime, Integer

from outbox import logs
from outbox.destinations.base import Destination, Operation
from outbox.entities.keys import Tenancy
from outbox.entities.registry import Entity, EntityRegistry, LoadFailed, Part, Row, listed, nearest
from outbox.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    DestinationError,
    DestinationUnanswered,
    ReindexFailed,
    SchemaError,
    shortened,
)
from outbox.reindex.writer import Lane, Pace, Page
from outbox.store import jobs
from outbox.store.jobs import Job, JobLost
from outbox.store.models import EPOCH_STEP, Action, Event, JobState, now_ms
from outbox.store.sqlite.presence import Presence
from outbox.store.store import Store

PAGE_ROWS: Final = 2_000
GENTLE_ROWS: Final = 125
LISTED_ROWS: Final = 5_000
REQUESTS: Final = 4
FLOW_S: Final = 2.0
PAGES_A_SECOND: Final = 10  # at least, where a rate is asked for: live rows find a gap
SAMPLE: Final = 100
SWAPS: Final = 3
LONG_CALL_MS: Final = 600_000
MOST_NAMED: Final = 5
NOTE_EVERY_MS: Final = 500
LOOK_EVERY_S: Final = 0.05

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Selection:
    """An index to rebuild, of which entities, and which part of them."""

    index: str
    entities: tuple[Entity, ...]
    tenant: str | None = None
    since: str | None = None
    in_place: bool = False
    keep_old: bool = False
    adopt: bool = False


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


def select(
    store: Store,
    registry: EntityRegistry,
    *,
    entities: Sequence[str] = (),
    everything: bool = False,
    tenant: str | None = None,
    since: str | None = None,
    in_place: bool = False,
    keep_old: bool = False,
    adopt: bool = False,
) -> list[Selection]:
    """The indexes to rebuild. Raises `ConfigurationError` for what does not exist, and lists what does."""
    chosen = list(registry) if everything else [_entity(store, registry, name) for name in entities]
    if not chosen:
        raise ConfigurationError("no entity is registered: add the application's models to the registry")
    names = list(dict.fromkeys(name for entity in chosen for name in _index_names(store, registry, entity, tenant)))
    found = []
    for name in names:
        of_index = tuple(registry.of_index(name))
        if since is not None:
            for entity in of_index:
                instant(entity, since)  # raises
        whole = of_index[0].tenancy is Tenancy.INDEX  # the index of a tenant holds nothing else
        if tenant is not None and not whole:
            of_index = tuple(entity for entity in of_index if entity.tenant)
            if not of_index:
                if everything:
                    continue
                raise ConfigurationError(f"the entities of index {name} have no tenant; leave out --tenant")
        part = since is not None or (tenant is not None and not whole)
        found.append(
            Selection(
                name,
                of_index,
                tenant=None if whole else tenant,
                since=since,
                in_place=in_place or part,
                keep_old=keep_old,
                adopt=adopt,
            )
        )
    if tenant is not None:
        _check_tenant(store, registry, chosen, tenant)
    for each in found:
        if each.in_place and (keep_old or adopt):
            raise ConfigurationError(
                f"index {each.index} is rebuilt in place, there is no old one to keep or to adopt: leave out "
                f"{'--keep-old' if keep_old else '--adopt'}"
            )
    if keep_old and adopt:
        raise ConfigurationError("an index that gives its name away cannot be kept: leave out --keep-old or --adopt")
    return found


def _entity(store: Store, registry: EntityRegistry, name: str) -> Entity:
    known = {entity.name: entity for entity in registry}
    if name in known:
        return known[name]
    instead = listed(known)
    if of_index := registry.of_index(name):
        instead = f"; the index {name} is that of {', '.join(entity.name for entity in of_index)}"
    elif name in store.targets():
        instead += (
            f"; the index {name} cannot be rebuilt before its model is registered: registry.add(Model, index={name!r}, "
            "fields=[…])"
        )
    raise ConfigurationError(f"no entity {shortened(name)} is registered{instead}{nearest(name, known)}")


def _index_names(store: Store, registry: EntityRegistry, entity: Entity, tenant: str | None) -> list[str]:
    if entity.tenancy is not Tenancy.INDEX:
        return [entity.index]
    known = [name for name in store.targets() if entity.index_names(name)]
    of_rows = [f"{each}_{entity.index}" for each in registry.tenants(store.connection, entity)]
    names = sorted({*known, *(name for name in of_rows if entity.index_names(name))})
    return [name for name in names if tenant is None or name == f"{tenant}_{entity.index}"]


def _check_tenant(store: Store, registry: EntityRegistry, chosen: Sequence[Entity], tenant: str) -> None:
    connection = store.connection
    with_tenant = [entity for entity in chosen if entity.tenant]
    if not with_tenant:
        raise ConfigurationError(f"{', '.join(entity.name for entity in chosen)}: no tenant is registered there")
    if any(registry.count(connection, entity, Part(tenant)) for entity in with_tenant):
        return
    if any(e.tenancy is Tenancy.INDEX and f"{tenant}_{e.index}" in store.targets() for e in with_tenant):
        return  # its rows are gone, its index is not
    existing = sorted({each for entity in with_tenant for each in registry.tenants(connection, entity, 10)})
    more = "" if len(existing) < 10 else ", …"
    raise ConfigurationError(
        f"no row is of tenant {shortened(tenant)}; there are {', '.join(existing) or 'none'}{more}"
    )


def instant(entity: Entity, since: str) -> Any:
    """A date as it compares with the `changed_at` of an entity. Raises `ConfigurationError`."""
    if entity.changed_at is None:
        raise ConfigurationError(f"entity {entity.name!r} has no changed_at, which --from-date needs: register it")
    column = getattr(entity.column(entity.changed_at), "type", None)
    try:
        if isinstance(column, Integer):
            return int(since)
        parsed = datetime.fromisoformat(since)
    except ValueError:
        what = "a whole number" if isinstance(column, Integer) else "a date, e.g. 2026-11-01 or 2026-11-01T12:00:00"
        raise ConfigurationError(f"--from-date {shortened(since)} is not {what}") from None
    if isinstance(column, DateTime):
        return parsed.astimezone(UTC).replace(tzinfo=None) if parsed.tzinfo and not column.timezone else parsed
    if isinstance(column, Date):
        return date(parsed.year, parsed.month, parsed.day)
    return since


def rows_of(store: Store, registry: EntityRegistry, chosen: Selection) -> int:
    """How many rows the scan will read."""
    return sum(registry.count(store.connection, entity, _part(entity, chosen)) for entity in chosen.entities)


def _part(entity: Entity, chosen: Selection) -> Part:
    tenant = chosen.tenant
    if entity.tenancy is Tenancy.INDEX:
        tenant = chosen.index[: -len(entity.index) - 1]
    return Part(tenant, None if chosen.since is None else instant(entity, chosen.since))


class _Mark(NamedTuple):
    """What a page of the scan stands for."""

    position: str
    read: int
    unmade: list[str]


class LeftToRelays(Exception):
    """Raised by a relay that ends, from within its work on a job: another one goes on with it."""


class Reindexer:
    """Works on jobs, one after another, until they are done; or finds out that they are not its to work on.

    `rate`: documents a second, at most. `requests`: how many in flight. `standing` is called now and then, also during
    long waits; what it raises ends the work on the job, which is given back.
    """

    def __init__(
        self,
        store: Store,
        destination: Destination,
        registry: EntityRegistry,
        *,
        rate: float | None = None,
        requests: int = REQUESTS,
        standing: Callable[[], None] = lambda: None,
        lease_s: float = 60.0,
        request_timeout_s: float = 20.0,
    ) -> None:
        self._store, self._destination, self._registry, self._rate = store, destination, registry, rate
        self._requests, self._standing = requests, standing
        self._lease_ms = int(1_000 * max(lease_s, 2 * request_timeout_s + 5))
        self._holder = f"{socket.gethostname()}, pid {os.getpid()}"
        self._job: Job
        self._selection: Selection
        self._noted_at = 0
        self._unwritten: dict[str, Any] = {}
        self._documents = self._refusals = 0
        self._last_id, self._flowed_at = 0, -FLOW_S
        self._trouble: str | None = None

    # -- which job ----------------------------------------------------------------------------------------------

    def run(self, chosen: Selection) -> Generator[Progress, None, None]:
        """Rebuild an index; or go on with the job that somebody left. Raises `ReindexFailed`."""
        job = jobs.open_job(self._store, chosen.index)
        if job and job.state != JobState.RUNNING:
            if not jobs.is_abandoned(self._store, job, now_ms()):
                raise ReindexFailed(f"{job} is just being {_ENDS[job.state]} by {job.lease_holder}; try again")
            try:
                yield from self.resume(job)
            except ReindexFailed:
                if self._known(job.id).is_open:
                    raise
            job = None
        if job is None:
            job = self._begin(chosen)
        elif not jobs.is_abandoned(self._store, job, now_ms()):
            raise ReindexFailed(
                f"{job} is running already, at step '{job.phase}', by {job.lease_holder}; wait for it, or run "
                f"'outbox-relay reindex --cancel {job.id}'"
            )
        elif self._asked(job) != replace(chosen, entities=()):
            raise ReindexFailed(
                f"{job} was left unfinished, and was asked for something else; run 'outbox-relay reindex --resume' or "
                f"'outbox-relay reindex --cancel {job.id}' first"
            )
        yield from self.resume(job)

    def resume(self, job: Job) -> Generator[Progress, None, None]:
        """Work on an open job that nobody works on, until it has ended. Raises `ReindexFailed` if it fails."""
        if not self.knows(job):
            raise ConfigurationError(f"{job} cannot go on: no entity of index {job.index_name} is registered here")
        asked, entities = self._asked(job), self._entities(job)
        taken = jobs.take(self._store, job, self._holder, now_ms(), self._lease_ms)
        if taken is None:
            raise ReindexFailed(f"{job} is somebody else's by now; see 'outbox-relay reindex --list'")
        self._job, self._selection, self._noted_at = taken, replace(asked, entities=entities), now_ms()
        self._unwritten = {}
        self._documents, self._refusals = taken.documents, taken.refused
        self._last_id, self._flowed_at = self._store.highest_id(), -FLOW_S
        presence = Presence(self._store.path, taken.lease_token or "", "reindex")
        to_relays = False
        try:
            yield from self._work()
        except (LeftToRelays, DatabaseUnavailable, SchemaError):  # nobody has given it up on purpose
            to_relays = True
            raise
        finally:
            try:
                jobs.release(self._store, self._job, now_ms(), to_relays=to_relays)
            finally:
                presence.end()

    def knows(self, job: Job) -> bool:
        """Whether the entities of a job are registered here, or it needs none to come to its end."""
        return job.state != JobState.RUNNING or bool(self._entities(job))

    def _entities(self, job: Job) -> tuple[Entity, ...]:
        of_index = self._registry.of_index(job.index_name)
        return tuple(entity for entity in of_index if job.tenant_id is None or entity.tenant)

    def cancel(self, number: int) -> str:
        """Stop a job, and remove its new index. Says what became of it. Raises `ReindexFailed` if it is too late."""
        job = jobs.find(self._store, number)
        if job is None:
            raise ReindexFailed(f"there is no reindex {number}; see 'outbox-relay reindex --list'")
        if not job.is_open:
            raise ReindexFailed(f"{job} has ended already: {job.state}")
        by = f"cancelled by {self._holder}"
        stopped = jobs.stop(self._store, job, JobState.CANCELLING, by, now_ms(), own=False)
        if not stopped and job.state == JobState.RUNNING:
            raise ReindexFailed(
                f"{job} is at its last step, '{job.phase}': let it end ('outbox-relay reindex --resume', if it was "
                "killed)"
            )
        # Whoever works on it notices, and removes its index; otherwise it is to us.
        while (job := self._known(number)).is_open:
            if jobs.is_abandoned(self._store, job, now_ms()):
                with suppress(ReindexFailed):
                    for _ in self.resume(job):
                        pass
            time.sleep(LOOK_EVERY_S)
        return f"{job} is {job.state}"

    def _asked(self, job: Job) -> Selection:
        return Selection(
            job.index_name,
            (),
            tenant=job.tenant_id,
            since=job.since,
            in_place=job.new_index is None,
            keep_old=bool(job.keep_old),
            adopt=bool(job.adopt),
        )

    def _begin(self, chosen: Selection) -> Job:
        store, name = self._store, chosen.index
        if kept := jobs.kept_index(store, name):
            raise ReindexFailed(
                f"index {name} still keeps {kept[0]}; run 'outbox-relay reindex --drop-old' or '--rollback' first"
            )
        old = store.targets().get(name)
        if old is None:
            store.register_index(
                name, self._destination.ensure_index(name, *(self._registry.index_options(name) or ()))
            )
            old = store.targets()[name]
        readers = self._destination.inspect_index(name, old).readers
        if readers != (old,):
            raise ReindexFailed(
                f"rows of index {name} go to {old}, its readers get {', '.join(readers) or 'nothing'}; make alias "
                f"{name} point to {old} and to nothing else"
            )
        if not chosen.in_place and (old == name) != chosen.adopt:
            raise ReindexFailed(
                f"{name} is a physical index, and no alias: with --adopt it is removed when the new one takes its name"
                if old == name
                else f"{name} is an alias already, of {old}: leave out --adopt"
            )
        new = None if chosen.in_place else self._new_name(name)
        return jobs.begin(
            store,
            name,
            old,
            new,
            tenant=chosen.tenant,
            since=chosen.since,
            keep_old=chosen.keep_old,
            adopt=chosen.adopt,
            total=rows_of(store, self._registry, chosen),
        )

    def _new_name(self, name: str) -> str:
        numbers = [re.fullmatch(rf"{re.escape(name)}-(\d{{6}})", used) for used in jobs.names_used(self._store, name)]
        number = max((int(match[1]) for match in numbers if match), default=0)
        while True:
            number += 1
            candidate = f"{name}-{number:06d}"
            facts = self._destination.inspect_index(candidate, candidate)
            if not facts.exists and not facts.readers:
                return candidate

    # -- the steps ----------------------------------------------------------------------------------------------

    def _work(self) -> Iterator[Progress]:
        steps: dict[str, Callable[[], Iterator[Progress]]] = {
            "create": self._create,
            "scan": self._scan,
            "wait": self._wait,
            "sweep": self._sweep,
            "check": self._check,
            "swap": self._swap,
            "drop": self._drop,
        }
        try:
            while self._job.state == JobState.RUNNING:
                yield from steps[self._job.phase]()
        except JobLost:
            pass
        except DestinationError as error:
            if not jobs.stop(self._store, self._job, JobState.FAILING, str(error), now_ms(), own=True):
                with suppress(JobLost):  # else somebody has ended it meanwhile
                    self._note(force=True)
                    raise ReindexFailed(
                        f"{self._job} is not finished, although readers get the new index: {error}; "
                        "'outbox-relay reindex --resume' ends it"
                    ) from error
        self._clean_up()

    def _create(self) -> Iterator[Progress]:
        job = self._job
        yield self._progress()
        if job.new_index is None:
            highest = self._ask(lambda: self._destination.highest_version(job.old_index))
            epoch, last = divmod(highest, EPOCH_STEP)
            if epoch > self._store.control().epoch:
                raise DestinationError(
                    f"index {job.old_index} holds version {highest}, of a later epoch: run 'outbox-relay epoch advance'"
                )
            # What was changed by hand may have a version above any row's.
            self._job = jobs.fix_watermark(self._store, job, now_ms(), self._lease_ms, at_least=last)
            return
        target = job.new_index
        mappings, settings = self._registry.index_options(job.index_name) or ({}, {})

        def create() -> None:
            self._refuse_if_read(target)  # the tables are a backup's: the job has ended since
            self._destination.drop_index(target)  # left by whoever was killed here; no row goes to it so far
            self._destination.create_index(target, mappings, settings)

        self._ask(create)
        self._job = jobs.send_rows_to_both(self._store, self._job, now_ms(), self._lease_ms)

    def _scan(self) -> Iterator[Progress]:
        """Pages are read while those before them are on their way; the position is that up to which all are there."""
        at: dict[str, Any] = json.loads(self._job.position) if self._job.position else {}
        names = [entity.name for entity in self._selection.entities]
        left = names[names.index(at["entity"]) if at.get("entity") in names else 0 :]
        read = int(at.get("read", 0))
        began, before, pace = time.monotonic(), self._job.documents, Pace(self._rate or math.inf)
        with self._lane() as lane:
            for entity in self._selection.entities:
                if entity.name not in left:
                    continue
                after: list[str] | None = at.get("after") if entity.name == at.get("entity") else None
                part = _part(entity, self._selection)
                while rows := self._registry.page(self._store.connection, entity, part, after, self._page_rows(lane)):
                    read, after = read + len(rows), rows[-1].key
                    operations = self._operations(rows)
                    now = time.monotonic()
                    self._sleep(pace.turn(len(operations), now) - now)
                    position = json.dumps({"entity": entity.name, "after": after, "read": read})
                    lane.send(operations, _Mark(position, read, self._unmade(rows)))
                    yield from self._arrived(lane.settled(), began, before)
            yield from self._arrived(lane.drain(), began, before)
        self._note(force=True, phase="wait")

    def _arrived(self, pages: Iterator[Page[_Mark]], began: float, before: int) -> Iterator[Progress]:
        """Note what has been settled of the scan: never a page before those that were read earlier."""
        for page in pages:
            refused = self._refused([*page.mark.unmade, *page.refused])
            self._documents += page.documents - len(page.refused)
            self._refusals += refused
            self._note(position=page.mark.position, documents=self._documents, refused=self._refusals)
            rate = (self._documents - before) / max(time.monotonic() - began, 1e-9)
            yield self._progress(rows=page.mark.read, rate=rate)

    def _wait(self) -> Iterator[Progress]:
        yield self._progress()
        job, said = self._job, False
        while left := jobs.unfinished_up_to(self._store, job.index_name, job.last_id):
            control = self._store.control()
            held_up = "" if self._store.relays() else "; no relay runs: start 'outbox-relay run'"
            if control.paused_at is not None:
                why = logs.safe(control.pause_reason or "?")
                held_up = f"; the outbox is paused ({why}): run 'outbox-relay resume'"
            if held_up and not said:
                said = True
                logger.warning(f"{job} waits for {left:,} earlier rows{held_up}")
            yield self._progress(note=f"{left:,} earlier rows are not delivered yet{held_up}")
            self._sleep(LOOK_EVERY_S)
        self._note(force=True, phase="sweep")

    def _sweep(self) -> Iterator[Progress]:
        removed, seen = self._job.removed, 0
        while True:
            try:
                # The index first, then the database: what comes into both meanwhile is not taken for superfluous.
                tenant = self._selection.tenant
                pages = self._destination.pages(self._job.target, LISTED_ROWS, tenants=tenant is not None)
                for page in _ahead(pages):
                    older = [
                        each
                        for each, listed in page.items()
                        if listed.version <= (self._job.watermark or 0) and tenant in (None, listed.tenant_id)
                    ]
                    if gone := self._absent(older):
                        # Noted before it is done: after a kill in between rather too many than too few.
                        removed += len(gone)
                        self._note(force=True, removed=removed)
                        self._refused(self._write([self._operation(each, None) for each in gone]))
                    self._note()
                    seen += len(page)
                    yield self._progress(rows=seen, total=max(self._job.total, seen))
                break
            except DestinationError as error:
                self._unless_away(error)
        if self._job.new_index is None:
            self._ask(lambda: self._destination.refresh(self._job.target))
            self._end(JobState.DONE)
        else:
            self._note(force=True, phase="check")

    def _check(self) -> Iterator[Progress]:
        yield self._progress()
        target = self._job.target
        _, settings = self._registry.index_options(self._job.index_name) or ({}, {})
        self._ask(lambda: self._destination.finish_index(target, settings))
        held = self._ask(lambda: self._destination.count(target))
        expected = self._job.documents - self._job.removed
        since = self._store.highest_id() - self._job.last_id
        if held + since < expected:
            raise DestinationError(f"index {target} holds {held:,} documents, {expected:,} were written to it")
        if differing := self._ask(self._differing):
            raise DestinationError(f"index {target} differs from the database in {shortened(differing[0])}")
        self._note(force=True, phase="swap")

    def _swap(self) -> Iterator[Progress]:
        yield self._progress()
        job = self._job
        name, old, new = job.index_name, job.old_index, job.new_index or ""

        def swapped() -> bool:
            return self._destination.inspect_index(name, new).readers == (new,)

        for attempt in range(1, SWAPS + 1):
            if self._ask(swapped):
                break  # before: a lost answer, or a kill
            try:
                self._destination.swap(name, old, new, adopt=bool(job.adopt))
            except DestinationError:
                # It may have been made all the same, or be made yet: the next one is answered after it.
                self._sleep(1)
                if attempt == SWAPS and not self._ask(swapped):
                    raise
        self._job = jobs.send_rows_to_new(self._store, job, now_ms(), self._lease_ms)

    def _drop(self) -> Iterator[Progress]:
        yield self._progress()
        if not self._job.keep_old and not self._job.adopt:
            for _ in _claims_that_knew(self._store, self._job.index_name):
                yield self._progress(note=f"requests to {self._job.old_index} are still under way")
                self._note()
            self._ask(lambda: self._destination.drop_index(self._job.old_index))
        self._end(JobState.DONE)

    def _clean_up(self) -> None:
        """The end of a job that failed or was cancelled: its new index is removed once nobody sends to it."""
        job = self._known(self._job.id)
        if job.state == JobState.FAILED:
            raise ReindexFailed(f"{job} failed: {job.error}")
        if not job.is_open:
            self._job = job
            return
        if job.lease_token != self._job.lease_token or job.state == JobState.RUNNING:
            raise ReindexFailed(f"{job} is somebody else's by now; see 'outbox-relay reindex --list'")
        if job.new_index:
            for _ in _claims_that_knew(self._store, job.index_name):
                self._standing()
            try:
                readers = self._destination.inspect_index(job.index_name, job.new_index).readers
                if job.phase == "swap" and readers == (job.new_index,):
                    self._destination.swap(job.index_name, job.new_index, job.old_index)  # it came late
                self._refuse_if_read(job.new_index)
                self._destination.drop_index(job.new_index)
            except DestinationError as error:
                raise ReindexFailed(
                    f"{job} {_ENDS[job.state]}: {job.error}; index {job.new_index} is still to be removed ({error}): "
                    "'outbox-relay reindex --resume' does so"
                ) from error
        self._end(JobState.FAILED if job.state == JobState.FAILING else JobState.CANCELLED)
        raise ReindexFailed(f"{job} {_ENDS[job.state]}: {job.error}; the index is as it was")

    def _refuse_if_read(self, target: str) -> None:
        """Raises `DestinationError` where readers would lose the index if it were dropped."""
        name = self._job.index_name
        readers = self._destination.inspect_index(name, target).readers
        if target in readers:
            raise DestinationError(
                f"readers of {name} get {', '.join(readers)}, which this job may not drop: after a restore from a "
                f"backup run 'outbox-relay epoch advance', else make alias {name} point to {self._job.old_index}"
            )

    # -- what the steps are made of -----------------------------------------------------------------------------

    def _operations(self, rows: Sequence[Row]) -> list[Operation]:
        return [
            self._operation(row.place.document_id, row.document)
            for row in rows
            if row.place and row.place.index_name == self._job.index_name and isinstance(row.document, bytes)
        ]

    def _operation(self, document_id: str, document: bytes | None) -> Operation:
        target = self._job.target
        return Operation(target, target, document_id, self._job.watermark or 0, document, or_equal=True)

    def _lane(self) -> Lane[Any]:
        # Whoever has lost the lease sends nothing any more.
        return Lane(self._destination, self._requests, standing=self._note, say=self._say)

    def _page_rows(self, lane: Lane[Any]) -> int:
        """How many rows to read next. Few, and one request at a time, while rows flow: these wait behind ours."""
        now, last = time.monotonic(), self._store.highest_id()
        if last != self._last_id:
            self._last_id, self._flowed_at = last, now
        lane.gently = now - self._flowed_at < FLOW_S
        most = min(PAGE_ROWS, GENTLE_ROWS) if lane.gently else PAGE_ROWS
        return most if self._rate is None else max(1, min(most, int(self._rate / PAGES_A_SECOND)))

    def _write(self, operations: Sequence[Operation]) -> list[str]:
        """Apply operations, waiting for a destination that is away. Returns what it refuses, each as one line."""
        with self._lane() as lane:
            lane.send(operations, None)
            return [line for page in lane.drain() for line in page.refused]

    def _unmade(self, rows: Sequence[Row]) -> list[str]:
        return [
            f"row {'|'.join(row.key)}: {row.document.error_type}: {row.document.error}"
            for row in rows
            if isinstance(row.document, LoadFailed)
        ]

    def _refused(self, lines: Sequence[str]) -> int:
        """A new index must be whole; in place, what cannot be written is counted and named."""
        if lines and self._job.new_index:
            raise DestinationError(f"index {self._job.target} would miss {lines[0]}")
        for line in lines[: max(0, MOST_NAMED - self._refusals)]:
            logger.warning(f"{self._job}: {line}")
        return len(lines)

    def _absent(self, document_ids: Sequence[str]) -> list[str]:
        """Documents for which no entity of the index has a row, whatever its tenant."""
        places = [(self._job.index_name, each) for each in document_ids]
        for entity in self._registry.of_index(self._job.index_name):
            held = self._registry.holders(self._store.connection, entity, places)
            places = [place for place in places if place not in held]
        return [each for _, each in places]

    def _loaded(self, document_ids: Sequence[str]) -> dict[str, bytes | LoadFailed | None]:
        entities = self._registry.of_index(self._job.index_name)
        places = [(each, entity) for each in document_ids for entity in entities]
        made = self._registry.load(
            self._store.connection,
            [
                Event(at, Action.REFRESH, self._job.index_name, each, None, entity.name, 0, 0, 0)
                for at, (each, entity) in enumerate(places)
            ],
        )
        found: dict[str, bytes | LoadFailed | None] = dict.fromkeys(document_ids)
        for at, (each, _) in enumerate(places):
            found[each] = made[at] if found[each] is None else found[each]
        return found

    def _differing(self) -> list[str]:
        """Of a sample, the documents that are not what the database says, although no row of theirs is under way."""
        target, connection = self._job.target, self._store.connection
        page = next(self._destination.pages(target, PAGE_ROWS), {})
        suspects = set(random.sample(sorted(page), min(SAMPLE, len(page))))
        for entity in self._selection.entities:
            rows = self._registry.page(connection, entity, _part(entity, self._selection), None, SAMPLE)
            suspects |= {operation.document_id for operation in self._operations(rows)}
        for attempt in range(10):
            if attempt:
                self._sleep(2 * LOOK_EVERY_S)
            loaded = self._loaded(sorted(suspects))
            stored = self._destination.read(target, sorted(suspects))
            unsettled = jobs.unsettled(self._store, self._job.index_name, sorted(suspects))
            suspects = {
                each
                for each in suspects - unsettled
                if not isinstance(made := loaded[each], LoadFailed)
                and (None if made is None else json.loads(made)) != (stored[each].source if each in stored else None)
            }
            if not suspects:
                break
        return sorted(suspects)

    def _ask(self, call: Callable[[], T]) -> T:
        """An administrative call, repeated while the destination is away. Raises what it refuses."""
        while True:
            self._note(force=True)
            # A refresh, or a look at all versions, may outlast the lease; that a process was killed shows at once.
            self._job = jobs.update(self._store, self._job, now_ms(), max(self._lease_ms, LONG_CALL_MS))
            try:
                answer = call()
            except DestinationError as error:
                self._unless_away(error)
            else:
                self._say(None)
                return answer

    def _unless_away(self, error: DestinationError) -> None:
        """Wait a moment before what took too long, or found nobody there, is asked again. Raises what was refused."""
        if not isinstance(error, DestinationUnanswered) and self._destination.ping() is None:
            raise error
        self._say(str(error))
        self._sleep(1)

    def _say(self, trouble: str | None) -> None:
        if trouble and not self._trouble:
            logger.warning(f"{self._job} waits for the destination: {trouble}")
        elif self._trouble and not trouble:
            logger.info(f"{self._job} goes on")
        self._trouble = trouble

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, NOTE_EVERY_MS / 1_000))
            self._note()

    def _note(self, *, force: bool = False, **columns: Any) -> None:
        """Write down how far the job is, now and then, and notice that it was stopped. Raises `JobLost`."""
        self._standing()
        now = now_ms()
        self._unwritten |= columns
        if force or now - self._noted_at >= NOTE_EVERY_MS or now < self._noted_at:
            columns, self._unwritten = self._unwritten, {}
            self._job = jobs.update(self._store, self._job, now, self._lease_ms, durable="phase" in columns, **columns)
            self._noted_at = now

    def _end(self, state: JobState) -> None:
        with suppress(JobLost):
            self._job = jobs.finish(self._store, self._job, state, now_ms())

    def _known(self, number: int) -> Job:
        job = jobs.find(self._store, number)
        assert job is not None, f"job {number} was removed from outbox_reindex_jobs"
        return job

    def _progress(
        self, rows: int | None = None, total: int | None = None, rate: float = 0.0, note: str = ""
    ) -> Progress:
        job = self._job
        total = job.total if total is None else total
        rows = job.documents if rows is None else rows
        eta = (total - rows) / rate if rate and total >= rows else None
        return Progress(job.id, job.index_name, job.phase, rows, max(total, rows), rate, eta, note)


_ENDS: dict[str, str] = {JobState.FAILING: "failed", JobState.CANCELLING: "cancelled"}


def _ahead(pages: Iterator[T]) -> Iterator[T]:
    """Each page while the next one is fetched."""
    with ThreadPoolExecutor(1, "outbox-list") as pool:
        fetched = pool.submit(next, pages, None)
        while (page := fetched.result()) is not None:
            fetched = pool.submit(next, pages, None)
            yield page


def _claims_that_knew(store: Store, index: str) -> Iterator[None]:
    """Until the claims are over that may still send to an index which rows no longer go to."""
    before = jobs.claims_on(store, index, now_ms())
    while before & jobs.claims_on(store, index, now_ms()):
        yield
        time.sleep(LOOK_EVERY_S)


# -- the index before the last rebuild ------------------------------------------------------------------------------


def roll_back(store: Store, destination: Destination, index: str) -> tuple[str, int]:
    """Give readers and rows the kept old index back; the other is kept then. Returns it, and what it refused.

    Raises `ReindexFailed` if none is kept.
    """
    old, refused = _kept(store, index)
    live = store.targets()[index]
    if destination.inspect_index(index, old).readers != (old,):  # unless a rollback was killed in between
        destination.refresh(old)
        destination.swap(index, live, old)
    jobs.exchange(store, index, live, old)
    return old, refused


def drop_old(store: Store, destination: Destination, index: str) -> str:
    """Keep the old index no longer. Returns its name. Raises `ReindexFailed` if none is kept."""
    old, _ = _kept(store, index)
    jobs.drop_kept(store, index, old)
    for _ in _claims_that_knew(store, index):
        pass
    destination.drop_index(old)
    return old


def _kept(store: Store, index: str) -> tuple[str, int]:
    if job := jobs.open_job(store, index):
        raise ReindexFailed(f"{job} has not ended; see 'outbox-relay reindex --list'")
    kept = jobs.kept_index(store, index)
    if kept is None:
        raise ReindexFailed(f"index {index} keeps no old one: only 'outbox-relay reindex --keep-old' leaves one")
    return kept


def reindex(
    store: Store,
    destination: Destination,
    registry: EntityRegistry,
    *,
    entities: Sequence[str] = (),
    everything: bool = False,
    tenant: str | None = None,
    since: str | None = None,
    in_place: bool = False,
    keep_old: bool = False,
    adopt: bool = False,
    rate: float | None = None,
) -> Iterator[Progress]:
    """Rebuild the indexes of entities one after another, and yield how far it is. See the top of this file.

    `tenant` and `since` (by `changed_at`) select a part, which is written to the live index. `rate`: documents a
    second, at most. Raises `ConfigurationError` for what does not exist and `ReindexFailed` for what was not done.
    """
    chosen = select(
        store,
        registry,
        entities=entities,
        everything=everything,
        tenant=tenant,
        since=since,
        in_place=in_place,
        keep_old=keep_old,
        adopt=adopt,
    )
    reindexer = Reindexer(store, destination, registry, rate=rate)
    for each in chosen:
        yield from reindexer.run(each)
