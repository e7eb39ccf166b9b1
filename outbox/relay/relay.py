"""The loop: claim, load, plan, apply, decide, record."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from loguru import logger

from outbox import logs
from outbox.destinations.base import DOCUMENT_MISSING, Destination, Outcome, OutcomeKind
from outbox.entities.registry import EntityRegistry
from outbox.errors import DatabaseUnavailable, DestinationError, SchemaError
from outbox.relay import decide as transition
from outbox.relay import dual_write as copies
from outbox.relay import load, plan
from outbox.relay.breaker import Breaker
from outbox.relay.decide import Policy
from outbox.relay.dual_write import Refusal
from outbox.relay.plan import Fold
from outbox.relay.poison import LONE_FAILURES, Verdicts
from outbox.relay.rate import TenantRates
from outbox.relay.wakeup import Wakeup
from outbox.settings import LEASE_MARGIN_S, Settings
from outbox.store import claims
from outbox.store import conflicts as evidence
from outbox.store.claims import Claim
from outbox.store.models import UNEXPLAINED, Event, State, Transition, now_ms
from outbox.store.sqlite import malformed as illegal
from outbox.store.sqlite.malformed import IllegalRows
from outbox.store.store import Store

LEASE_MARGIN_MS = 1_000 * LEASE_MARGIN_S
MOST_ROWS_AT_TRIAL = 50

_SILENT = frozenset({OutcomeKind.UNAVAILABLE, OutcomeKind.BLOCKED, OutcomeKind.OVERLOADED, OutcomeKind.SPLIT})
_ERRORS = frozenset({OutcomeKind.REJECTED, OutcomeKind.FAILED})
_SETTLING = frozenset({OutcomeKind.CONFLICT, OutcomeKind.REJECTED, OutcomeKind.FAILED})  # whether it takes rows or not


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the destination. `rest`: rows of the same document that follow one by one, after an unfold: their
    fold was `sent` before, and its failure may have come after it was applied."""

    claim: Claim
    folds: Sequence[Fold] = ()
    rest: Sequence[Fold] = ()
    sent: bool = False
    unknown_indexes: Sequence[str] = ()

    @property
    def rows(self) -> list[int]:
        """The rows that depend on it."""
        if self.unknown_indexes:
            return [event.id for event in self.claim.events]
        return [event.id for fold in (*self.folds, *self.rest) for event in fold.events]


@dataclass(slots=True)
class Answer:
    """What came back for a request."""

    request: Request
    outcomes: Sequence[Outcome] = ()
    targets: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    failed_alone: bool = False  # no answer for this row, and one for a harmless operation on its document
    refusals: Sequence[Refusal] = ()  # by the new index of a reindex, of what the live one took


@dataclass(slots=True)
class Totals:
    """What a relay has settled since it started."""

    done: int = 0
    dead: int = 0
    lost_claims: int = 0


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
        self._store, self._destination, self._settings, self._id = store, destination, settings, relay_id
        self._registry = registry
        self._lease_ms, self._request_ms = int(settings.lease * 1000), int(settings.request_timeout * 1000)
        self._policy = Policy(
            settings.max_retries, int(settings.retry_backoff * 1000), int(settings.breaker_longest_pause * 1000)
        )
        self._rates = TenantRates(settings.tenant_rate) if settings.tenant_rate else None
        self._breaker = self._new_breaker()
        self._index_breakers: dict[str, Breaker] = {}
        # Others are next: the last answer was none, to a row sent alone. Or this relay has just begun, perhaps because
        # such a row killed the one before it: what else waits must not wait for the next death.
        self._lone_failed = True
        self._verdicts = Verdicts(just_ms=self._lease_ms + 2 * self._request_ms)
        self._answers: queue.Queue[Answer] = queue.Queue()
        self._in_flight: dict[int, Request] = {}
        self._following: deque[Request] = deque()  # what has to follow answers, before more is claimed
        self._database_trouble: str | None = None
        self._stopping = False
        self.totals = Totals()

    # -- the flow -----------------------------------------------------------------------------------------------

    def run_once(self, now: int | None = None) -> int:
        """Claim one batch, deliver it, and record what became of every row.

        Returns the number of rows settled (done or dead); 0 means that nothing was due, or nothing could be
        delivered. Raises nothing for a destination that is away: the claim is released and the breaker opens.
        """
        before = self.totals.done + self.totals.dead
        request = self._next_request(now_ms() if now is None else now)
        while request:
            self._following += self._settle(self._send(request), now_ms() if now is None else now)
            request = self._next_following(now_ms() if now is None else now)
        return self.totals.done + self.totals.dead - before

    def run(self, *, drain: bool = False, progress: Callable[[Totals], None] | None = None) -> Totals:
        """Deliver until `stop`; with `drain` until nothing is pending or claimed, by whomever.

        `progress` is called after every batch. After `stop`, requests in flight have `shutdown_timeout` to finish;
        what is left then is released. The same before it raises `SchemaError`: the tables were migrated meanwhile.
        """
        workers = _Workers(self._settings.concurrency, self._send, self._answers)
        wakeup = Wakeup(self._store.commits_elsewhere)
        while not self._stopping:
            pause = self._settings.poll_interval
            try:
                while len(self._in_flight) < self._settings.concurrency and (
                    request := self._next_following(now_ms()) or self._next_request(now_ms())
                ):
                    self._in_flight[id(request)] = request
                    workers.submit(request)
                    self._note_database(None)
                if drain and not self._in_flight and not self._store.unfinished():
                    break
                if answer := wakeup.wait(self._answers, pause, lambda: self._stopping):
                    self._finish(answer)
                    self._note_database(None)
                    if progress:
                        progress(self.totals)
            except DatabaseUnavailable as error:
                self._note_database(str(error))
                time.sleep(pause)
            except SchemaError:
                self._shut_down(workers)
                raise
        self._shut_down(workers)
        return self.totals

    def stop(self) -> None:
        """Ask `run` to end. Safe in a signal handler and from other threads."""
        self._stopping = True

    def breakers(self) -> list[dict[str, Any]]:
        """What is paused, why and since when: one entry for each open breaker."""
        named: list[tuple[str, str | None, Breaker]] = [("destination", None, self._breaker)]
        named += [("index", name, breaker) for name, breaker in list(self._index_breakers.items())]
        return [
            {"scope": scope, "index": name, "reason": b.reason, "since": b.opened_at, "next_probe": b.retry_at}
            for scope, name, b in named
            if b.is_open
        ]

    # -- claim, load, plan --------------------------------------------------------------------------------------

    def _next_request(self, now: int) -> Request | None:
        """The next request worth sending: a batch that is due, or a trial of what was away."""
        rows = self._settings.batch_rows
        if self._breaker.is_open:
            if self._in_flight or not self._breaker.probe_due(now):
                return None
            rows = min(rows, MOST_ROWS_AT_TRIAL)  # a cluster that answers slowly may manage a small request
        try:
            claim = self._claim_trial(now) or self._claim(now, rows, lone=not self._lone_failed)
            if self._lone_failed and not claim:
                claim = self._claim(now, rows)
        except IllegalRows:
            self._end_illegal(now)
            return self._next_request(now)
        if claim and claim.lone and self._verdicts.guilty(claim.events[0].id):
            self._bury(claim, now)
            return self._next_request(now)
        return self._plan(claim) if claim else None

    def _end_illegal(self, now: int) -> None:
        if dead := illegal.end(self._store, now):
            self.totals.dead += dead
            name = logs.rows(dead, "names", "name")
            logger.error(
                f"{name} a document by no UTF-8 text, as another program wrote it: see 'outbox-relay dead list'"
            )

    def _claim(self, now: int, rows: int, *, only: str | None = None, lone: bool = True) -> Claim | None:
        paused = [name for name, breaker in self._index_breakers.items() if breaker.is_open and name != only]
        rates = self._rates
        claim = claims.claim(
            self._store,
            relay=self._id,
            now=now,
            lease_ms=self._lease_ms,
            longest_wait=max(self._policy.longest_wait_ms, self._lease_ms),
            rows=rows,
            bytes_=self._settings.batch_bytes,
            leave_out=paused,
            only=only,
            tenants_out=rates.exhausted(now) if rates else (),
            tenant_rows=rates.burst if rates else None,
            lone_after=self._settings.lone_after,
            lone=lone and not any(request.claim.lone for request in self._in_flight.values()),
        )
        if claim and rates:
            rates.took((event.tenant_id for event in claim.events), now)
        return claim

    def _claim_trial(self, now: int) -> Claim | None:
        """One row of an index that was blocked and should be tried again."""
        # One trial of an index at a time: a red one holds each for seconds, and all would hold every worker.
        asked = {event.index_name for request in self._in_flight.values() for event in request.claim.events}
        for name, breaker in list(self._index_breakers.items()):
            if name in asked or not breaker.probe_due(now):
                continue
            if claim := self._claim(now, 1, only=name):
                breaker.tried(now)
                return claim
            if not self._store.any_unfinished(name):
                del self._index_breakers[name]  # purged, or delivered by another relay
                logger.info(f"no row of index {name} is left that waits, it is no longer paused")
        return None

    def _next_following(self, now: int) -> Request | None:
        """The next request that has to follow an answer, under a lease that outlasts it."""
        while self._following:
            ready = self._ready(self._following[0], now)
            self._following.popleft()  # not before: the database may fail
            if ready:
                return ready
        return None

    def _ready(self, request: Request, now: int) -> Request | None:
        if self._breaker.is_open:
            claims.release(self._store, request.claim, request.rows, now, undelivered=not request.sent)
            return None
        if request.claim.lease_expires_at - now >= self._request_ms + LEASE_MARGIN_MS:
            return request
        if claim := claims.renew(self._store, request.claim, request.rows, now + self._lease_ms):
            return replace(request, claim=claim)
        logger.warning("a lease ended before its rows were sent; whoever has them now delivers them")
        return None

    def _plan(self, claim: Claim) -> Request:
        unknown = sorted({event.index_name for event in claim.events} - claim.targets.keys())
        if legal := [name for name in unknown if not load.illegal_name(name)]:
            return Request(claim, unknown_indexes=legal)
        return Request(claim, self._folds(claim, claim.events))

    def _folds(self, claim: Claim, *documents: Sequence[Event]) -> list[Fold]:
        """Rows of each document, or each row by itself, with their contents of this moment."""
        contents = load.contents(self._store, self._registry, claim)
        targets = defaultdict(str, claim.targets)  # an illegal name has none, and nothing is sent for it
        return [fold for events in documents for fold in plan.fold(events, contents, targets, claim.epoch)]

    # -- apply --------------------------------------------------------------------------------------------------

    def _send(self, request: Request) -> Answer:
        """Runs in a worker: no database here."""
        if request.unknown_indexes:
            answer = Answer(request)
            for name in request.unknown_indexes:
                try:
                    options = self._registry.index_options(name) if self._registry else None
                    answer.targets[name] = self._destination.ensure_index(name, *(options or ()))
                except DestinationError as error:
                    answer.refused[name] = str(error)
                    if why := self._destination.ping():  # asking for each index would cost as many timeouts
                        unasked = set(request.unknown_indexes) - answer.targets.keys()
                        answer.refused |= dict.fromkeys(unasked, why)
                        answer.outcomes = [Outcome(OutcomeKind.UNAVAILABLE, "unavailable", why)]
                        break
            return answer
        operations = [fold.operation for fold in request.folds if fold.known is None]
        applied, refusals = (
            copies.apply(self._destination, operations, request.claim.copies) if operations else ((), ())
        )
        outcomes = iter(applied)
        answer = Answer(request, [fold.known or next(outcomes) for fold in request.folds], refusals=refusals)
        if request.claim.lone and answer.outcomes[0].kind is OutcomeKind.UNAVAILABLE:
            # A delete that is older than anything: it leaves what is there as it is.
            harmless = replace(request.folds[0].operation, version=0, document=None, patches=())
            (outcome,) = self._destination.apply([harmless])
            answer.failed_alone = outcome.kind in (OutcomeKind.APPLIED, OutcomeKind.CONFLICT)
        return answer

    # -- decide, record -----------------------------------------------------------------------------------------

    def _settle(self, answer: Answer, now: int) -> list[Request]:
        """Record what an answer means. Returns the requests that have to follow it."""
        request, claim = answer.request, answer.request.claim
        if request.unknown_indexes:
            return self._settle_indexes(answer, now)
        self._note_refusals(answer, now)
        if any(outcome.error_type == DOCUMENT_MISSING for outcome in answer.outcomes):
            answer.outcomes = [self._explained(*each) for each in zip(request.folds, answer.outcomes, strict=True)]
        following: list[Request] = []
        transitions: list[Transition] = []
        split: list[Fold] = []
        for fold, outcome in zip(request.folds, answer.outcomes, strict=True):
            if outcome.kind is OutcomeKind.SPLIT:
                split.append(fold)
            elif transition.needs_unfolding(fold.events, outcome, self._policy):
                first, *rest = self._unfold(claim, fold)
                following.append(Request(claim, [first], rest, sent=True))
            else:
                explained = outcome.kind is OutcomeKind.CONFLICT and (
                    outcome.error_type == DOCUMENT_MISSING
                    or evidence.explained(self._store, fold.events[-1], outcome.version, claim.epoch)
                )
                transitions += transition.decide(
                    fold.events,
                    outcome,
                    self._policy,
                    now,
                    sent=fold.operation,
                    explained=explained,
                    overtaken=explained and self._overtaken(fold, outcome),
                    failed_alone=answer.failed_alone,
                )
        if split:
            middle = len(split) // 2
            following += [Request(claim, half) for half in (split[:middle], split[middle:]) if half]
        if request.rest:
            following += self._continue(request, transitions, now)
        self._note_health(answer, now)
        self._record(claim, transitions, now)
        self._log(answer)
        return following

    def _note_refusals(self, answer: Answer, now: int) -> None:
        """What only the new index of a reindex refuses fails the reindex, and the row is done."""
        sent = [at for at, fold in enumerate(answer.request.folds) if fold.known is None]
        for target in {refusal.target for refusal in answer.refusals}:
            of_target = [refusal for refusal in answer.refusals if refusal.target == target]
            first = answer.request.folds[sent[of_target[0].at]].operation
            outcome = of_target[0].outcome
            if evidence.refused(
                self._store,
                first.index,
                target,
                len(of_target),
                f"index {target} does not take {first.document_id}: {outcome.error_type}: {outcome.error}",
                blocked=outcome.kind is OutcomeKind.BLOCKED,
                now=now,
            ):
                # It is live by now, or about to be: it decides when the row comes again.
                later = Outcome(OutcomeKind.OVERLOADED, outcome.error_type, outcome.error)
                refused = {sent[refusal.at] for refusal in of_target}
                answer.outcomes = [later if at in refused else each for at, each in enumerate(answer.outcomes)]

    def _overtaken(self, fold: Fold, outcome: Outcome) -> bool:
        """Rows of one document under two tenants can overtake each other, and one of them is a partial update.

        What is sent for the first time is in nothing that the index holds: a later update, or a later document under
        an update, was delivered without it. A later document alone makes an earlier one history; and so does one that
        a reindex has made of the database, where the change was before its row could be read.
        """
        last = fold.events[-1]
        if last.deliveries > 1 or outcome.version is None:
            return False
        if evidence.is_of_reindex(self._store, last.index_name, outcome.version):
            return False
        return bool(fold.operation.patches) or evidence.is_update(self._store, last, outcome.version)

    def _explained(self, fold: Fold, outcome: Outcome) -> Outcome:
        """A document may be missing because a later row, delivered before without an answer, removed it."""
        if outcome.error_type == DOCUMENT_MISSING and evidence.removed_since(self._store, fold.events[-1]):
            return outcome._replace(kind=OutcomeKind.CONFLICT, version=None)
        return outcome

    def _settle_indexes(self, answer: Answer, now: int) -> list[Request]:
        """Note where unknown indexes are; rows of those that cannot be had wait."""
        for name, target in answer.targets.items():
            self._store.register_index(name, target)
        claim = replace(answer.request.claim, targets=self._store.targets(), copies=self._store.copies())
        blocked = [event for event in claim.events if event.index_name in answer.refused]
        away = answer.outcomes[0] if answer.outcomes else None
        transitions: list[Transition] = []
        for event in blocked:
            outcome = away or Outcome(OutcomeKind.BLOCKED, "index_unavailable", answer.refused[event.index_name])
            transitions += [t._replace(unsent=True) for t in transition.decide([event], outcome, self._policy, now)]
        if away:
            self._destination_failed(away, blocked[0], now)
        else:
            self._destination_answered(now)
            for name, why in answer.refused.items():
                self._index_failed(name, why, now)
        self._record(claim, transitions, now)
        ready = replace(claim, events=tuple(event for event in claim.events if event.index_name not in answer.refused))
        return [self._plan(ready)] if ready.events else []

    def _bury(self, claim: Claim, now: int) -> None:
        """The end of a row that is poison; nothing is sent for it."""
        (event,) = claim.events
        dead = transition.poisoned(event, LONE_FAILURES)
        self._verdicts.forget(event.id)
        self._record(claim, [dead], now)
        logs.operations([_line(event, dead.error)])

    def _unfold(self, claim: Claim, fold: Fold) -> list[Fold]:
        """The rows of a fold one by one, in the order of their ids: only the guilty one may die."""
        # What failed may have been applied: the version that the last row brings now is then there already.
        again = tuple(event._replace(deliveries=event.deliveries + 1) for event in fold.events)
        return self._folds(replace(claim, events=again), *([event] for event in again))

    def _continue(self, request: Request, transitions: Sequence[Transition], now: int) -> list[Request]:
        """After one row of an unfolded document: the next, or none if this one has to be tried again first."""
        if all(transition.state is not State.PENDING for transition in transitions):
            return [replace(request, folds=[request.rest[0]], rest=request.rest[1:])]
        claims.release(self._store, request.claim, replace(request, folds=()).rows, now, undelivered=False)
        return []

    def _record(self, claim: Claim, transitions: Sequence[Transition], now: int) -> None:
        if not transitions:
            return
        lost = claims.record(self._store, claim, transitions, now)
        if lost:
            claimed = logs.rows(len(lost), "was", "were")
            logger.warning(f"{claimed} claimed by another relay meanwhile, which decides what becomes of them")
        ours = [t for t in transitions if t not in lost] if lost else transitions
        self.totals.lost_claims += len(lost)
        states = Counter(t.state for t in ours)
        self.totals.done += states[State.DONE]
        self.totals.dead += states[State.DEAD]
        unexplained = [t for t in ours if t.error_type == UNEXPLAINED]
        if unexplained:
            first = unexplained[0].event
            logger.critical(
                f"{logs.rows(len(unexplained), 'is', 'are')} dead, first "
                f"{first.index_name}/{logs.safe(first.document_id)}: {unexplained[0].error}"
            )

    def _log(self, answer: Answer) -> None:
        logs.operations(
            _line(event, outcome.error if outcome.kind in _ERRORS or answer.failed_alone else None)
            for fold, outcome in zip(answer.request.folds, answer.outcomes, strict=True)
            if outcome.kind not in _SILENT or answer.failed_alone
            for event in fold.events[-1:]
        )

    # -- breakers -----------------------------------------------------------------------------------------------

    def _new_breaker(self) -> Breaker:
        return Breaker(int(self._settings.breaker_first_pause * 1000), int(self._settings.breaker_longest_pause * 1000))

    def _note_health(self, answer: Answer, now: int) -> None:
        answered = list(zip(answer.request.folds, answer.outcomes, strict=True))
        self._lone_failed = answer.request.claim.lone and answer.outcomes[0].kind is OutcomeKind.UNAVAILABLE
        away = next((each for each in answered if each[1].kind is OutcomeKind.UNAVAILABLE), None)
        if away and not answer.failed_alone:
            self._destination_failed(away[1], away[0].events[-1], now)
        elif any(fold.known is None for fold, _ in answered):
            self._destination_answered(now)
        if answer.failed_alone:
            ((fold, _),) = answered
            self._verdicts.failed_alone(fold.events[0].id, fold.operation.index, now)
            return
        for index, outcomes in _by_index(answered).items():
            applied = OutcomeKind.APPLIED in outcomes
            if applied:
                self._verdicts.applied(index, now)
            if blocked := outcomes.get(OutcomeKind.BLOCKED):
                self._index_failed(index, f"{blocked.error_type}: {blocked.error}", now)
            elif index in self._index_breakers and applied:
                open_for = self._index_breakers.pop(index).succeeded(now)
                logger.info(f"index {index} takes rows again after {_span(open_for or 0)}")
            elif index in self._index_breakers and outcomes.keys() <= _SETTLING:
                self._index_breakers[index].proved_nothing(now)

    def _destination_answered(self, now: int) -> None:
        closed_after = self._breaker.succeeded(now)
        if closed_after is not None:
            waiting = logs.rows(self._store.unfinished())
            logger.info(f"destination answers again after {_span(closed_after)}, resuming with {waiting}")

    def _destination_failed(self, outcome: Outcome, event: Event, now: int) -> None:
        self._verdicts.unanswered()
        if self._breaker.failed(f"{outcome.error_type}: {outcome.error}", now):
            logs.operations([_line(event, outcome.error)])  # the only one: an outage is no error of each row
            logger.warning(
                f"destination unreachable ({logs.safe(outcome.error or '?')}), pausing; "
                f"{logs.rows(self._store.unfinished(), 'waits', 'wait')}, no attempt is spent"
            )

    def _note_database(self, trouble: str | None) -> None:
        """One line when it begins and one when it ends. Only a write that went through is an end."""
        if trouble and trouble != self._database_trouble:
            logger.warning(f"{trouble}; the relay tries again until it works, nothing is lost")
        elif self._database_trouble and not trouble:
            logger.info("the database takes writes again")
        self._database_trouble = trouble

    def _index_failed(self, name: str, reason: str, now: int) -> None:
        breaker = self._index_breakers.setdefault(name, self._new_breaker())
        if breaker.failed(reason, now):
            logger.warning(
                f"index {name} takes no rows ({logs.safe(reason)}), pausing it; other indexes flow on; "
                "'outbox-relay check' says what to do"
            )

    # -- threads ------------------------------------------------------------------------------------------------

    def _finish(self, answer: Answer) -> None:
        try:
            self._following += self._settle(answer, now_ms())
        except DatabaseUnavailable:
            self._answers.put(answer)  # the answer stands; it is recorded when the database takes it
            raise
        del self._in_flight[id(answer.request)]

    def _shut_down(self, workers: _Workers) -> None:
        deadline = time.monotonic() + self._settings.shutdown_timeout
        try:
            while self._in_flight and (left := deadline - time.monotonic()) > 0:
                self._finish(self._answers.get(timeout=left))
        except queue.Empty:
            pass
        except DatabaseUnavailable as error:
            logger.warning(f"{error}; rows of the last requests are delivered again by the next relay")
        try:
            for request in self._following:
                claims.release(self._store, request.claim, request.rows, now_ms(), undelivered=not request.sent)
            for request in self._in_flight.values():
                claims.release(self._store, request.claim, request.rows, now_ms(), undelivered=False)
        except DatabaseUnavailable as error:
            logger.warning(f"{error}; rows in flight come back when their lease expires")
        workers.stop()


class _Workers:
    """Threads that send requests and put the answers into a queue. Daemons: a hanging request delays no exit."""

    def __init__(self, number: int, send: Callable[[Request], Answer], answers: queue.Queue[Answer]) -> None:
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._send, self._answers, self._number = send, answers, number
        for position in range(number):
            threading.Thread(target=self._work, name=f"outbox-send-{position}", daemon=True).start()

    def submit(self, request: Request) -> None:
        self._requests.put(request)

    def stop(self) -> None:
        for _ in range(self._number):
            self._requests.put(None)

    def _work(self) -> None:
        while request := self._requests.get():
            try:
                answer = self._send(request)
            except Exception as error:
                logger.opt(exception=True).error("a request failed in a way that no destination may; its rows wait")
                lost = Outcome(OutcomeKind.UNAVAILABLE, type(error).__name__, str(error))
                answer = Answer(
                    request,
                    [lost] * max(1, len(request.folds)),  # one speaks for all unknown indexes
                    refused=dict.fromkeys(request.unknown_indexes, str(error)),
                )
            self._answers.put(answer)


def _by_index(answered: Sequence[tuple[Fold, Outcome]]) -> dict[str, dict[OutcomeKind, Outcome]]:
    """For each index what kinds of outcomes there are, and one of each."""
    found: dict[str, dict[OutcomeKind, Outcome]] = {}
    for fold, outcome in answered:
        found.setdefault(fold.operation.index, {}).setdefault(outcome.kind, outcome)
    return found


def _line(event: Event, error: str | None = None) -> tuple[str, str, str, int, str | None]:
    return event.action, event.index_name, event.document_id, event.id, error


def _span(milliseconds: int) -> str:
    minutes, seconds = divmod(round(milliseconds / 1000), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
