"""One call of the destination and what came back for it; how rows become one, and what follows an answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from outbox.destinations.base import Outcome
from outbox.entities.registry import EntityRegistry
from outbox.relay import load, plan
from outbox.relay.dual_write import Refusal
from outbox.relay.plan import Fold
from outbox.store import claims
from outbox.store.claims import Claim
from outbox.store.models import Event
from outbox.store.store import Store


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the destination. With `unknown_indexes` it asks where these are, and no row is sent.

    `rest`: rows of the same document that follow one by one, after an unfold: their fold was `sent` before, and its
    failure may have come after it was applied.
    """

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


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for a request: an outcome for each of its folds.

    Where it asked for indexes: the physical index of each, and whether it was there before (`targets`), why each other
    one cannot be had (`refused`), and one outcome if the destination did not answer at all.
    """

    request: Request
    outcomes: Sequence[Outcome] = ()
    targets: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    failed_alone: bool = False  # no answer for this row, and one for a harmless operation on its document
    refusals: Sequence[Refusal] = ()  # by the new index of a reindex, of what the live one took

    @property
    def by_fold(self) -> list[tuple[Fold, Outcome]]:
        return list(zip(self.request.folds, self.outcomes, strict=True))


def planned(store: Store, registry: EntityRegistry | None, claim: Claim) -> Request:
    """What is sent for a claim: its rows with their contents of this moment, or first the question where they go."""
    unknown = sorted({event.index_name for event in claim.events} - claim.targets.keys())
    if well_formed := [name for name in unknown if not load.malformed_name(name)]:
        return Request(claim, unknown_indexes=well_formed)
    return Request(claim, _folds(store, registry, claim, claim.events))


def one_by_one(store: Store, registry: EntityRegistry | None, claim: Claim, fold: Fold) -> Request:
    """The rows of a fold that was sent, each by itself, in the order of their ids: only the guilty one may die."""
    # What failed may have been applied: the version that the last row brings now is there already.
    again = tuple(event._replace(deliveries=event.deliveries + 1) for event in fold.events)
    first, *rest = _folds(store, registry, replace(claim, events=again), *([event] for event in again))
    return Request(claim, [first], rest, sent=True)


def halves(claim: Claim, folds: Sequence[Fold]) -> list[Request]:
    """What was refused as too large, in two requests."""
    middle = len(folds) // 2
    return [Request(claim, half) for half in (folds[:middle], folds[middle:]) if half]


def leased(store: Store, request: Request, now: int, least_ms: int, lease_ms: int) -> Request | None:
    """The request under a lease that lasts for at least `least_ms`, renewed if need be; None if it was lost."""
    if request.claim.lease_expires_at - now >= least_ms:
        return request
    claim = claims.renew(store, request.claim, request.rows, now + lease_ms)
    return replace(request, claim=claim) if claim else None


def release(store: Store, request: Request, now: int, *, sent: bool) -> None:
    """Give the rows of a request back. Unless they were `sent`, this delivery does not count."""
    claims.release(store, request.claim, request.rows, now, undelivered=not sent)


def _folds(store: Store, registry: EntityRegistry | None, claim: Claim, *documents: Sequence[Event]) -> list[Fold]:
    """The rows of each document, or each row by itself, with their contents of this moment."""
    contents = load.contents(store, registry, claim)
    targets = defaultdict(str, claim.targets)  # a malformed name has none, and nothing is sent for it
    return [fold for events in documents for fold in plan.fold(events, contents, targets, claim.epoch)]
