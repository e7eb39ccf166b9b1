"""Rebuild an index from the database while rows keep flowing, without downtime, lost updates or resurrected deletes.

`outbox.reindex.steps` says what a rebuild does; here is which job is worked on, and how it ends.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from typing import Final

from outbox.destinations import misled
from outbox.destinations.base import Destination, ensured
from outbox.entities.entity import Entity
from outbox.entities.registry import EntityRegistry
from outbox.errors import ConfigurationError, DatabaseUnavailable, DestinationError, ReindexFailed, SchemaError
from outbox.reindex.selection import Selection, rows_of, select
from outbox.reindex.steps import STEPS
from outbox.reindex.work import LOOK_EVERY_S, LeftToRelays, Progress, Resources, Work, until_claims_end
from outbox.store import by_index, jobs
from outbox.store.jobs import Job, JobLost
from outbox.store.models import JobState, now_ms
from outbox.store.store import Store

REQUESTS: Final = 4
REQUEST_BYTES: Final = 5_000_000

_ENDING: dict[str, str] = {JobState.FAILING: "failed", JobState.CANCELLING: "cancelled"}


class Reindexer:
    """Works on jobs, one after another, until they have ended.

    `rate`: documents a second, at most. `requests`: how many in flight, `request_bytes`: of documents in each, at most.
    `interrupt` is called now and then, also during long waits; what it raises ends the work on the job, whose lease is
    released.
    """

    def __init__(
        self,
        store: Store,
        destination: Destination,
        registry: EntityRegistry,
        *,
        rate: float | None = None,
        requests: int = REQUESTS,
        request_bytes: int = REQUEST_BYTES,
        interrupt: Callable[[], None] = lambda: None,
        lease_s: float = 60.0,
        request_timeout_s: float = 20.0,
    ) -> None:
        lease_ms = int(1_000 * max(lease_s, 2 * request_timeout_s + 5))
        self._store, self._destination, self._registry = store, destination, registry
        self._resources = Resources(store, destination, registry, rate, requests, request_bytes, lease_ms, interrupt)
        self._holder = f"{socket.gethostname()}, pid {os.getpid()}"

    def run(self, chosen: Selection) -> Generator[Progress, None, None]:
        """Rebuild an index; or resume the job that was left unfinished. Raises `ReindexFailed`."""
        job = jobs.open_job(self._store, chosen.index)
        if job and not jobs.is_abandoned(self._store, job, now_ms()):
            if job.state != JobState.RUNNING:
                raise ReindexFailed(f"{job} is just being {_ENDING[job.state]} by {job.lease_holder}; try again")
            raise ReindexFailed(
                f"{job} is running already, at step '{job.phase}', by {job.lease_holder}; wait for it, or run "
                f"'outbox-relay reindex --cancel {job.id}'"
            )
        if job and (job.state != JobState.RUNNING or self._has_lost_its_index(job)):
            try:
                yield from self.resume(job)
            except ReindexFailed:
                if jobs.reread(self._store, job).is_open:
                    raise
            job = None
        if job is None:
            yield from self._work_on(self._begin(chosen))
            return
        if Selection.of(job) != replace(chosen, entities=()):
            raise ReindexFailed(
                f"{job} was left unfinished, and was asked for something else; run 'outbox-relay reindex --resume' or "
                f"'outbox-relay reindex --cancel {job.id}' first"
            )
        yield from self.resume(job)

    def resume(self, job: Job) -> Generator[Progress, None, None]:
        """Work on an open job that no process works on, until it has ended. Raises `ReindexFailed` if it fails."""
        if not self.knows(job):
            raise ConfigurationError(f"{job} cannot be resumed: no entity of index {job.index_name} is registered here")
        taken = jobs.take(self._store, job, self._holder, now_ms(), self._resources.lease_ms)
        if taken is None:
            raise ReindexFailed(f"another process has taken over {job}; see 'outbox-relay reindex --list'")
        yield from self._work_on(taken)

    def _work_on(self, taken: Job) -> Iterator[Progress]:
        work = Work(taken, Selection.of(taken, self._entities(taken)), self._resources)
        presence = self._store.presence.hold("reindex", taken.lease_token or "")
        to_relays = False
        try:
            with closing(_run(work)) as steps:
                for progress in steps:
                    presence.keep()
                    yield progress
        except (LeftToRelays, DatabaseUnavailable, SchemaError):  # not given up on purpose
            to_relays = True
            raise
        finally:
            presence.end()  # before: killed in between, it would leave a file that nobody knows of
            jobs.release(self._store, work.job, now_ms(), to_relays=to_relays)

    def knows(self, job: Job) -> bool:
        """Whether the entities of a job are registered here, or it needs none to come to its end."""
        return job.state != JobState.RUNNING or job.phase in ("swap", "drop") or bool(self._entities(job))

    def _entities(self, job: Job) -> tuple[Entity, ...]:
        of_index = self._registry.of_index(job.index_name)
        return tuple(entity for entity in of_index if job.tenant_id is None or entity.tenant)

    def cancel(self, number: int) -> str:
        """Stop a job, and remove its new index. Says what became of it.

        Raises `ReindexFailed` if it is too late, or if the index cannot be removed at present.
        """
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
        # A process that works on it notices, and removes its index; if there is none, this one does.
        while (job := jobs.reread(self._store, job)).is_open:
            if jobs.is_abandoned(self._store, job, now_ms()):
                try:
                    for _ in self.resume(job):
                        pass
                except ReindexFailed:
                    left = jobs.reread(self._store, job)
                    if left.is_open and jobs.is_abandoned(self._store, left, now_ms()):
                        raise  # its index cannot be removed at present
            self._resources.interrupt()
            time.sleep(LOOK_EVERY_S)
        return f"{job} is {job.state}"

    def _has_lost_its_index(self, job: Job) -> bool:
        """Whether the index that a job fills is gone: with what it has scanned, or with the whole destination."""
        not_yet_made = job.new_index and job.phase == "create"
        return not not_yet_made and not self._destination.inspect_index(job.index_name, job.target).exists

    def _begin(self, chosen: Selection) -> Job:
        store, name = self._store, chosen.index
        old = store.targets().get(name)
        if old is None:
            options = self._registry.index_options(name) or ()
            target, found = ensured(self._destination, name, *options)
            store.register_index(name, target, found=found)
            old = store.targets()[name]
        self._refuse_kept(name)
        self._refuse_shared(name, old)
        facts = self._destination.inspect_index(name, old)
        if facts.readers not in ((), (old,)):
            raise ReindexFailed(
                f"rows of index {name} go to {old}, its readers get {', '.join(facts.readers)}; "
                f"{misled.remedy(name, old, exists=facts.exists, readers=facts.readers)}"
            )
        if not facts.readers and chosen.in_place:
            raise ReindexFailed(
                f"index {old} is lost, or its alias {name}: "
                f"run 'outbox-relay reindex --entity {shlex.quote(chosen.entities[0].name)}' with no other option"
            )
        if facts.readers and not chosen.in_place and (old == name) != chosen.adopt:
            raise ReindexFailed(
                f"{name} is a physical index, and no alias: with --adopt it is removed when the new one takes its name"
                if old == name
                else f"{name} is an alias already, of {old}: leave out --adopt"
            )
        return jobs.begin(
            store,
            name,
            old,
            None if chosen.in_place else self._new_name(name),
            tenant=chosen.tenant,
            since=chosen.since,
            keep_old=chosen.keep_old,
            adopt=chosen.adopt,
            total=rows_of(store, chosen),
            holder=self._holder,
            now=now_ms(),
            lease_ms=self._resources.lease_ms,
        )

    def _refuse_kept(self, name: str) -> None:
        """An index that `--keep-old` has kept must be given up first, unless it is lost."""
        if not (kept := jobs.kept_index(self._store, name)):
            return
        if self._destination.inspect_index(name, kept[0]).exists:
            raise ReindexFailed(
                f"index {name} still keeps {kept[0]}; run 'outbox-relay reindex --drop-old' or '--rollback' first"
            )
        jobs.drop_kept(self._store, name, kept[0])

    def _refuse_shared(self, name: str, target: str) -> None:
        """The documents of another name would be taken for superfluous."""
        if others := by_index.sharing(self._store.targets()).get(name):
            raise ReindexFailed(
                f"index {target} takes the rows of {', '.join(others)} too, whose documents a rebuild of {name} would "
                "remove; 'outbox-relay check' says what to do"
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


def _run(work: Work) -> Generator[Progress, None, None]:
    """Step after step, until the job has ended. Raises `ReindexFailed` if it fails or was cancelled."""
    try:
        while work.job.state == JobState.RUNNING:
            yield from STEPS[work.job.phase](work)
    except JobLost:
        pass
    except DestinationError as error:
        if not jobs.stop(work.store, work.job, JobState.FAILING, str(error), now_ms(), own=True):
            with suppress(JobLost):  # else another process has ended it meanwhile
                work.note_now()
                raise ReindexFailed(
                    f"{work.job} is not finished, although readers get the new index: {error}; "
                    "'outbox-relay reindex --resume' ends it"
                ) from error
    _clean_up(work)


def _clean_up(work: Work) -> None:
    """The end of a job that failed or was cancelled: its new index is removed once no relay sends to it any more."""
    job = jobs.reread(work.store, work.job)
    if job.state == JobState.FAILED:
        raise ReindexFailed(f"{job} failed: {job.error}")
    if not job.is_open:
        work.job = job
        return
    if job.lease_token != work.job.lease_token or job.state == JobState.RUNNING:
        raise ReindexFailed(f"another process has taken over {job}; see 'outbox-relay reindex --list'")
    remains = "the index is as it was"
    if job.new_index and work.store.targets().get(job.index_name) == job.new_index:
        remains = f"the old index was lost: readers and rows keep {job.new_index}"
    elif job.new_index:
        for _ in until_claims_end(work.store, job.index_name):
            work.check()
        try:
            _remove_new_index(work, job, job.new_index)
        except DestinationError as error:
            raise ReindexFailed(
                f"{job} {_ENDING[job.state]}: {job.error}; index {job.new_index} is still to be removed ({error}): "
                "'outbox-relay reindex --resume' does so"
            ) from error
    work.end(JobState.FAILED if job.state == JobState.FAILING else JobState.CANCELLED)
    raise ReindexFailed(f"{job} {_ENDING[job.state]}: {job.error}; {remains}")


def _remove_new_index(work: Work, job: Job, new: str) -> None:
    readers = work.destination.inspect_index(job.index_name, new).readers
    if job.phase == "swap" and readers == (new,):
        work.destination.swap(job.index_name, new, job.old_index)  # it came late
    work.refuse_if_read(new)
    work.destination.drop_index(new)


def reindex(
    store: Store,
    destination: Destination,
    registry: EntityRegistry,
    *,
    entities: Sequence[str] = (),
    everything: bool = False,
    tenant: object = None,
    since: str | None = None,
    in_place: bool = False,
    keep_old: bool = False,
    adopt: bool = False,
    rate: float | None = None,
) -> Iterator[Progress]:
    """Rebuild the indexes of entities one after another, and yield how far it is. See `outbox.reindex.steps`.

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
