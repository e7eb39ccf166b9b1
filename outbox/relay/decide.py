"""Pure: what an outcome means for the rows it speaks of, as the documentation has it in a table of outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from outbox.destinations.base import DOCUMENT_MISSING, Operation, Outcome, OutcomeKind
from outbox.destinations.faults import named_field
from outbox.relay.plan import Fold
from outbox.relay.requests import Answer
from outbox.store.claims import Claim
from outbox.store.conflicts import Conflict, Facts
from outbox.store.models import (
    POISON,
    UNANSWERED,
    UNEXPLAINED,
    Event,
    Result,
    State,
    Transition,
)

UNEXPLAINED_REMEDY = (
    "nothing in this outbox wrote it: the database was restored from a backup, or something else writes to the "
    "index; run 'outbox-relay epoch advance', then 'outbox-relay dead retry --error-type unexplained_version'"
)
FOUND_REMEDY = (
    "nothing in this outbox wrote it, the index was filled before: by an earlier database of the application, or by "
    "another program; run 'outbox-relay epoch advance', which makes the rows of this one newer"
)
CERTAIN_AFTER: Final = 3
"""Claims of a row. A version that was sent, and is there already, can be one of another database that has counted as
far; time and again it is not, but something on the way repeats each request."""

VOID: Final = "void"
"""What becomes of an update whose document a later row has removed already."""

_NO_CONFLICT = Facts()

# To look a member up in its class costs ten times as much, at each row.
_CONFLICT: Final = OutcomeKind.CONFLICT
_TAKEN: Final = OutcomeKind.APPLIED
_DONE: Final = State.DONE
_APPLIED: Final = Result.APPLIED
_DELETED: Final = Result.DELETED


@dataclass(frozen=True, slots=True)
class Policy:
    """How often and how soon a document's own failure is tried again. Times in milliseconds."""

    max_retries: int = 3
    backoff_ms: int = 2_000
    longest_pause_ms: int = 30_000

    def retry_pause(self, failures: int) -> int:
        """Pause after the n-th failure: 2, 4, 8 s by default."""
        return self.backoff_ms << (failures - 1)

    def overload_pause(self, deliveries: int) -> int:
        """Pause after the n-th delivery that found the destination overloaded: 1, 2, 4 … 30 s by default."""
        return int(min(self.longest_pause_ms, 1_000 * 2 ** min(deliveries - 1, 20)))

    @property
    def longest_wait_ms(self) -> int:
        """What lies further ahead than this was put there by another clock, and is due."""
        return max(self.retry_pause(max(self.max_retries, 1)), self.longest_pause_ms)


@dataclass(frozen=True, slots=True)
class Decision:
    """What an answer means. `outcomes`: those of the answer, as they are understood with what the tables say."""

    outcomes: list[Outcome] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)
    unfold: list[Fold] = field(default_factory=list)  # to be sent row by row
    split: list[Fold] = field(default_factory=list)  # to be sent in smaller requests


def conflicts_in(answer: Answer) -> list[Conflict]:
    """What has to be asked before an answer can be decided."""
    return [
        Conflict(fold.events[-1], outcome.version)
        for fold, outcome in answer.by_fold
        if outcome.error_type == DOCUMENT_MISSING or (outcome.kind is _CONFLICT and outcome.version is not None)
    ]


def decide_all(answer: Answer, facts: Mapping[int, Facts], policy: Policy, now: int) -> Decision:
    """What becomes of the rows of an answer, with the facts of its `conflicts_in` by row."""
    decision = Decision()
    for fold, reported in answer.by_fold:
        if reported.kind is _TAKEN and len(fold.events) == 1:  # as nearly all are
            decision.outcomes.append(reported)
            decision.transitions.append(_applied(fold.events[0], fold.operation))
            continue
        last = fold.events[-1]
        outcome = understood(fold, reported, facts.get(last.id, _NO_CONFLICT))
        decision.outcomes.append(outcome)
        if outcome.kind is OutcomeKind.SPLIT:
            decision.split.append(fold)
        elif needs_unfolding(fold.events, outcome, policy):
            decision.unfold.append(fold)
        else:
            decision.transitions.extend(
                decide(fold.events, outcome, policy, now, sent=fold.operation, failed_alone=answer.failed_alone)
            )
    return decision


def understood(fold: Fold, outcome: Outcome, known: Facts) -> Outcome:
    """An outcome with what the tables say of it.

    A document that an update misses may have been removed by a later row, which was delivered before without an answer:
    there is nothing left to change then. In a conflict with a version that was drawn here, the claim is too old for the
    index, and the next one has a higher version. With any other, somebody else has written it.
    """
    if outcome.error_type == DOCUMENT_MISSING and known.removed_since:
        return Outcome(OutcomeKind.CONFLICT, VOID)
    if outcome.kind is not _CONFLICT:
        return outcome
    if outcome.version == fold.operation.version and fold.events[0].deliveries > CERTAIN_AFTER:
        return Outcome(_TAKEN)
    if known.drawn:
        return Outcome(_CONFLICT)
    if known.of_others:
        document = fold.operation.document_id
        error = f"the index holds version {outcome.version} of document {document}: {FOUND_REMEDY}"
        return Outcome(OutcomeKind.BLOCKED, UNEXPLAINED, error)
    error = f"the index holds version {outcome.version}: {UNEXPLAINED_REMEDY}"
    return Outcome(_CONFLICT, UNEXPLAINED, error)


def held_back(answer: Answer, policy: Policy, now: int) -> list[Transition]:
    """What becomes of rows whose index was asked for and cannot be had: they wait, and nothing was sent for them."""
    away = answer.outcomes[0] if answer.outcomes else None
    transitions: list[Transition] = []
    for event in answer.request.claim.events:
        if event.index_name in answer.refused:
            outcome = away or Outcome(OutcomeKind.BLOCKED, "index_unavailable", answer.refused[event.index_name])
            transitions += [each._replace(unsent=True) for each in decide([event], outcome, policy, now)]
    return transitions


def needs_unfolding(events: Sequence[Event], outcome: Outcome, policy: Policy) -> bool:
    """Whether the rows must be delivered one by one, since only the guilty one may die."""
    if len(events) == 1:
        return False
    failures = max(event.attempts for event in events) + 1
    return outcome.kind is OutcomeKind.REJECTED or (
        outcome.kind is OutcomeKind.FAILED and failures > policy.max_retries
    )


def decide(
    events: Sequence[Event],
    outcome: Outcome,
    policy: Policy,
    now: int,
    *,
    sent: Operation | None = None,
    failed_alone: bool = False,
) -> list[Transition]:
    """The next state of each row of a fold, for an outcome as it is `understood`; `sent`: the operation that they came
    to. `failed_alone` says of a missing answer that it is missing for this row only."""
    *earlier, last = events
    kind, version = outcome.kind, sent.version if sent else None
    coalesced = [_done(event, Result.COALESCED, version) for event in earlier]
    if kind is OutcomeKind.UNCHANGED:  # nothing was sent: these rows must not look as if it had been
        return [each._replace(unsent=True) for each in (*coalesced, _done(last, Result.UNCHANGED, version))]
    if kind is OutcomeKind.APPLIED:
        return [*coalesced, _applied(last, sent)]
    if kind is _CONFLICT and outcome.error_type == VOID:
        return [*coalesced, _done(last, Result.SUPERSEDED, version)]
    if kind is OutcomeKind.REJECTED or (kind is _CONFLICT and outcome.error_type == UNEXPLAINED):
        return [_refused(event, outcome, event.attempts, State.DEAD, version) for event in events]
    if kind is OutcomeKind.FAILED:
        return [_failed(event, outcome, policy, now, version) for event in events]
    if kind is OutcomeKind.OVERLOADED:
        due = now + policy.overload_pause(max(event.deliveries for event in events))
    else:
        # Where the index is blocked its breaker decides when; so does that of each other relay.
        due = now + policy.longest_pause_ms if failed_alone else now
    error_type = UNANSWERED if kind is OutcomeKind.UNAVAILABLE else outcome.error_type
    return [Transition(event, State.PENDING, None, due, event.attempts, error_type, outcome.error) for event in events]


def _applied(event: Event, sent: Operation | None) -> Transition:
    if sent is None:
        return _done(event, _APPLIED, None)
    return _done(event, _DELETED if sent.document is None and not sent.patches else _APPLIED, sent.version)


def _done(event: Event, result: Result, version: int | None) -> Transition:
    return Transition(event, _DONE, result, None, event.attempts, None, None, False, None, version)


def poisoned(claim: Claim, failures: int) -> Transition:
    """The end of a claim's one row, which gets no answer although its neighbours do; see `PoisonDetector`.

    Its version is the claim's, for which nothing is sent: above all that the row was sent with before.
    """
    (event,) = claim.events
    error = (
        f"sent alone, it got no answer {failures} times, while other rows of index {event.index_name} were applied "
        f"just before and just after; see what the document does to the destination, then write it anew and run "
        f"'outbox-relay dead discard {event.id}', or 'outbox-relay dead retry {event.id}'"
    )
    return Transition(event, State.DEAD, None, None, event.attempts, POISON, error, unsent=True, version=claim.version)


def _failed(event: Event, outcome: Outcome, policy: Policy, now: int, version: int | None) -> Transition:
    failures = event.attempts + 1
    if failures > policy.max_retries:
        return _refused(event, outcome, failures, State.DEAD, version)
    due = now + policy.retry_pause(failures)
    return _refused(event, outcome, failures, State.PENDING, version)._replace(available_at=due)


def _refused(event: Event, outcome: Outcome, failures: int, state: State, version: int | None) -> Transition:
    """A row that failed by itself: what becomes of it, with the error and the field that this names."""
    return Transition(
        event,
        state,
        attempts=failures,
        error_type=outcome.error_type,
        error=outcome.error,
        error_field=named_field(outcome.error),
        version=version,
    )
