"""What each row of a claim says: as the application wrote it, or as the database says of its entity now."""

from __future__ import annotations

import shlex
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

from sqlalchemy import Connection

from outbox import documents
from outbox.destinations.base import Outcome, OutcomeKind, fitting
from outbox.entities import loader
from outbox.entities.entity import Entity
from outbox.entities.loader import Room
from outbox.entities.maker import Loaded, LoadFailed
from outbox.entities.refusals import nearest
from outbox.entities.registry import EntityRegistry
from outbox.errors import DatabaseUnavailable, InvalidName, shortened
from outbox.relay.intake import Intakes
from outbox.relay.plan import Content
from outbox.store import claims
from outbox.store.claims import Claim
from outbox.store.due import REFRESH
from outbox.store.models import Event
from outbox.store.store import Store

UNKNOWN_ENTITY = "unknown_entity"
"""Error type of a row whose entity is not registered."""

_NO_REGISTRY = Outcome(
    OutcomeKind.BLOCKED, "no_registry", "its entities are not known here: set OUTBOX_ENTITIES for this relay"
)


FIRST_ROWS = 50
"""So many documents are made of an index of which no size is known yet."""


def contents(
    store: Store, registry: EntityRegistry | None, claim: Claim, intakes: Intakes | None = None
) -> tuple[dict[int, Content], list[Event]]:
    """The content of the claimed rows by their ids. A row that has none, and should, is missing.

    With `intakes` no more documents are made than a request carries, or a few more, nor for longer than they allow; and
    the rows of the others.
    Read after the claim has committed: what a `refresh` row speaks of is in the database then, or something
    newer, for which there is a later row.
    """
    found: dict[int, Content] = {**claims.load(store, claim)}
    alike: dict[tuple[str, str, str | None], list[Event]] = defaultdict(list)
    for event in claim.events:
        if event.action == REFRESH:
            alike[event.index_name, event.document_id, event.entity].append(event)
    unmade: list[Event] = []
    if alike:
        made = _entities(store, registry, [rows[0] for rows in alike.values()], intakes)
        # One document for all rows that ask for it: were some of them given back, all would have to be, and a document
        # that changes more often than there is time to make it would never be sent.
        found |= {row.id: made[rows[0].id] for rows in alike.values() if rows[0].id in made for row in rows}
        # Rows of one document stay together.
        if len(made) < len(alike):
            later = {(index, id_) for (index, id_, _), rows in alike.items() if rows[0].id not in made}
            unmade = [event for event in claim.events if (event.index_name, event.document_id) in later]
    for name in {event.index_name for event in claim.events} - claim.targets.keys():
        if malformed := malformed_name(name):
            found |= {event.id: malformed for event in claim.events if event.index_name == name}
    return found, unmade


def malformed_name(index_name: str) -> Outcome | None:
    """The end of a row whose index has a name that none can have; None if it is fine.

    Rows of other programs pass no check, and a request to the index `*` would be one to all of them.
    """
    try:
        documents.check_index_name(index_name)
    except InvalidName as error:
        return Outcome(OutcomeKind.REJECTED, "illegal_index_name", str(error))
    return None


def _entities(
    store: Store, registry: EntityRegistry | None, events: Sequence[Event], intakes: Intakes | None
) -> dict[int, Content]:
    """Without those for which there is no room; the first is made, whatever its size."""
    if registry is None:
        return {event.id: _NO_REGISTRY for event in events}
    made: dict[int, Content] = {}
    try:
        if any(entity.is_made_of_others for entity in registry):
            store.dialect.until_announced_ends(store.run)
        with store.dialect.reading(store.run):
            for some, room in _portions(events, intakes, made):
                for entities, rows in _together(registry, some).items():
                    if not made or time.monotonic() < room.until:
                        made |= _made(store.connection, registry, entities, rows, room)
    except DatabaseUnavailable as error:
        return {event.id: _unavailable(error) for event in events}
    return made


def _made(
    connection: Connection,
    registry: EntityRegistry,
    entities: Sequence[Entity],
    rows: Sequence[Event],
    room: Room,
) -> dict[int, Content]:
    """What cannot be read of one entity, e.g. while a migration has its table, holds back no other one's rows. Raises
    `DatabaseUnavailable` where the database is gone."""
    try:
        loaded = _loaded(connection, registry, entities, rows, room)
    except DatabaseUnavailable as error:
        if connection.invalidated:
            raise
        return {row.id: _unavailable(error) for row in rows}
    return {id_: _failed(each) if isinstance(each, LoadFailed) else each for id_, each in loaded.items()}


def _unavailable(error: DatabaseUnavailable) -> Outcome:
    return Outcome(OutcomeKind.BLOCKED, "entity_unavailable", str(error))


def _portions(
    events: Sequence[Event], intakes: Intakes | None, made: Mapping[int, Content]
) -> Iterator[tuple[Sequence[Event], Room]]:
    """As many rows at a time as there is room for, by the sizes of those that were `made` before; and the room."""
    if intakes is None:
        yield events, Room()
        return
    at, room, until = 0, intakes.full, time.monotonic() + intakes.longest_making_s
    while at < len(events) and room > 0 and (not at or time.monotonic() < until):
        some = _fitting(events[at:], intakes, room)
        yield some, Room(room, until)
        sizes: dict[str, list[int]] = defaultdict(list)
        for event in some:
            if isinstance(content := made.get(event.id), bytes):
                sizes[event.index_name].append(len(content))
        for index, each in sizes.items():
            intakes.of(index).made(len(each), sum(each))
            room -= sum(each)
        at += len(some)
        if len(made) < at:
            return


def _fitting(events: Sequence[Event], intakes: Intakes, room: int) -> Sequence[Event]:
    """The first of them that there is room for, as far as one can tell: at least one."""
    counted = Counter([event.index_name for event in events])
    bytes_ = intakes.expected()
    if counted.keys() <= bytes_.keys() and sum(rows * bytes_[name] for name, rows in counted.items()) <= room:
        return events  # as nearly always
    return fitting(events, lambda event: bytes_.get(event.index_name), room, FIRST_ROWS)


def from_database(connection: Connection, registry: EntityRegistry, events: Sequence[Event]) -> dict[int, Loaded]:
    """What the database says now of the documents of `refresh` rows, by event id, see `loader.load_first`.

    Whichever entity of the index makes them: a row may have become another one's since. Raises `DatabaseUnavailable`.
    Takes no lock of its own.
    """
    loaded: dict[int, Loaded] = {}
    for entities, rows in _together(registry, events).items():
        loaded |= _loaded(connection, registry, entities, rows, Room())
    return loaded


def _together(registry: EntityRegistry, events: Iterable[Event]) -> dict[tuple[Entity, ...], list[Event]]:
    """The rows by the entities of their index; of none, where the row's own is not among them."""
    named: dict[tuple[str, str | None], list[Event]] = defaultdict(list)
    for row in events:
        named[row.index_name, row.entity].append(row)
    together: dict[tuple[Entity, ...], list[Event]] = defaultdict(list)
    for (index, name), rows in named.items():
        entities = registry.of_index(index)
        together[tuple(entities) if any(each.name == name for each in entities) else ()] += rows
    return together


def _loaded(
    connection: Connection,
    registry: EntityRegistry,
    entities: Sequence[Entity],
    rows: Sequence[Event],
    room: Room,
) -> dict[int, Loaded]:
    if not entities:
        known = {entity.name for entity in registry}
        return {row.id: _unknown(row, known) for row in rows}
    places = [(row.index_name, row.document_id) for row in rows]
    made = loader.load_first(connection, entities, places, room)
    return {row.id: made[place][1] for row, place in zip(rows, places, strict=True) if place in made}


def _unknown(row: Event, known: Set[str]) -> LoadFailed:
    if row.entity in known:
        return LoadFailed(
            UNKNOWN_ENTITY,
            f"entity {shortened(row.entity)} has no documents in index {shortened(row.index_name)} here; start the "
            "relay of the version that has them there, or, if that index was given up, remove its rows: "
            f"'outbox-relay purge --index {shlex.quote(row.index_name)}'",
        )
    return LoadFailed(
        UNKNOWN_ENTITY,
        f"no entity {shortened(row.entity)} is registered here{nearest(row.entity or '', known)}; "
        "add it to the registry that OUTBOX_ENTITIES names, with the name= it had when the row was written",
    )


def _failed(failure: LoadFailed) -> Outcome:
    # That an entity is not registered is no fault of the document: its rows wait for a relay that knows it.
    kind = OutcomeKind.BLOCKED if failure.error_type == UNKNOWN_ENTITY else OutcomeKind.FAILED
    return Outcome(kind, failure.error_type, failure.error)
