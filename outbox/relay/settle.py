"""What an answer means is asked once, decided purely, and recorded once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from loguru import logger

from outbox import logs
from outbox.destinations.base import Outcome, OutcomeKind
from outbox.entities.registry import EntityRegistry
from outbox.relay import decide, requests
from outbox.relay.decide import Decision, Policy
from outbox.relay.health import Health
from outbox.relay.poison import LONE_FAILURES
from outbox.relay.requests import Answer, Request
from outbox.store import conflicts, malformed, outcomes
from outbox.store.claims import Claim
from outbox.store.models import ILLEGAL_TEXT, UNEXPLAINED, Event, Result, State, Transition
from outbox.store.store import Store

_SILENT = frozenset({OutcomeKind.UNAVAILABLE, OutcomeKind.BLOCKED, OutcomeKind.OVERLOADED, OutcomeKind.SPLIT})
_ERRORS = frozenset({OutcomeKind.REJECTED, OutcomeKind.FAILED})

_DONE: Final = State.DONE  # to look it up in its class costs ten times as much, at each row


@dataclass(slots=True)
class Totals:
    """What a relay has settled since it started."""

    done: int = 0
    dead: int = 0
    lost_claims: int = 0

    @property
    def settled(self) -> int:
        return self.done + self.dead


@dataclass(frozen=True, slots=True)
class Settler:
    """Records for one relay what becomes of the rows that it has claimed. Raises `DatabaseUnavailable`.

    An answer whose settling was cut short by that is settled again from its beginning: the rows are recorded last.
    """

    store: Store
    registry: EntityRegistry | None
    policy: Policy
    health: Health
    totals: Totals = field(default_factory=Totals)
    deaths: Counter[tuple[str, str]] = field(default_factory=Counter)  # by index and type of error
    recorded: set[int] = field(default_factory=set)  # the first steps of an answer that was cut short

    def settle(self, answer: Answer, now: int) -> list[Request]:
        """Record what an answer means. Returns the requests that have to follow it."""
        if answer.request.unknown_indexes:
            return self._settle_indexes(answer, now)
        answer = self._note_refusals(answer, now)
        facts = conflicts.explain(self.store, decide.conflicts_in(answer))
        decision = decide.decide_all(answer, facts, self.policy, now)
        answer = replace(answer, outcomes=decision.outcomes)
        following = self._following(answer.request, decision, now)
        self.health.note(answer, now)
        lost = self.record(answer.request.claim, decision.transitions, now)
        _log(answer)
        # The rest of a document's rows come after one that is another claim's by now.
        return [] if lost and answer.request.rest else following

    def mark_poison(self, claim: Claim, now: int) -> None:
        """Record the end of a row that is poison; nothing is sent for it."""
        dead = decide.poisoned(claim, LONE_FAILURES)
        self.health.poison.forget(dead.event.id)
        self.record(claim, [dead], now)
        logs.operations([(dead.event, dead.error)])

    def end_malformed(self, now: int) -> None:
        """Record the end of the pending rows of other programs that no relay can read."""
        if dead := malformed.end(self.store, now):
            self.totals.dead += dead
            self.deaths["", ILLEGAL_TEXT] += dead
            logger.error(
                "{rows:is/are} dead, written by another program with other bytes than UTF-8 text; "
                "see 'outbox-relay dead list'",
                rows=logs.Rows(dead),
            )

    def record(self, claim: Claim, transitions: Sequence[Transition], now: int) -> Sequence[Transition]:
        """Write what became of rows, where the claim still holds, and count it. Returns those of which it does not."""
        lost: list[Transition] = []
        left = [each for each in transitions if each.event.id not in self.recorded] if self.recorded else transitions
        for step in self.store.in_steps(left):
            lost += self._record(claim, step, now)
            if len(step) < len(left):
                self.recorded.update(each.event.id for each in step)
        if self.recorded:
            self.recorded.difference_update(each.event.id for each in transitions)
        if lost:
            logger.warning(
                "{rows:was/were} claimed by another relay meanwhile, which records their outcome",
                rows=logs.Rows(len(lost)),
            )
        return lost

    def _record(self, claim: Claim, transitions: Sequence[Transition], now: int) -> list[Transition]:
        lost = outcomes.record(self.store, claim, transitions, now)
        ours = [each for each in transitions if each not in lost] if lost else transitions
        others = [each for each in ours if each.state is not _DONE]
        dead = [each for each in others if each.state is State.DEAD]
        self.totals.lost_claims += len(lost)
        self.totals.done += len(ours) - len(others)
        self.totals.dead += len(dead)
        self.deaths.update((each.event.index_name, each.error_type or "?") for each in dead)
        if unexplained := [each for each in dead if each.error_type == UNEXPLAINED]:
            first = unexplained[0]
            logger.critical(
                "{rows:is/are} dead, first {index}/{id}: {error}",
                rows=logs.Rows(len(unexplained)),
                index=logs.safe(first.event.index_name),
                id=logs.safe(first.event.document_id),
                error=first.error,
            )
        return lost

    def _note_refusals(self, answer: Answer, now: int) -> Answer:
        """What only the new index of a reindex refuses fails the reindex, and the row is done.

        Returns the answer as it is understood: where that index is live by now, or about to be, it decides, when the
        row comes again.
        """
        if not answer.refusals:
            return answer
        sent = [at for at, fold in enumerate(answer.request.folds) if fold.known is None]
        outcomes = list(answer.outcomes)
        for target in {refusal.target for refusal in answer.refusals}:
            of_target = [refusal for refusal in answer.refusals if refusal.target == target]
            first = answer.request.folds[sent[of_target[0].at]].operation
            outcome = of_target[0].outcome
            if conflicts.record_refusal(
                self.store,
                first.index,
                target,
                len(of_target),
                f"index {target} does not take {first.document_id}: {outcome.error_type}: {outcome.error}",
                blocked=outcome.kind is OutcomeKind.BLOCKED,
                now=now,
            ):
                later = Outcome(OutcomeKind.OVERLOADED, outcome.error_type, outcome.error)
                for refusal in of_target:
                    outcomes[sent[refusal.at]] = later
        return replace(answer, outcomes=outcomes)

    def _following(self, request: Request, decision: Decision, now: int) -> list[Request]:
        """The rows of folds that were refused, one by one; the halves of what was too large; the next row."""
        claim = request.claim
        unfolded = [requests.one_by_one(self.store, self.registry, claim, fold) for fold in decision.unfold]
        following = [each for each in unfolded if each]
        following += requests.halves(claim, decision.split)
        if request.rest:
            if all(transition.state is not State.PENDING for transition in decision.transitions):
                following.append(replace(request, folds=[request.rest[0]], rest=request.rest[1:]))
            else:  # this row has to be tried again first
                requests.release(self.store, replace(request, folds=()), now, sent=True)
        return following

    def _settle_indexes(self, answer: Answer, now: int) -> list[Request]:
        """Note where unknown indexes are; rows of those that cannot be had wait."""
        for name, (target, found) in answer.targets.items():
            self.store.register_index(name, target, found=found)
        targets, others = self.store.routes()
        claim = replace(answer.request.claim, targets=targets, dual_writes=others)
        self.health.note_indexes(answer, now)
        self.record(claim, decide.held_back(answer, self.policy, now), now)
        events = tuple(event for event in claim.events if event.index_name not in answer.refused)
        if not events:
            return []
        return requests.planned(
            self.store, self.registry, replace(claim, events=events), self.health.intakes, now
        ).requests


def _log(answer: Answer) -> None:
    logs.operations(
        (_said(fold.events[-1], outcome), outcome.error if outcome.kind in _ERRORS or answer.failed_alone else None)
        for fold, outcome in answer.by_fold
        if outcome.kind not in _SILENT or answer.failed_alone
    )


def _said(event: Event, outcome: Outcome) -> Event:
    """The row with what was done for it as its action."""
    return event._replace(action=Result.UNCHANGED) if outcome.kind is OutcomeKind.UNCHANGED else event
