"""What a relay does beside delivering: APScheduler jobs on threads and connections of their own."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, Final

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger
from loguru import logger
from sqlalchemy import Engine

from outbox import __version__
from outbox.errors import DatabaseUnavailable, OutboxError
from outbox.maintenance.adopt import adopt_orphans
from outbox.maintenance.growth import Limits, LimitWatch, Measured, growth
from outbox.maintenance.notices import Notices
from outbox.maintenance.pruner import prune_all
from outbox.maintenance.reaper import reap
from outbox.reindex.reindexer import Reindexer
from outbox.reindex.work import LeftToRelays
from outbox.settings import Settings, cron_fields
from outbox.store import upkeep
from outbox.store.dialect import Held
from outbox.store.models import POISON, now_ms
from outbox.store.store import LockTimes, Store, dialect_of
from outbox.verify import Verification

CHECKPOINT_EVERY_S: Final = 20
PRUNE_EVERY_S: Final = 60
DEPTH_EVERY_S: Final = 10
WATCH_EVERY_S: Final = 60
NOTICES_EVERY_S: Final = 1

ONE_RELAY_MS: Final = 50_000
"""For how long the relay that begins a scheduled verification keeps others from it: cron knows minutes."""


def enter(store: Store, *, again: int | None = None) -> int:
    """Enter this process in the list of relays, see `Store.register_relay`. Returns its id."""
    return store.register_relay(socket.gethostname(), os.getpid(), __version__, now_ms(), again=again)


class Maintenance:
    """What one relay does beside delivering, until `stop`. Each task runs on a thread and a connection of its own.

    What is to be done once for the database, the first relay of all does: `upkeep.is_first`.
    `verification` makes the one that `settings.verify_schedule` asks for. `reindexer` makes the one that resumes
    reindexes whose process was killed; it is given what it has to call now and then, so that the relay can stop.
    `stop_relay` is called within a heartbeat once another database has taken the place of the relay's: `replaced`.
    `lock_times` of the relay's store are published with each heartbeat, which sees to its `presence`, too. `notices`
    tell operators of what happens.
    """

    def __init__(
        self,
        engine: Engine,
        relay: int,
        settings: Settings,
        breakers: Callable[[], Sequence[Mapping[str, Any]]],
        verification: Callable[[Store], Verification] | None = None,
        reindexer: Callable[[Store, Callable[[], None]], Reindexer] | None = None,
        stop_relay: Callable[[], None] = lambda: None,
        lock_times: LockTimes | None = None,
        notices: Notices | None = None,
        presence: Held | None = None,
    ) -> None:
        self._engine, self._relay, self._settings, self._breakers = engine, relay, settings, breakers
        self._verification, self._reindexer, self._stop_relay = verification, reindexer, stop_relay
        self._lock_times, self._notices, self._presence = lock_times or LockTimes(), notices, presence
        self._identity = dialect_of(engine).identity(engine)
        self.replaced = False
        self.dead = 0
        """Rows that it ended because they killed their relays."""
        self._stopping = threading.Event()
        self._watch = LimitWatch()
        self._failing: set[str] = set()
        logging.getLogger("apscheduler").setLevel(logging.CRITICAL)  # a late task is no news
        self._scheduler = BackgroundScheduler(
            executors={name: ThreadPoolExecutor(1) for name in ("default", "prune", "verify", "reindex", "notices")},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone="UTC",
        )
        self._every(settings.heartbeat_interval, self.heartbeat)
        self._every(settings.reap_interval, self.reap)
        self._every(CHECKPOINT_EVERY_S, self.checkpoint, by_one=True)
        self._every(WATCH_EVERY_S, self.watch, by_one=True)
        self._every(DEPTH_EVERY_S, self.depth, by_one=True)
        self._every(PRUNE_EVERY_S, self.prune, by_one=True, thread="prune")  # after a flood it takes minutes
        if notices is not None:
            self._every(NOTICES_EVERY_S, self.notify, thread="notices")
        if settings.verify_schedule is not None and verification is not None:
            schedule = OrTrigger(
                [CronTrigger(**each, timezone="UTC") for each in cron_fields(settings.verify_schedule)]
            )
            self._scheduler.add_job(self.verify, schedule, executor="verify", id="verify")
        if reindexer is not None:
            every = settings.reap_interval
            self._scheduler.add_job(self.reindex, "interval", seconds=every, executor="reindex", id="reindex")

    def _every(
        self, seconds: float, task: Callable[[Store], None], *, by_one: bool = False, thread: str = "default"
    ) -> None:
        """`by_one`: it is for the database, and one relay of all does it."""

        def in_turn(store: Store) -> None:
            if not by_one or upkeep.is_first(store, self._relay, now_ms() - self._settings.silent_ms):
                task(store)

        name = task.__name__
        self._scheduler.add_job(
            self._guarded, "interval", seconds=seconds, args=[name, in_turn], id=name, executor=thread
        )

    # -- its life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the tasks. What a killed relay left behind is given back at once."""
        if self._notices is not None:
            self._notices.start()
        self._guarded("reap", self.reap)
        self._scheduler.start()

    def request_stop(self) -> None:
        """Begin no more, and let what takes long come to an early end. Safe in a signal handler."""
        self._stopping.set()

    def stop(self) -> None:
        """Let the running tasks finish, then no more."""
        self.request_stop()
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)
        if self._notices is not None:
            self._notices.stop()

    # -- the tasks ----------------------------------------------------------------------------------------------

    def heartbeat(self, store: Store) -> None:
        """Say that the relay is alive."""
        if self._presence is not None:
            self._presence.keep()
        if not upkeep.heartbeat(store, self._relay, self._breakers(), self._lock_times, now_ms()):
            enter(store, again=self._relay)

    def _is_same_database(self) -> bool:
        """If it is another one by now, the relay ends.

        Open connections go on with the file that was replaced or removed: what the application writes is not in it. A
        new one would go to the other file.
        """
        if not self.replaced and not self._has_same_identity():
            self.replaced = True
            self._stop_relay()
        return not self.replaced

    def _has_same_identity(self) -> bool:
        try:
            return dialect_of(self._engine).identity(self._engine) == self._identity
        except DatabaseUnavailable:
            return dialect_of(self._engine).exists(self._engine)  # a server may only be away for a while

    def reap(self, store: Store) -> None:
        """Give back what killed relays held."""
        dead = reap(store, self._relay, self._settings, now_ms())
        self.dead += dead
        if dead and self._notices is not None:
            self._notices.died("", POISON, dead)

    def prune(self, store: Store) -> None:
        """Remove finished rows and old statistics, in steps that hold the write lock for milliseconds."""
        prune_all(store, self._settings, now_ms(), self._stopping.wait)

    def depth(self, store: Store) -> None:
        """Record how full the outbox is."""
        upkeep.note_depth(store, now_ms())

    def checkpoint(self, store: Store) -> None:
        """Do what the database leaves to its users to tidy up."""
        upkeep.checkpoint(store)

    def watch(self, store: Store) -> None:
        """Warn once of what has grown too large, and say once that it has shrunk again."""
        oldest = store.oldest_unfinished()
        age = 0.0 if oldest is None else max(0, now_ms() - oldest) / 1000
        measured = Measured(age, sum(store.counts().values()), store.sizes().log)
        for each in self._watch.changes(growth(measured, Limits.of(self._settings))):
            size = {"name": each.name, "found": each.found, "value": each.value, "limit": each.limit}
            if each.over:
                logger.warning("{found}: {remedy}", remedy=each.remedy, **size)
            else:
                logger.info("{name} back below the limit: {found}", **size)
            if self._notices is not None:
                self._notices.grown(each)

    def notify(self, store: Store) -> None:
        """Have operators told of what has changed."""
        if self._notices is not None:
            self._notices.look(store)

    def verify(self) -> None:
        """Compare a sample with the index, unless another relay does. Differences are in `status` and the log."""
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
            logger.warning("scheduled verification ended early: {reason}", reason=str(error))
            return
        except Exception:
            logger.opt(exception=True).error("scheduled verification failed unexpectedly")
            return
        if verification.totals.drift:
            found = {str(kind): number for kind, number in verification.totals.found.items()}
            logger.error(
                "a sample of the documents differs from the database: {differences}; see 'outbox-relay verify'",
                differences=", ".join(f"{number:,} {kind}" for kind, number in found.items()),
                **found,
            )

    def reindex(self) -> None:
        """Resume reindexes whose process was killed, one after another, while rows are delivered beside it."""
        self._guarded("reindex", self._adopt)

    def _adopt(self, store: Store) -> None:
        assert self._reindexer is not None
        with suppress(LeftToRelays):
            adopt_orphans(store, self._reindexer, self._raise_if_stopping)

    def _raise_if_stopping(self) -> None:
        if self._stopping.is_set():
            raise LeftToRelays

    def _guarded(self, name: str, task: Callable[[Store], None]) -> None:
        """Run a task, and log once that it fails, until it has succeeded again."""
        if not self._is_same_database():
            return
        try:
            with closing(Store(self._engine)) as store:
                task(store)
            if name in self._failing:
                logger.info("{task} runs again", task=name)
            self._failing.discard(name)
        except OutboxError as error:
            if name not in self._failing:
                logger.warning("{task} suspended until the database answers: {reason}", task=name, reason=str(error))
            self._failing.add(name)
        except Exception:  # a damaged page of the database, say; the scheduler itself logs nothing
            if name not in self._failing:
                logger.opt(exception=True).error("{task} failed unexpectedly, and runs again when it is due", task=name)
            self._failing.add(name)
