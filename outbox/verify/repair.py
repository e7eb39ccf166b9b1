"""What a verification has found put right: a `refresh` row for each document, which a relay delivers as any other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from outbox.destinations.base import Destination, remembered
from outbox.store import verifications
from outbox.store.by_index import sharing
from outbox.store.drift import DriftKind
from outbox.store.models import now_ms
from outbox.store.store import Store
from outbox.verify.drift import Drift, by_index


def repair(store: Store, destination: Destination, drifts: Sequence[Drift]) -> tuple[int, int | None]:
    """Write a `refresh` row for each document that can be made. Returns how many, and the new epoch if one was needed.

    None for an index that is `lost`, where they would wait; none that removes a document of an index that others share,
    whose it may be.
    First see to it that the index takes them: versions there may be higher than any that the outbox has given.
    """
    gone = lost(store, destination, {drift.index for drift in drifts})
    shared = sharing(store.targets())
    repairable = [
        drift
        for drift in drifts
        if drift.kind is not DriftKind.FAILED
        and drift.index not in gone
        and not (drift.kind is DriftKind.EXTRA and drift.index in shared)
    ]
    if not repairable:
        return 0, None
    now = now_ms()
    highest = max([*(drift.version or 0 for drift in repairable), *_tombstones(destination, repairable)])
    epoch = verifications.raise_above(store, highest, now)
    verifications.refresh(
        store, [(each.index, each.document_id, each.tenant_id, each.entity) for each in repairable], now
    )
    return len(repairable), epoch


def lost(store: Store, destination: Destination, indexes: Iterable[str]) -> list[str]:
    """Those of the indexes that rows go to and that readers do not find: a reindex alone makes them again."""
    targets = store.targets()
    return sorted(
        name for name in indexes if name in targets and not destination.inspect_index(name, targets[name]).readers
    )


def _tombstones(destination: Destination, drifts: Sequence[Drift]) -> list[int]:
    """The versions that the index remembers of missing documents: a delete by hand has a version too."""
    missing = by_index((each.index, each.document_id) for each in drifts if each.version is None)
    return [version for index, ids in missing.items() for version in remembered(destination, index, ids)]
