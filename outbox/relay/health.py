"""What a relay knows of its destination: what it has paused, and which rows are poison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from loguru import logger

from outbox import logs
from outbox.destinations.base import Outcome, OutcomeKind, weight
from outbox.relay.breaker import Breaker
from outbox.relay.intake import SMALL_BYTES, Intakes
from outbox.relay.plan import Fold
from outbox.relay.poison import PoisonDetector
from outbox.relay.requests import Answer, Request
from outbox.settings import Settings
from outbox.store.models import Event

OTHERS_ANSWERED_MS = 10_000

Answered = Sequence[tuple[Fold, Outcome]]

_OF_INTAKE = frozenset({OutcomeKind.APPLIED, OutcomeKind.OVERLOADED})

# Outcomes of an index that answers, whether it takes rows or not.
_SETTLING = frozenset({OutcomeKind.UNCHANGED, OutcomeKind.CONFLICT, OutcomeKind.REJECTED, OutcomeKind.FAILED})


class Health:
    """A breaker for the destination and one for each index that takes no rows; one log line when each opens or closes.

    `unfinished` counts the rows that wait, for those lines.
    """

    def __init__(self, settings: Settings, unfinished: Callable[[], int]) -> None:
        self._first_pause_ms = int(settings.breaker_first_pause * 1000)
        self._longest_pause_ms = int(settings.breaker_longest_pause * 1000)
        self._unfinished = unfinished
        self.destination = self._new_breaker()
        self._indexes: dict[str, Breaker] = {}
        self._took_at = 0  # when the destination last took something, or said why not
        self.intakes = Intakes(
            settings.batch_bytes, self._first_pause_ms, self._longest_pause_ms, longest_making_s=settings.lease / 3
        )
        self.poison = PoisonDetector(just_ms=int(settings.lease * 1000) + 2 * int(settings.request_timeout * 1000))
        # Other rows come before the next one that is sent alone: the last such row got no answer. Or this relay has
        # just begun, perhaps because such a row killed the one before it: the others must not wait for the next death.
        self.lone_failed = True

    # -- what is paused -----------------------------------------------------------------------------------------

    def breakers(self) -> list[dict[str, Any]]:
        """What is paused, why and since when: one entry for each open breaker. From any thread."""
        named: list[tuple[str, str | None, Breaker]] = [("destination", None, self.destination)]
        named += [("index", name, breaker) for name, breaker in list(self._indexes.items())]
        return [
            {"scope": scope, "index": name, "reason": b.reason, "since": b.opened_at, "next_probe": b.retry_at}
            for scope, name, b in named
            if b.is_open
        ]

    def paused_indexes(self) -> list[str]:
        return [name for name, breaker in self._indexes.items() if breaker.is_open]

    def indexes_to_try(self, now: int) -> list[str]:
        """Paused indexes whose pause is over."""
        return [name for name, breaker in self._indexes.items() if breaker.probe_due(now)]

    def tried(self, index: str, now: int) -> None:
        """Note that a row of a paused index is sent."""
        self._indexes[index].tried(now)

    def nothing_waits(self, index: str) -> None:
        """Note that a paused index has no rows left."""
        del self._indexes[index]
        logger.info("index {index} resumed: no rows waiting", index=logs.safe(index))

    # -- what answers say ---------------------------------------------------------------------------------------

    def note(self, answer: Answer, now: int) -> None:
        """Note what the outcomes of an answer say of the destination, of its indexes, and of a row sent alone."""
        answered = answer.by_fold
        self.lone_failed = answer.request.claim.lone and answer.outcomes[0].kind is OutcomeKind.UNAVAILABLE
        away = next((each for each in answered if each[1].kind is OutcomeKind.UNAVAILABLE), None)
        by_index = _by_index(answered)
        overloads = _overloads(answer) if any(OutcomeKind.OVERLOADED in each for each in by_index.values()) else []
        sent = sum(fold.known is None for fold, _ in answered)
        if away and not answer.failed_alone:
            self._destination_failed(away[1], away[0].events[-1], now)
        elif sent and len(overloads) == sent and (self.destination.is_open or self._has_no_time(answer.request, now)):
            self._destination_failed(overloads[0][1], overloads[0][0].events[-1], now)
        elif sent > len(overloads):
            self._took_at = now
            self._destination_answered(now)
        if answer.failed_alone:
            ((fold, _),) = answered
            self.poison.failed_alone(fold.events[0].id, fold.operation.index, now)
            return
        for index, outcomes in by_index.items():
            self._note_index(index, outcomes, now)
            if sent and outcomes.keys() & _OF_INTAKE:
                self._note_intake(index, answer, overloads, now)

    def note_indexes(self, answer: Answer, now: int) -> None:
        """Note what an answer says that was asked where indexes are."""
        if answer.outcomes:
            waiting = next(event for event in answer.request.claim.events if event.index_name in answer.refused)
            self._destination_failed(answer.outcomes[0], waiting, now)
            return
        self._destination_answered(now)
        for name, why in answer.refused.items():
            self._index_failed(name, why, now)

    def _note_index(self, index: str, outcomes: dict[OutcomeKind, Outcome], now: int) -> None:
        breaker, applied = self._indexes.get(index), OutcomeKind.APPLIED in outcomes
        if applied:
            self.poison.applied(index, now)
        if blocked := outcomes.get(OutcomeKind.BLOCKED):
            self._index_failed(index, f"{blocked.error_type}: {blocked.error}", now)
        elif breaker and applied:
            open_for = breaker.succeeded(now) or 0
            del self._indexes[index]
            logger.info(
                "index {index} takes rows again after {duration}",
                index=logs.safe(index),
                duration=logs.span(open_for / 1000),
                open_for_ms=open_for,
            )
        elif breaker and outcomes.keys() <= _SETTLING:
            breaker.proved_nothing(now)

    def _has_no_time(self, request: Request, now: int) -> bool:
        """Whether an overload is the destination's: a small request was refused, and no other one taken of late."""
        return request.size <= SMALL_BYTES and not 0 <= now - self._took_at < OTHERS_ANSWERED_MS

    def _note_intake(self, index: str, answer: Answer, overloads: Answered, now: int) -> None:
        """Note whether an index had time for its part of a request."""
        request, intake = answer.request, self.intakes.of(index)
        overload = next((outcome for fold, outcome in overloads if fold.operation.index == index), None)
        rows, size = len(request.folds), request.size
        if len(request.indexes) > 1:
            of_index = [weight(fold.operation) for fold in request.folds if fold.operation.index == index]
            rows, size = len(of_index), sum(of_index)
        if overload is None:
            if intake.taken(size, answer.took_ms, now):
                logger.info("index {index} is no longer overloaded", index=logs.safe(index))
        elif intake.refused(rows, size, now):
            logger.warning(
                "index {index} is overloaded ({reason}), its requests are smaller and fewer for a while; "
                "other indexes go on",
                index=logs.safe(index),
                reason=logs.safe(f"{overload.error_type}: {overload.error}"),
            )

    def _destination_answered(self, now: int) -> None:
        open_for = self.destination.succeeded(now)
        if open_for is not None:
            logger.info(
                "destination answers again after {duration}, resuming with {rows}",
                duration=logs.span(open_for / 1000),
                open_for_ms=open_for,
                rows=logs.Rows(self._unfinished()),
            )

    def _destination_failed(self, outcome: Outcome, event: Event, now: int) -> None:
        self.poison.unanswered()
        if self.destination.failed(f"{outcome.error_type}: {outcome.error}", now):
            logs.operations([(event, outcome.error)])  # the only one: an outage is no error of each row
            logger.warning(
                "destination unreachable ({reason}), pausing; {rows:waits/wait}, no attempt is spent",
                reason=logs.safe(outcome.error or "?"),
                rows=logs.Rows(self._unfinished()),
            )

    def _index_failed(self, index: str, reason: str, now: int) -> None:
        breaker = self._indexes.setdefault(index, self._new_breaker())
        if breaker.failed(reason, now):
            logger.warning(
                "index {index} takes no rows ({reason}), pausing it; other indexes go on; "
                "'outbox-relay check' says what to do",
                index=logs.safe(index),
                reason=logs.safe(reason),
            )

    def _new_breaker(self) -> Breaker:
        return Breaker(self._first_pause_ms, self._longest_pause_ms)


def _overloads(answer: Answer) -> list[tuple[Fold, Outcome]]:
    """Those of the live index: what only another one had no time for was taken."""
    taken = {refusal.at for refusal in answer.refusals}
    sent = [each for each in answer.by_fold if each[0].known is None]
    return [each for at, each in enumerate(sent) if each[1].kind is OutcomeKind.OVERLOADED and at not in taken]


def _by_index(answered: Answered) -> dict[str, dict[OutcomeKind, Outcome]]:
    """For each index what kinds of outcomes there are, and one of each."""
    found: dict[str, dict[OutcomeKind, Outcome]] = {}
    for fold, outcome in answered:
        if (kinds := found.get(fold.operation.index)) is None:
            kinds = found[fold.operation.index] = {}
        if outcome.kind not in kinds:
            kinds[outcome.kind] = outcome
    return found
