"""Pure: what an outcome means for the rows it speaks of. The README's outcome table is this file in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outbox.destinations.base import Operation, Outcome, OutcomeKind
from outbox.store.models import OVERTAKEN, POISON, UNANSWERED, UNEXPLAINED, Event, Result, State, Transition

UNEXPLAINED_REMEDY = (
    "nothing in this outbox wrote it: the database was restored from a backup, or something else writes to the "
    "index; run 'outbox-relay epoch advance', then 'outbox-relay dead retry --error-type unexplained_version'"
)
OVERTAKEN_REMEDY = (
    "a later row of the same document, of another tenant, was delivered before this one; write the document anew "
    "and discard this row"
)


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
    if kind is OutcomeKind.APPLIED or (kind is OutcomeKind.CONFLICT and explained):
        done = [Transition(event, State.DONE, Result.COALESCED, attempts=event.attempts) for event in earlier]
        applied = Result.DELETED if sent and sent.is_delete else Result.APPLIED
        result = applied if kind is OutcomeKind.APPLIED else Result.SUPERSEDED
        return [*done, Transition(last, State.DONE, result, attempts=last.attempts)]
    if kind is OutcomeKind.CONFLICT:
        error = f"the index holds version {outcome.version}: {UNEXPLAINED_REMEDY}"
        return [
            Transition(event, State.DEAD, attempts=event.attempts, error_type=UNEXPLAINED, error=error)
            for event in events
        ]
    if kind is OutcomeKind.REJECTED:
        return [
            Transition(event, State.DEAD, None, None, event.attempts, outcome.error_type, outcome.error)
            for event in events
        ]
    if kind is OutcomeKind.FAILED:
        return [_failed(event, outcome, policy, now) for event in events]
    if kind is OutcomeKind.OVERLOADED:
        due = now + policy.overload_pause(max(event.deliveries for event in events))
    else:
        # Where the index is blocked its breaker decides when; so does that of each other relay.
        due = now + policy.longest_pause_ms if failed_alone else now
    error_type = UNANSWERED if kind is OutcomeKind.UNAVAILABLE else outcome.error_type
    return [Transition(event, State.PENDING, None, due, event.attempts, error_type, outcome.error) for event in events]


def poisoned(event: Event, failures: int) -> Transition:
    """The end of a row that gets no answer although its neighbours do; see `outbox.poison.Verdicts`."""
    error = (
        f"sent alone, it got no answer {failures} times, while other rows of index {event.index_name} were applied "
        f"just before and just after; see what the document does to the destination, then write it anew and run "
        f"'outbox-relay dead discard {event.id}', or 'outbox-relay dead retry {event.id}'"
    )
    return Transition(event, State.DEAD, None, None, event.attempts, POISON, error, unsent=True)


def _failed(event: Event, outcome: Outcome, policy: Policy, now: int) -> Transition:
    failures = event.attempts + 1
    if failures > policy.max_retries:
        return Transition(event, State.DEAD, None, None, failures, outcome.error_type, outcome.error)
    due = now + policy.retry_pause(failures)
    return Transition(event, State.PENDING, None, due, failures, outcome.error_type, outcome.error)
