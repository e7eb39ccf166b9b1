"""Resumes reindexes whose process was killed, while rows are delivered beside them."""

from __future__ import annotations

from collections.abc import Callable

from loguru import logger

from outbox.errors import ReindexFailed
from outbox.reindex.reindexer import Reindexer
from outbox.reindex.work import LeftToRelays, fields
from outbox.store import jobs
from outbox.store.jobs import Job
from outbox.store.models import now_ms
from outbox.store.store import Store


def adopt_orphans(
    store: Store, reindexer: Callable[[Store, Callable[[], None]], Reindexer], interrupt: Callable[[], None]
) -> None:
    """Resume the jobs that no process works on any more, one after another.

    `interrupt` is called now and then: `LeftToRelays`, raised there by a relay that ends, leaves the rest to the next.
    """
    for orphan in jobs.orphans(store, now_ms()):
        job = jobs.find(store, orphan.id)  # as it is when those before it have ended
        if job is not None and jobs.is_orphan(store, job, now_ms()):
            worker = reindexer(store, interrupt)
            if worker.knows(job):
                interrupt()
                _resume(store, worker, job)


def _resume(store: Store, reindexer: Reindexer, job: Job) -> None:
    logger.warning(
        "{job} was left at step '{phase}' by {holder}; this relay resumes it",
        phase=job.phase,
        holder=job.lease_holder,
        **fields(job),
    )
    try:
        for _ in reindexer.resume(job):
            pass
    except LeftToRelays:
        logger.warning("{job} is left to the next relay, or to 'outbox-relay reindex --resume'", **fields(job))
        raise
    except ReindexFailed as error:
        now = jobs.find(store, job.id)
        taken_over = now is not None and now.is_open and not jobs.is_abandoned(store, now, now_ms())
        # From a terminal, a moment before; otherwise it has failed.
        logger.log("INFO" if taken_over else "ERROR", "{reason}", reason=str(error), **fields(job))
        return
    ended = jobs.find(store, job.id) or job
    logger.info(
        "{job} is {state}: {documents:,} documents, {refused:,} refused",
        state=ended.state,
        documents=ended.documents,
        refused=ended.refused,
        **fields(ended),
    )
