"""Pure: whether a document of the database and the one in the index are the same, and what is wrong if not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from outbox.destinations.base import TENANT_FIELD, Stored
from outbox.destinations.kept import Kept
from outbox.destinations.same import canonical, is_same
from outbox.entities.entity import Entity
from outbox.entities.keys import tenant_of
from outbox.entities.maker import Loaded, LoadFailed
from outbox.store.drift import DriftKind

MOST_FIELDS: Final = 3

Place = tuple[str, str]
"""Where a document is: index name and `_id`."""


@dataclass(frozen=True, slots=True)
class Drift:
    """One document that is not as it should be."""

    kind: DriftKind
    entity: str
    index: str
    document_id: str
    tenant_id: str | None
    version: int | None = None  # of the document in the index
    fields: tuple[str, ...] = ()  # the first that differ
    error: str | None = None


def judge(
    entity: Entity, place: Place, document: Loaded, stored: Stored | None, issued: int, kept: Kept
) -> Drift | None:
    """What is wrong with a document, if anything is. `kept`: what its index gives back."""
    index, document_id = place
    held = None if stored is None else stored.version
    if not isinstance(document, bytes):
        tenant_id = tenant_named(entity, index, document_id, stored and stored.source.get(TENANT_FIELD))
        if document is not None:
            return Drift(DriftKind.FAILED, entity.name, index, document_id, tenant_id, held, error=_said(document))
        return None if stored is None else Drift(DriftKind.EXTRA, entity.name, index, document_id, tenant_id, held)
    expected = json.loads(document)
    tenant_id = tenant_named(entity, index, document_id, expected.get(TENANT_FIELD))
    if stored is None:
        return Drift(DriftKind.MISSING, entity.name, index, document_id, tenant_id)
    if not is_same(document, stored.source, kept):
        fields = tuple(differing(*kept.comparable(expected, stored.source)))[:MOST_FIELDS]
        return Drift(DriftKind.DIFFERENT, entity.name, index, document_id, tenant_id, held, fields)
    if stored.version > issued:
        return Drift(DriftKind.VERSION, entity.name, index, document_id, tenant_id, held)
    return None


def without_place(entity: Entity, identity: Sequence[Any], failure: LoadFailed) -> Drift:
    """A row for whose document neither index nor id is known."""
    return Drift(DriftKind.FAILED, entity.name, entity.index, "|".join(map(str, identity)), None, error=_said(failure))


def _said(failure: LoadFailed) -> str:
    return f"{failure.error_type}: {failure.error}"


def tenant_named(entity: Entity, index: str, document_id: str, named: Any) -> str | None:
    """The tenant of a document: from its place, if the tenant is a part of that, else from the field that names it."""
    if entity.tenant is None:
        return None
    placed = tenant_of(entity.tenancy, entity.index, index, document_id)
    return placed if placed is not None else named if isinstance(named, str) else None


def differing(expected: Any, actual: Any, path: str = "") -> Iterator[str]:
    """The paths of the fields that differ.

    >>> list(differing({"a": 1, "b": {"c": 1, "d": 2}}, {"a": 1, "b": {"c": 2, "d": 2}, "e": 0}))
    ['b.c', 'e']
    """
    if isinstance(expected, dict) and isinstance(actual, dict):
        for name in [*expected, *(name for name in actual if name not in expected)]:
            below = f"{path}.{name}" if path else name
            if name not in expected or name not in actual:
                yield below
            else:
                yield from differing(expected[name], actual[name], below)
    elif canonical(expected) != canonical(actual):
        yield path


def by_index(places: Iterable[Place]) -> dict[str, list[str]]:
    """The ids of the documents by index name."""
    found: dict[str, list[str]] = {}
    for index, document_id in places:
        found.setdefault(index, []).append(document_id)
    return found
