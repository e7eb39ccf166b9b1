"""One document as the database and the index have it now, side by side, for whoever is asked why it is wrong."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from outbox.destinations.base import TENANT_FIELD, Destination, Stored
from outbox.destinations.kept import Kept
from outbox.entities import loader
from outbox.entities.registry import EntityRegistry
from outbox.errors import DestinationError, InvalidInput
from outbox.store import verifications
from outbox.store.drift import DriftKind
from outbox.store.store import Store
from outbox.verify.drift import Drift, differing, judge, tenant_named
from outbox.verify.repair import lost, repair


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of one document. `drift` is None where both sides say the same, or one of them is not known."""

    index: str
    document_id: str
    entity: str | None  # which makes it; None: no registered entity has this index
    expected: dict[str, Any] | None  # what the database says; None: it has no such row
    held: dict[str, Any] | None  # what the index gives back
    version: int | None  # of that
    on_its_way: bool  # a row of it is unfinished, or was written during the look
    drift: Drift | None
    differs: tuple[str, ...]  # paths of the fields that differ
    unknown: str | None  # why the index cannot be asked
    compared_without: str | None  # what of the document cannot be read back


def look(store: Store, destination: Destination, registry: EntityRegistry | None, index: str, document_id: str) -> Look:
    """Raises `DatabaseUnavailable`. A destination that does not answer is told in `unknown`."""
    since, place = store.watermark(), (index, document_id)
    entities = () if registry is None else registry.of_index(index)
    moving = verifications.on_its_way(store, index, document_id, since)
    owner, document = loader.load_first(store.connection, entities, [place])[place]
    stored, kept, unknown = _held(destination, index, document_id)
    issued = store.highest_version()
    moving = moving or verifications.on_its_way(store, index, document_id, since)
    entity = owner or next(iter(entities), None)
    drift = None if unknown or entity is None else judge(entity, place, document, stored, issued, kept)
    expected = json.loads(document) if isinstance(document, bytes) else None
    differs: Iterable[str] = ()
    if drift is not None and drift.kind is DriftKind.DIFFERENT and expected is not None and stored is not None:
        differs = differing(*kept.comparable(expected, stored.source))
    return Look(
        index,
        document_id,
        None if entity is None else entity.name,
        expected,
        None if stored is None else kept.as_sent(stored.source),
        None if stored is None else stored.version,
        moving,
        drift,
        tuple(differs),
        unknown,
        kept.compared_without,
    )


def _held(destination: Destination, index: str, document_id: str) -> tuple[Stored | None, Kept, str | None]:
    try:
        if not destination.inspect_index(index, index).readers:
            return None, Kept(), None
        return destination.read(index, [document_id]).get(document_id), destination.kept(index), None
    except DestinationError as error:
        return None, Kept(), str(error)


def deliver_again(
    store: Store, destination: Destination, registry: EntityRegistry | None, index: str, document_id: str
) -> None:
    """Write a row that makes the document anew from the database, or removes it where the database has none.

    Raises `InvalidInput` where no entity makes it, or where its index is lost; `DatabaseUnavailable`,
    `DestinationError`.
    """
    found = look(store, destination, registry, index, document_id)
    if found.unknown is not None:
        raise DestinationError(found.unknown)
    if registry is None or found.entity is None:
        raise InvalidInput(
            f"no registered entity makes documents of index {index}: write {document_id} again where it was written"
        )
    if lost(store, destination, [index]):
        remedy = f"run 'outbox-relay reindex --entity {shlex.quote(found.entity)}'"
        raise InvalidInput(f"index {index} is lost, and a row would wait for it: {remedy}")
    named = (found.expected or found.held or {}).get(TENANT_FIELD)
    tenant = tenant_named(registry[found.entity], index, document_id, named)
    again = Drift(DriftKind.DIFFERENT, found.entity, index, document_id, tenant, found.version)
    repair(store, destination, [again])
