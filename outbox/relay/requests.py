"""One call of the destination and what came back for it; how rows become one, and what follows an answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from loguru import logger

from outbox.destinations.base import Outcome, portions, weight
from outbox.entities.registry import EntityRegistry
from outbox.relay import load, plan, unchanged
from outbox.relay.dual_write import Refusal
from outbox.relay.intake import HEAVY_BYTES, Intakes
from outbox.relay.plan import Content, Fold
from outbox.store import claims
from outbox.store.claims import Claim
from outbox.store.models import Event
from outbox.store.store import Store


@dataclass(frozen=True)
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

    @cached_property
    def size(self) -> int:
        """The bytes of its documents."""
        return sum([weight(fold.operation) for fold in self.folds])

    @cached_property
    def indexes(self) -> set[str]:
        """The indexes that it speaks to."""
        return {fold.operation.index for fold in self.folds}

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
    took_ms: int = 0
    refusals: Sequence[Refusal] = ()  # by the new index of a reindex, of what the live one took

    @property
    def by_fold(self) -> list[tuple[Fold, Outcome]]:
        return list(zip(self.request.folds, self.outcomes, strict=True))


class Planned(NamedTuple):
    """What is sent for a claim, and how many of its rows were given back, to be claimed again at once."""

    requests: list[Request]
    given_back: int = 0


def planned(store: Store, registry: EntityRegistry | None, claim: Claim, intakes: Intakes, now: int) -> Planned:
    """What is sent for a claim: its rows with their contents of this moment, or first the question where they go.

    No request carries more than its indexes take. What is not made yet when there is enough for one is given back.
    """
    unknown = sorted({event.index_name for event in claim.events} - claim.targets.keys())
    if well_formed := [name for name in unknown if not load.malformed_name(name)]:
        return Planned([Request(claim, unknown_indexes=well_formed)])
    contents, unmade = load.contents(store, registry, claim, intakes)
    if unmade:
        claims.release(store, claim, [event.id for event in unmade], now, undelivered=True)
        left = {event.id for event in unmade}
        claim = replace(claim, events=tuple(event for event in claim.events if event.id not in left))
    folds = unchanged.skippable(store, registry, claim, _folds(claim, contents, claim.events))
    return Planned(list(cut(claim, folds, intakes)), len(unmade))


def cut(claim: Claim, folds: Sequence[Fold], intakes: Intakes) -> Iterator[Request]:
    """Requests that carry no more than their indexes take. What is heavy comes last, each index by itself."""
    most = intakes.most()
    whole = Request(claim, folds)
    if whole.size < HEAVY_BYTES and not most.keys() & whole.indexes:  # as nearly all are
        yield whole
        return
    by_index: dict[str, list[Fold]] = defaultdict(list)
    for fold in folds:
        by_index[fold.operation.index].append(fold)
    heavy = {name for name, some in by_index.items() if name in most or Request(claim, some).size >= HEAVY_BYTES}
    light = [fold for fold in folds if fold.operation.index not in heavy]
    yield from (Request(claim, some) for some in portions(light, _weight, intakes.full))
    for name in sorted(heavy):
        yield from (Request(claim, some) for some in portions(by_index[name], _weight, most.get(name, intakes.full)))


def _weight(fold: Fold) -> int:
    return weight(fold.operation)


def one_by_one(store: Store, registry: EntityRegistry | None, claim: Claim, fold: Fold) -> Request | None:
    """The rows of a fold that was sent, each by itself, in the order of their ids: only the guilty one may die. None if
    the claim has lost one of them."""
    # What failed may have been applied: each needs a version above that, and the first one may have made the document.
    first, *others = fold.events
    again = (first._replace(version=first.version or claim.version), *others)
    contents, _ = load.contents(store, registry, replace(claim, events=again))
    versions = claims.versions_for(store, claim, again)
    if versions is None:
        return None
    alone = [
        each
        for event, version in zip(again, versions, strict=True)
        for each in _folds(replace(claim, version=version), contents, [event])
    ]
    return Request(claim, alone[:1], alone[1:], sent=True)


def halves(claim: Claim, folds: Sequence[Fold]) -> list[Request]:
    """What was refused as too large, in two requests."""
    middle = len(folds) // 2
    return [Request(claim, half) for half in (folds[:middle], folds[middle:]) if half]


def leased(store: Store, request: Request, now: int, least_ms: int, lease_ms: int) -> Request | None:
    """The request under a lease that lasts for at least `least_ms`, renewed if need be; None if it was lost."""
    claim: Claim | None = request.claim
    if request.claim.lease_expires_at - now < least_ms:
        claim = claims.renew(store, request.claim, request.rows, now + lease_ms)
    if not (claim and _may_make(store, request)):
        logger.warning("a lease ended before its rows were sent; the relay that has them now delivers them")
        return None
    return request if claim is request.claim else replace(request, claim=claim)  # which knows its size no more


def _may_make(store: Store, request: Request) -> bool:
    """Whether a row that is sent by itself may make its document by its upsert. Where the relay dies then, the changes
    of the same row must not be merged into that: so it is on disk that they need not be."""
    fold = request.folds[0] if request.sent and request.folds else None
    if fold is None or not any(each.at == 0 and each.version is None for each in fold.operation.upserts):
        return True
    return claims.note_version(store, request.claim, fold.events[0], fold.operation.version)


def release(store: Store, request: Request, now: int, *, sent: bool) -> None:
    """Give the rows of a request back. Unless they were `sent`, this delivery does not count."""
    claims.release(store, request.claim, request.rows, now, undelivered=not sent)


def _folds(claim: Claim, contents: Mapping[int, Content], events: Sequence[Event]) -> list[Fold]:
    """The rows of each document, with their contents."""
    targets = defaultdict(str, claim.targets)  # a malformed name has none, and nothing is sent for it
    return plan.fold(events, contents, targets, claim.version)
