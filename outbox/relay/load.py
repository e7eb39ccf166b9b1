"""What each row of a claim says: as the application wrote it, or as the database says of its entity now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from sqlalchemy import Connection

from outbox import documents
from outbox.destinations.base import Outcome, OutcomeKind
from outbox.entities import loader
from outbox.entities.entity import Entity
from outbox.entities.loader import Loaded, LoadFailed
from outbox.entities.refusals import nearest
from outbox.entities.registry import EntityRegistry
from outbox.errors import DatabaseUnavailable, InvalidName, shortened
from outbox.relay.plan import Content
from outbox.store import claims
from outbox.store.claims import Claim
from outbox.store.models import Action, Event
from outbox.store.store import Store

UNKNOWN_ENTITY = "unknown_entity"
"""Error type of a row whose entity is not registered."""

_NO_REGISTRY = Outcome(
    OutcomeKind.BLOCKED, "no_registry", "its entities are not known here: set OUTBOX_ENTITIES for this relay"
)


def contents(store: Store, registry: EntityRegistry | None, claim: Claim) -> dict[int, Content]:
    """The content of the claimed rows by their ids. A row that has none, and should, is missing.

    Read after the claim has committed: what a `refresh` row speaks of is in the database then, or something
    newer, for which there is a later row.
    """
    found: dict[int, Content] = {**claims.load(store, claim)}
    refreshed = [event for event in claim.events if event.action == Action.REFRESH]
    if refreshed:
        found |= _entities(store, registry, refreshed)
    for event in claim.events:
        if event.index_name not in claim.targets and (malformed := malformed_name(event.index_name)):
            found[event.id] = malformed
    return found


def malformed_name(index_name: str) -> Outcome | None:
    """The end of a row whose index has a name that none can have; None if it is fine.

    Rows of other programs pass no check, and a request to the index `*` would be one to all of them.
    """
    try:
        documents.check_index_name(index_name)
    except InvalidName as error:
        return Outcome(OutcomeKind.REJECTED, "illegal_index_name", str(error))
    return None


def _entities(store: Store, registry: EntityRegistry | None, events: Sequence[Event]) -> dict[int, Content]:
    if registry is None:
        return {event.id: _NO_REGISTRY for event in events}
    try:
        loaded = from_database(store.connection, registry, events)
    except DatabaseUnavailable as error:
        return {event.id: Outcome(OutcomeKind.BLOCKED, "entity_unavailable", str(error)) for event in events}
    return {id_: _failed(each) if isinstance(each, LoadFailed) else each for id_, each in loaded.items()}


def from_database(connection: Connection, registry: EntityRegistry, events: Sequence[Event]) -> dict[int, Loaded]:
    """What the database says now of the documents of `refresh` rows, by event id, see `loader.load_places`.

    Raises `DatabaseUnavailable`. Takes no lock of its own.
    """
    loaded: dict[int, Loaded] = {}
    by_entity: dict[str | None, list[Event]] = defaultdict(list)
    for event in events:
        by_entity[event.entity].append(event)
    known = {entity.name: entity for entity in registry}
    for name, rows in by_entity.items():
        entity = known.get(name or "")
        if entity is None:
            loaded |= dict.fromkeys((row.id for row in rows), _unknown(name, known))
            continue
        places = [(row.index_name, row.document_id) for row in rows]
        made = _of_index(connection, registry, entity, places)
        loaded |= {row.id: made[place] for row, place in zip(rows, places, strict=True)}
    return loaded


def _of_index(
    connection: Connection, registry: EntityRegistry, entity: Entity, places: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], Loaded]:
    """The documents at these places, of an entity or, if its row is none of its own any more, of another one there.

    Two kinds of one table may share an index: a row that changes its kind keeps its place then, and brings a `refresh`
    row for each of the two.
    """
    found = loader.load_places(connection, entity, places)
    for other in registry:
        empty = [place for place, document in found.items() if document is None and other.index_names(place[0])]
        if other is not entity and empty:
            found |= loader.load_places(connection, other, empty)
    return found


def _unknown(name: str | None, known: Iterable[str]) -> LoadFailed:
    return LoadFailed(
        UNKNOWN_ENTITY,
        f"no entity {shortened(name)} is registered here{nearest(name or '', known)}; "
        "add it to the registry that OUTBOX_ENTITIES names, with the name= it had when the row was written",
    )


def _failed(failure: LoadFailed) -> Outcome:
    # That an entity is not registered is no fault of the document: its rows wait for a relay that knows it.
    kind = OutcomeKind.BLOCKED if failure.error_type == UNKNOWN_ENTITY else OutcomeKind.FAILED
    return Outcome(kind, failure.error_type, failure.error)
