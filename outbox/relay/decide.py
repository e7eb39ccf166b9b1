"""Pure: what an outcome means for the rows it speaks of, as the documentation has it in a table of outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from outbox.destinations.base import DOCUMENT_MISSING, Operation, Outcome, OutcomeKind
from outbox.destinations.faults import named_field
from outbox.relay.plan import Fold
from outbox.relay.requests import Answer
from outbox.store.conflicts import Conflict, Facts
from outbox.store.models import (
    EPOCH_STEP,
    OVERTAKEN,
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
OVERTAKEN_REMEDY = (
    "a later row of the same document, of another tenant, was delivered before this one; write the document anew "
    "and discard this row"
)

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
        known = facts.get(last.id, _NO_CONFLICT)
        outcome = understood(reported, known)
        explained = is_explained(last, outcome, known, answer.request.claim.epoch)
        if outcome.kind is OutcomeKind.CONFLICT and not explained and known.of_others:
            outcome = _filled_by_others(last, outcome)
        decision.outcomes.append(outcome)
        if outcome.kind is OutcomeKind.SPLIT:
            decision.split.append(fold)
        elif needs_unfolding(fold.events, outcome, policy):
            decision.unfold.append(fold)
        else:
            decision.transitions.extend(
                decide(
                    fold.events,
                    outcome,
                    policy,
                    now,
                    sent=fold.operation,
                    explained=explained,
                    overtaken=explained and is_overtaken(fold, outcome, known),
                    failed_alone=answer.failed_alone,
                )
            )
    return decision


def understood(outcome: Outcome, known: Facts) -> Outcome:
    """A document may be missing because a later row, delivered before without an answer, removed it."""
    if outcome.error_type == DOCUMENT_MISSING and known.removed_since:
        return outcome._replace(kind=OutcomeKind.CONFLICT, version=None)
    return outcome


def _filled_by_others(last: Event, conflict: Outcome) -> Outcome:
    """What an unexplained version means in an index that others have filled: it says nothing against the row."""
    error = f"the index holds version {conflict.version} of document {last.document_id}: {FOUND_REMEDY}"
    return Outcome(OutcomeKind.BLOCKED, UNEXPLAINED, error)


def is_explained(last: Event, outcome: Outcome, known: Facts, epoch: int) -> bool:
    """Whether a delivery of this outbox accounts for the version that a conflict reports.

    True for a version of a row of the same document that was delivered (`last` itself: at least twice), for versions
    up to the highest that was pruned, and for the one that a reindex of the index gave its documents.
    """
    if outcome.kind is not OutcomeKind.CONFLICT:
        return False
    if outcome.version is None:
        return known.removed_since
    if known.pruned:
        return True
    reported_epoch, row = divmod(outcome.version, EPOCH_STEP)
    if reported_epoch > epoch:
        return False
    return known.of_reindex or known.deliveries >= (2 if row == last.id else 1)


def is_overtaken(fold: Fold, outcome: Outcome, known: Facts) -> bool:
    """Rows of one document under two tenants can overtake each other, and one of them is a partial update.

    What is sent for the first time is in nothing that the index holds: a later update, or a later document under
    an update, was delivered without it. A later document alone makes an earlier one history; and so does one that
    a reindex has made of the database, where the change was before its row could be read.
    """
    if fold.events[-1].deliveries > 1 or outcome.version is None or known.of_reindex:
        return False
    return bool(fold.operation.patches) or known.of_update


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
    explained: bool = False,
    overtaken: bool = False,
    failed_alone: bool = False,
) -> list[Transition]:
    """The next state of each row of a fold; the last row is the one whose version was `sent`.

    `explained` says of a conflict whether a delivery of this outbox accounts for the version it reports, `overtaken`
    that this delivery knew nothing of what the rows say, `failed_alone` of a missing answer that it is missing for
    this row only.
    """
    *earlier, last = events
    kind = outcome.kind
    if overtaken:
        # Called done, what these rows say would be lost in silence.
        return [
            Transition(event, State.DEAD, attempts=event.attempts, error_type=OVERTAKEN, error=OVERTAKEN_REMEDY)
            for event in events
        ]
    if kind is OutcomeKind.UNCHANGED:  # nothing was sent: these rows must not look as if it had been
        ends = [*(Result.COALESCED for _ in earlier), Result.UNCHANGED]
        return [
            Transition(event, State.DONE, end, attempts=event.attempts, unsent=True)
            for event, end in zip(events, ends, strict=True)
        ]
    if kind is OutcomeKind.APPLIED or (kind is OutcomeKind.CONFLICT and explained):
        done = [Transition(event, State.DONE, Result.COALESCED, attempts=event.attempts) for event in earlier]
        if kind is OutcomeKind.APPLIED:
            return [*done, _applied(last, sent)]
        return [*done, Transition(last, State.DONE, Result.SUPERSEDED, attempts=last.attempts)]
    if kind is OutcomeKind.CONFLICT:
        error = f"the index holds version {outcome.version}: {UNEXPLAINED_REMEDY}"
        return [
            Transition(event, State.DEAD, attempts=event.attempts, error_type=UNEXPLAINED, error=error)
            for event in events
        ]
    if kind is OutcomeKind.REJECTED:
        return [_refused(event, outcome, event.attempts, State.DEAD) for event in events]
    if kind is OutcomeKind.FAILED:
        return [_failed(event, outcome, policy, now) for event in events]
    if kind is OutcomeKind.OVERLOADED:
        due = now + policy.overload_pause(max(event.deliveries for event in events))
    else:
        # Where the index is blocked its breaker decides when; so does that of each other relay.
        due = now + policy.longest_pause_ms if failed_alone else now
    error_type = UNANSWERED if kind is OutcomeKind.UNAVAILABLE else outcome.error_type
    # Counted as a delivery, a version that others gave the document would look like this row's own the next time.
    unsent = kind is OutcomeKind.BLOCKED and error_type == UNEXPLAINED
    return [
        Transition(event, State.PENDING, None, due, event.attempts, error_type, outcome.error, unsent=unsent)
        for event in events
    ]


def _applied(event: Event, sent: Operation | None) -> Transition:
    deleted = sent is not None and sent.is_delete
    return Transition(event, _DONE, _DELETED if deleted else _APPLIED, None, event.attempts)


def poisoned(event: Event, failures: int) -> Transition:
    """The end of a row that gets no answer although its neighbours do; see `PoisonDetector`."""
    error = (
        f"sent alone, it got no answer {failures} times, while other rows of index {event.index_name} were applied "
        f"just before and just after; see what the document does to the destination, then write it anew and run "
        f"'outbox-relay dead discard {event.id}', or 'outbox-relay dead retry {event.id}'"
    )
    return Transition(event, State.DEAD, None, None, event.attempts, POISON, error, unsent=True)


def _failed(event: Event, outcome: Outcome, policy: Policy, now: int) -> Transition:
    failures = event.attempts + 1
    if failures > policy.max_retries:
        return _refused(event, outcome, failures, State.DEAD)
    due = now + policy.retry_pause(failures)
    return _refused(event, outcome, failures, State.PENDING)._replace(available_at=due)


def _refused(event: Event, outcome: Outcome, failures: int, state: State) -> Transition:
    """A row that failed by itself: what becomes of it, with the error and the field that this names."""
    return Transition(
        event,
        state,
        attempts=failures,
        error_type=outcome.error_type,
        error=outcome.error,
        error_field=named_field(outcome.error),
    )
