"""What a relay does beside delivering: APScheduler jobs on threads and connections of their own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from loguru import logger
from sqlalchemy import Engine

from outbox import logs
from outbox.errors import DatabaseUnavailable, OutboxError, ReindexFailed
from outbox.maintenance.growth import Limits, Sizes, Watch, growth
from outbox.maintenance.pruner import prune
from outbox.reindex.reindexer import LeftToRelays, Reindexer
from outbox.settings import LONGEST_LEASE_S, Settings
from outbox.store import jobs, upkeep
from outbox.store.jobs import Job
from outbox.store.models import now_ms
from outbox.store.store import Store
from outbox.verify import Verification

CHECKPOINT_EVERY_S = 20
PRUNE_EVERY_S = 60
DEPTH_EVERY_S = 10
MINUTES_MS = 3 * 3_600_000  # for which statistics are kept by minute; older ones by hour
WATCH_EVERY_S = 60
STATS_PAUSE_S = 0.01
NO_LEASE_MS = 1_000 * (LONGEST_LEASE_S + 60)  # from the longest lease on, with what a claim may wait for the lock


ONE_RELAY_MS = 50_000  # for which the relay that begins with a scheduled job has it alone: cron knows minutes


class Maintenance:
    """Heartbeat, reap, prune, checkpoint and warnings of one relay, until `stop`.

    `verification` makes the one that `settings.verify_schedule` asks for, `reindexer` whoever goes on with a reindex
    that its process has left; it calls what it is given now and then.
    """

    def __init__(
        self,
        engine: Engine,
        relay: int,
        settings: Settings,
        breakers: Callable[[], Sequence[Mapping[str, Any]]],
        verification: Callable[[Store], Verification] | None = None,
        reindexer: Callable[[Store, Callable[[], None]], Reindexer] | None = None,
    ) -> None:
        self._engine, self._relay, self._settings, self._breakers = engine, relay, settings, breakers
        logging.getLogger("apscheduler").setLevel(logging.CRITICAL)  # a late job is no news
        self._scheduler = BackgroundScheduler(
            executors={name: ThreadPoolExecutor(1) for name in ("default", "prune", "verify", "reindex")},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone="UTC",
        )
        for job, seconds, thread in (
            (self.heartbeat, settings.heartbeat_interval, "default"),
            (self.reap, settings.reap_interval, "default"),
            (self.checkpoint, CHECKPOINT_EVERY_S, "default"),
            (self.watch, WATCH_EVERY_S, "default"),
            (self.depth, DEPTH_EVERY_S, "default"),
            (self.prune, PRUNE_EVERY_S, "prune"),  # after a flood it takes minutes, in which there is a heartbeat
        ):
            self._scheduler.add_job(
                self._guarded, "interval", seconds=seconds, args=[job], id=job.__name__, executor=thread
            )
        self._verification, self._stopping = verification, threading.Event()
        if settings.verify_schedule is not None and verification is not None:
            schedule = CronTrigger.from_crontab(settings.verify_schedule, timezone="UTC")
            self._scheduler.add_job(self.verify, schedule, executor="verify", id="verify")
        self._reindexer = reindexer
        if reindexer is not None:
            every = settings.reap_interval
            self._scheduler.add_job(self.reindex, "interval", seconds=every, executor="reindex", id="reindex")
        self._watch = Watch()
        self._failing: set[str] = set()

    def start(self) -> None:
        """Start the jobs. What a killed relay left behind is given back at once."""
        self._guarded(self.reap)
        self._scheduler.start()

    def stop_soon(self) -> None:
        """Begin no more, and let what takes long come to an early end. Safe in a signal handler."""
        self._stopping.set()

    def stop(self) -> None:
        """Let the running jobs finish, then no more."""
        self.stop_soon()
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)

    def heartbeat(self, store: Store) -> None:
        store.heartbeat(self._relay, self._breakers(), now_ms())

    def reap(self, store: Store) -> None:
        now = now_ms()
        others = [relay for relay in store.relays() if relay["id"] != self._relay]
        dead = store.presence.dead("relay", [relay["id"] for relay in others])
        reaped = upkeep.reap(store, now, NO_LEASE_MS, dead_relays=dead, lone_after=self._settings.lone_after)
        store.presence.remove_locks("relay", dead)  # not before: the database may be locked
        if reaped.dead:
            dead_rows = logs.rows(reaped.dead, "is", "are")
            logger.critical(
                f"{dead_rows} dead: relays that took one alone were killed; see 'outbox-relay dead list "
                "--error-type poison'"
            )
        if reaped.given_back:
            given_back = logs.rows(reaped.given_back, "is", "are")
            logger.warning(f"{given_back} given back: a relay was killed, or did not finish in time")
        silent = now - self._settings.silent_ms
        quiet = {relay["id"] for relay in others if relay["heartbeat_at"] < silent}
        # One that is only stopped would not be listed again when it goes on, and its death would be noticed late.
        store.delist([*dead, *quiet.difference(dead, store.presence.live("relay", quiet))])

    def prune(self, store: Store) -> None:
        """Remove finished rows and old statistics, in steps that hold the write lock for milliseconds."""
        now = now_ms()
        prune(store, now - int(self._settings.retention_hours * 3_600_000), self._stopping.wait)
        while upkeep.prune_stats(store, now - int(self._settings.stats_retention_days * 86_400_000)):
            if self._stopping.wait(STATS_PAUSE_S):
                return
        while upkeep.compact_stats(store, now - MINUTES_MS):
            if self._stopping.wait(STATS_PAUSE_S):
                return

    def depth(self, store: Store) -> None:
        upkeep.note_depth(store, now_ms())

    def checkpoint(self, store: Store) -> None:
        upkeep.checkpoint(store)

    def watch(self, store: Store) -> None:
        """Warn of what has grown too large, once, and say once that it is well again."""
        oldest = store.oldest_unfinished()
        age = 0.0 if oldest is None else max(0, now_ms() - oldest) / 1000
        found = growth(Sizes(age, sum(store.counts().values()), store.sizes().log), Limits.of(self._settings))
        for each in self._watch.changes(found):
            if each.over:
                logger.warning(f"{each.found}: {each.remedy}")
            else:
                logger.info(f"{each.name} is well again: {each.found}")

    def verify(self) -> None:
        """Compare a sample with the index, unless another relay does. What is wrong stands in `status` and the log."""
        assert self._verification is not None
        try:
            with closing(Store(self._engine)) as store:
                verification = self._verification(store)
                since = now_ms() - ONE_RELAY_MS
                with closing(verification.recorded(f"relay {self._relay}", unless_scheduled_since=since)) as steps:
                    for _ in steps:
                        if self._stopping.is_set():
                            return
        except OutboxError as error:
            logger.warning(f"the scheduled verification has not come to its end: {error}")
            return
        except Exception:
            logger.opt(exception=True).error("the scheduled verification has failed in a way that none may")
            return
        if verification.totals.drift:
            found = ", ".join(f"{number:,} {kind}" for kind, number in verification.totals.found.items())
            logger.error(f"a sample of the documents is not as the database says: {found}; see 'outbox-relay verify'")

    def reindex(self) -> None:
        """Go on with reindexes whose process was killed, one after another, while rows are delivered beside it."""
        assert self._reindexer is not None
        try:
            store = Store(self._engine)
            try:
                for orphan in jobs.orphans(store, now_ms()):
                    job = jobs.find(store, orphan.id)  # as it is when those before it have ended
                    if job and jobs.is_orphan(store, job, now_ms()):
                        self._go_on(store, self._reindexer(store, self._unless_stopping), job)
            finally:
                store.close()
            self._failing.discard("reindex")
        except LeftToRelays:
            return
        except OutboxError as error:
            if "reindex" not in self._failing:
                logger.warning(f"no reindex is gone on with until it works again: {error}")
            self._failing.add("reindex")
        except Exception:
            logger.opt(exception=True).error("a reindex has failed in a way that none may; its job is left open")

    def _go_on(self, store: Store, reindexer: Reindexer, job: Job) -> None:
        left_by = job.lease_holder
        if not reindexer.knows(job):
            return
        self._unless_stopping()
        logger.warning(f"{job} was left at step '{job.phase}' by {left_by}; this relay goes on with it")
        try:
            for _ in reindexer.resume(job):
                pass
        except LeftToRelays:
            logger.warning(f"{job} is left to the next relay, or to 'outbox-relay reindex --resume'")
            raise
        except ReindexFailed as error:
            now = jobs.find(store, job.id)
            theirs = now is not None and now.is_open and not jobs.is_abandoned(store, now, now_ms())
            logger.log("INFO" if theirs else "ERROR", str(error))  # somebody at a terminal was faster, or it has failed
            return
        ended = jobs.find(store, job.id) or job
        logger.info(f"{ended} is {ended.state}: {ended.documents:,} documents, {ended.refused:,} refused")

    def _unless_stopping(self) -> None:
        if self._stopping.is_set():
            raise LeftToRelays

    def _guarded(self, job: Callable[[Store], None]) -> None:
        try:
            with closing(Store(self._engine)) as store:
                job(store)
            self._failing.discard(job.__name__)
        except DatabaseUnavailable as error:
            if job.__name__ not in self._failing:
                logger.warning(f"{job.__name__} is skipped until it works again: {error}")
            self._failing.add(job.__name__)
        except Exception:  # a damaged page of the database, say; the scheduler would tell nobody
            if job.__name__ not in self._failing:
                logger.opt(exception=True).error(f"{job.__name__} fails in a way that it may not, and is tried again")
            self._failing.add(job.__name__)
