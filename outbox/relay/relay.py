"""The loop of a relay: claim, load, plan, send, decide, settle."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from loguru import logger

from outbox.destinations.base import Destination
from outbox.entities.registry import EntityRegistry
from outbox.errors import DatabaseUnavailable, FailedOver, SchemaError
from outbox.relay import requests, send
from outbox.relay.claim import Claimer
from outbox.relay.decide import Policy
from outbox.relay.health import Health
from outbox.relay.intake import HEAVY_BYTES
from outbox.relay.requests import Answer, Request
from outbox.relay.send import Workers
from outbox.relay.settle import Settler, Totals
from outbox.relay.wakeup import Wakeup
from outbox.settings import LEASE_MARGIN_S, Settings
from outbox.store import claims
from outbox.store.claims import Claim
from outbox.store.malformed import MalformedRows
from outbox.store.models import now_ms
from outbox.store.store import Store

IDLE_TIMES: Final = 5
"""While no row is unfinished and commits are watched, a wait lasts so many times `OUTBOX_POLL_INTERVAL`."""


class Relay:
    """Delivers what is due to a destination until told to stop. Any number of them may share a database.

    All work on the database is done by the thread that calls `run` or `run_once`; only requests run in others.
    """

    def __init__(
        self,
        store: Store,
        destination: Destination,
        settings: Settings,
        *,
        relay_id: int = 0,
        registry: EntityRegistry | None = None,
    ) -> None:
        self._store, self._destination, self._settings, self._registry = store, destination, settings, registry
        policy = Policy(
            settings.max_retries, int(settings.retry_backoff * 1000), int(settings.breaker_longest_pause * 1000)
        )
        self._health = Health(settings, store.unfinished)
        self._claimer = Claimer(store, settings, self._health, relay_id, policy.longest_wait_ms)
        self._settler = Settler(store, registry, policy, self._health)
        self._answers: queue.Queue[Answer] = queue.Queue()
        self._wakeup: Wakeup[Answer] | None = None
        self._in_flight: dict[int, Request] = {}
        self._following: deque[Request] = deque()  # what has to follow answers, before more is claimed
        self.database_error: str | None = None
        """Why the database does not take this relay's writes, while it does not."""
        self.looked_at = time.monotonic()
        """When it last asked for rows and got an answer, whether there were any, by `time.monotonic`."""
        self.settled_at: int | None = None
        """When it last settled a row, in milliseconds since 1970."""
        self._claims = False  # whose turn it was: what is claimed, or what follows
        self._took_all = False  # the last claim left nothing that was due then
        self._stopping = False

    @property
    def totals(self) -> Totals:
        """What this relay has settled so far."""
        return self._settler.totals

    # -- the flow -----------------------------------------------------------------------------------------------

    def run_once(self, now: int | None = None) -> int:
        """Claim one batch, deliver it, and record what became of every row.

        Returns the number of rows settled (done or dead); 0 means that nothing was due, or nothing could be
        delivered. Raises nothing for a destination that is away: the claim is released and the breaker opens.
        """
        before, self._took_all = self.totals.settled, False
        request = self._next_request(now or now_ms())  # claim, load, plan
        while request:
            answer = self._send(request)
            self._following += self._settle(answer, now or now_ms())  # decide, record
            request = self._next_following(now or now_ms())
        return self.totals.settled - before

    def _next_request(self, now: int) -> Request | None:
        """Claim rows that are worth sending, load what they say, and plan what is sent for them."""
        claim = self._claim(now)
        if not claim:
            return None
        (first, *rest), given_back = requests.planned(self._store, self._registry, claim, self._health.intakes, now)
        self._took_all = self._took_all and not given_back
        self._following += rest
        return self._leased(first, now + int((time.monotonic() - self.looked_at) * 1000))

    def _claim(self, now: int) -> Claim | None:
        in_flight = self._in_flight.values()
        while not self._took_all:
            try:
                claim = self._claimer.next(now, [request.claim for request in in_flight], self._waits_for_its_turn())
            except MalformedRows:
                self._settler.end_malformed(now)
                continue
            self.looked_at = time.monotonic()
            if not (claim and claim.lone and self._health.poison.guilty(claim.events[0].id)):
                self._took_all = claim is not None and not claim.more
                return claim
            self._settler.mark_poison(claim, now)
        return None

    def _send(self, request: Request) -> Answer:
        """Runs in a worker: no database here."""
        return send.send(self._destination, self._registry, request)

    def _settle(self, answer: Answer, now: int) -> list[Request]:
        """Decide what an answer means, and record it. Returns the requests that have to follow it."""
        before = self.totals.settled
        following = self._settler.settle(answer, now)
        self.looked_at = time.monotonic()
        if self.totals.settled > before:
            self.settled_at = now_ms()
        return following

    def _next_following(self, now: int) -> Request | None:
        """The next request that has to follow an answer, under a lease that outlasts it."""
        while self._following and not (self._is_last_worker() and self._following[0].indexes & self._heavy()):
            ready = self._ready(self._following[0], now)
            self._following.popleft()  # not before: the database may fail
            if ready:
                return ready
        return None

    def _ready(self, request: Request, now: int) -> Request | None:
        if self._health.destination.is_open:
            requests.release(self._store, request, now, sent=request.sent)
            return None
        return self._leased(request, now)

    def _leased(self, request: Request, now: int) -> Request | None:
        needed_ms = int(self._settings.request_timeout * 1000) + 1000 * LEASE_MARGIN_S
        return requests.leased(self._store, request, now, needed_ms, int(self._settings.lease * 1000))

    def _next(self, now: int) -> Request | None:
        """What follows answers, and what is claimed: by turns, so that neither waits for all of the other."""
        self._claims = not self._claims
        if self._claims and sum(request.size for request in self._following) <= self._settings.batch_bytes:
            return self._next_request(now) or self._next_following(now)
        return self._next_following(now) or self._next_request(now)

    def _waits_for_its_turn(self) -> set[str]:
        """Indexes of which nothing more is claimed now: the last worker is for others, and so is every second turn."""
        following = {index for request in self._following for index in request.indexes}
        return following | self._heavy() if self._is_last_worker() else following

    def _is_last_worker(self) -> bool:
        return 1 < self._settings.concurrency == len(self._in_flight) + 1

    def _heavy(self) -> set[str]:
        """Indexes of which others should not have to wait for a request that is under way."""
        most = self._health.intakes.most()
        return {
            index
            for request in self._in_flight.values()
            for index in request.indexes
            if index in most or request.size >= HEAVY_BYTES
        }

    # -- as a process -------------------------------------------------------------------------------------------

    def run(self, *, drain: bool = False, progress: Callable[[Totals], None] | None = None) -> Totals:
        """Deliver until `stop`; with `drain` until nothing is pending or claimed, by any relay.

        `progress` is called after every batch. After `stop`, requests in flight have `shutdown_timeout` to finish;
        what is left then is released. The same before it raises `FailedOver`, or `SchemaError` after a migration.
        """
        watch = partial(self._store.dialect.watch, self._store.run, self._store.connection.engine)
        with Wakeup(self._answers, self._store.signal, watch) as self._wakeup:
            workers = Workers(self._settings.concurrency, self._send, self._answered)
            self._deliver(workers, self._wakeup, drain, progress)
            self._shut_down(workers)
        return self.totals

    def _deliver(
        self, workers: Workers, wakeup: Wakeup[Answer], drain: bool, progress: Callable[[Totals], None] | None
    ) -> None:
        while not self._stopping:
            self._took_all = False
            try:
                while len(self._in_flight) < self._settings.concurrency and (request := self._next(now_ms())):
                    self._in_flight[id(request)] = request
                    workers.submit(request)
                    self._note_database(None)
                if drain and not self._in_flight and not self._store.unfinished():
                    break
                if answer := self._wait(wakeup, drain):
                    self._finish(answer)
                    self._note_database(None)
                    if progress:
                        progress(self.totals)
            except DatabaseUnavailable as error:
                self._note_database(str(error))
                time.sleep(self._settings.poll_interval)
            except (SchemaError, FailedOver):
                self._shut_down(workers)
                raise

    def _wait(self, wakeup: Wakeup[Answer], drain: bool) -> Answer | None:
        """The next answer. None: there may be something to claim, or it is to stop.

        Time alone makes nothing due where no row is unfinished and no index blocked: then it waits on, and for longer
        where commits are watched.
        """
        pause_s = self._claimer.pause_s
        while True:
            answer = wakeup.wait(pause_s, lambda: self._stopping)
            if answer or self._in_flight or self._stopping or not wakeup.timed_out:
                return answer
            if drain or self._health.paused_indexes() or claims.any_unfinished(self._store):
                return None
            self.looked_at = time.monotonic()
            if wakeup.watches:
                pause_s = IDLE_TIMES * self._claimer.pause_s

    def _answered(self, answer: Answer) -> None:
        """From a worker."""
        self._answers.put(answer)
        self._ring()

    def _ring(self) -> None:
        if self._wakeup is not None:
            self._wakeup.ring()

    def stop(self) -> None:
        """Ask `run` to end. Safe in a signal handler and from other threads."""
        self._stopping = True
        self._ring()

    def deaths(self) -> dict[tuple[str, str], int]:
        """How many rows it has found dead so far, by index (empty: unknown) and type of error. From any thread."""
        return dict(self._settler.deaths)

    def breakers(self) -> list[dict[str, Any]]:
        """What is paused, why and since when: one entry for each open breaker."""
        return self._health.breakers()

    def _finish(self, answer: Answer) -> None:
        try:
            self._following += self._settle(answer, now_ms())
        except DatabaseUnavailable:
            self._answers.put(answer)  # it is settled when the database takes it
            raise
        del self._in_flight[id(answer.request)]

    def _note_database(self, error: str | None) -> None:
        """One line when it begins to fail and one when it works again. Only a write that went through is an end."""
        if error and error != self.database_error:
            logger.warning("{error}; the relay tries again until it works, nothing is lost", error=error)
        elif self.database_error and not error:
            logger.info("the database takes writes again")
        self.database_error = error

    def _shut_down(self, workers: Workers) -> None:
        deadline = time.monotonic() + self._settings.shutdown_timeout
        try:
            while self._in_flight and (left := deadline - time.monotonic()) > 0:
                self._finish(self._answers.get(timeout=left))
        except queue.Empty:
            pass
        except DatabaseUnavailable as error:
            logger.warning("{error}; rows of the last requests are delivered again by the next relay", error=str(error))
        try:
            for request in self._following:
                requests.release(self._store, request, now_ms(), sent=request.sent)
            for request in self._in_flight.values():
                requests.release(self._store, request, now_ms(), sent=True)
        except DatabaseUnavailable as error:
            logger.warning("{error}; rows in flight come back when their lease expires", error=str(error))
        workers.stop()
