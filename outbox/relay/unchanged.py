"""Which documents need not be sent where the index holds them already: those of entities with `skip_unchanged`."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from outbox.entities.registry import EntityRegistry
from outbox.relay.plan import Fold
from outbox.store import unsent
from outbox.store.claims import Claim
from outbox.store.models import Action
from outbox.store.store import Store


def skippable(store: Store, registry: EntityRegistry | None, claim: Claim, folds: list[Fold]) -> list[Fold]:
    """The folds, with `Operation.unless_held` where no other request can make a difference.

    Not to write a document leaves it with an older version: a request on its way with a version in between would be
    applied, where it would have been refused. So a row must be claimed for the first time, and `unsent.settled_from`
    says what else. Asks nothing of the database unless a row is of such an entity.
    """
    named = {entity.name for entity in registry or () if entity.skip_unchanged}
    first = [fold for fold in folds if _is_first(fold, named, claim)] if named else []
    if not first:
        return folds
    settled = unsent.settled_from(store, claim, [fold.events[-1] for fold in first])
    chosen = {
        fold.events[-1].id: fold._replace(operation=replace(fold.operation, unless_held=settled[fold.events[-1].id]))
        for fold in first
    }
    return [chosen.get(fold.events[-1].id, fold) for fold in folds]


def _is_first(fold: Fold, named: Container[str | None], claim: Claim) -> bool:
    """Whether the rows are of such entities alone, none of them was claimed before, and there is a document."""
    return (
        fold.known is None
        and fold.operation.document is not None
        and fold.operation.index not in claim.dual_writes  # the other index may hold something else
        and all(row.deliveries == 1 and row.action == Action.REFRESH and row.entity in named for row in fold.events)
    )
