"""Documents made of rows of the application: those of some places, or of an entity page by page."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import chain
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, func, select, tuple_
from sqlalchemy.exc import DBAPIError

from outbox.entities.entity import Entity
from outbox.entities.keys import MOST_PARAMETERS, DocumentKey, Tenancy, among, portions, tenant_of, wide
from outbox.entities.maker import (
    NOWHERE,
    Found,
    Loaded,
    LoadFailed,
    Maker,
    columns_of,
    needs_objects,
    options_of,
    said_of,
    session_of_our_own,
)
from outbox.entities.part import Part as Part
from outbox.errors import DatabaseUnavailable, InvalidName
from outbox.store.store import dialect_of

PAGE_BYTES = 5_000_000
"""A page of documents ends when it is as large as that, however few they are."""

OBJECTS_AT_ONCE = 100
LOOKED_AT_ONCE = 1_000
ROWS_AT_ONCE = 100  # one by one costs more than to make a small document; all together they may be large


class Room(NamedTuple):
    """Of the rows that are asked for, the document of one is made at least, and of no further one after so many bytes,
    or from an instant of `time.monotonic` on."""

    bytes_: int = sys.maxsize
    until: float = math.inf


_EVERYTHING = Room()


class Row(NamedTuple):
    """A row of an entity: what makes its `_id`, where its document belongs, and the document."""

    entity: Entity
    identity: tuple[Any, ...]
    place: DocumentKey | None
    document: Loaded

    @property
    def key(self) -> list[str]:
        """What makes its `_id`, as text."""
        return self.entity.key_text(self.identity)


_UNREAD = Found(None, None)  # there was no room for it


class _Unreadable(Exception):
    """A row of several that were read at once; one by one it can be found."""


def load_first(
    connection: Connection,
    entities: Sequence[Entity],
    places: Iterable[tuple[str, str]],
    room: Room = _EVERYTHING,
) -> dict[tuple[str, str], tuple[Entity | None, Loaded]]:
    """What the database says now of the documents at these places, and by which of the entities: the first that makes
    one, or fails to, see `EntityRegistry.of_index`. Otherwise as `load_places`, for each of them."""
    found: dict[tuple[str, str], tuple[Entity | None, Loaded]] = {}
    left = list(places)
    for entity in entities:
        made = load_places(connection, entity, left, room) if left else {}
        found |= {place: (entity, document) for place, document in made.items() if document is not None}
        left = [place for place, document in made.items() if document is None]
    return found | dict.fromkeys(left, (None, None))


def load_places(
    connection: Connection, entity: Entity, places: Sequence[tuple[str, str]], room: Room = _EVERYTHING
) -> dict[tuple[str, str], Loaded]:
    """What the database says now of the documents at these places, (index name, `_id`), as far as there is room.

    JSON text; or None, if there is no such row, if `when` excludes it, or if its document now belongs elsewhere
    (another tenant); or why it cannot be made. One query, and one more for each to-many path.
    Raises `DatabaseUnavailable`. Takes no lock of its own.
    """
    identities = {place: entity.identity_of(place[1]) for place in places}
    wanted = list(dict.fromkeys(identity for identity in identities.values() if identity is not None))
    found = _found(connection, entity, wanted, room)
    return {
        place: _at(place, each)
        for place, identity in identities.items()
        if (each := None if identity is None else found.get(identity)) is not _UNREAD
    }


# -- walking through an entity ------------------------------------------------------------------------------


def count(connection: Connection, entity: Entity, part: Part) -> int:
    """How many rows an entity has, also those that have no document. Raises `DatabaseUnavailable`."""
    with _or_unavailable(entity):
        return int(connection.execute(part.of(entity, entity.rows(select(func.count())))).scalar_one())


def tenants(connection: Connection, entity: Entity, limit: int | None = None) -> list[str]:
    """The tenants that have rows, as text."""
    tenant = entity.tenant_sql()
    if tenant is None:
        return []
    statement = entity.rows(select(tenant)).where(tenant.is_not(None)).distinct().order_by(tenant)
    with _or_unavailable(entity):
        return [row[0] for row in connection.execute(statement.limit(limit))]


def identities(
    connection: Connection, entity: Entity, part: Part, *, after: tuple[Any, ...] | None, limit: int
) -> list[tuple[Any, ...]]:
    """What makes the next `_id`s of an entity after that one, in its order. Raises `DatabaseUnavailable`.

    One short read for each page: a long one would keep the write-ahead log from being taken up.
    """
    statement = _after(entity, entity.rows(select(*entity.id_columns)), after)
    with _or_unavailable(entity):
        return [tuple(row) for row in connection.execute(part.of(entity, statement).limit(limit))]


def page(connection: Connection, entity: Entity, part: Part, after: Sequence[str] | None, limit: int) -> list[Row]:
    """The next rows in the order of what makes their `_id`, after that one (as text), with their documents.

    Fewer than `limit` where documents are large; none at the end. Takes no lock and holds no snapshot from one
    page to the next. Raises `DatabaseUnavailable`.
    """
    key = None
    if after is not None:
        key = tuple(form.from_text(text) for form, text in zip(entity.id_forms, after, strict=True))
    if not needs_objects(entity):
        with suppress(_Unreadable):
            return _page_of_columns(connection, entity, part, key, limit)
    return _page_by_keys(connection, entity, part, key, limit)


def _page_by_keys(
    connection: Connection, entity: Entity, part: Part, after: tuple[Any, ...] | None, limit: int
) -> list[Row]:
    """The keys first, then the rows of some of them after those of others: a page that is full ends with the last row
    that was read, and none before it is left out."""
    following = identities(connection, entity, part, after=after, limit=limit)
    rows: list[Row] = []
    size = 0
    for some in portions(following, len(entity.id_key), OBJECTS_AT_ONCE):
        found = _found(connection, entity, some)
        rows += [Row(entity, identity, *found.get(identity, Found(None, None))) for identity in some]
        size += sum(map(_size, found.values()))
        if size >= PAGE_BYTES:
            break
    return rows


def _page_of_columns(
    connection: Connection, entity: Entity, part: Part, after: tuple[Any, ...] | None, limit: int
) -> list[Row]:
    """In one query. Raises `_Unreadable` if the types of its columns cannot read one of the rows."""
    width = len(entity.id_key)
    rows: list[Row] = []
    size = 0
    try:
        statement = part.of(entity, _after(entity, columns_of(entity), after)).limit(limit)
        with closing(Maker(connection, entity)) as make, connection.execute(statement) as result:
            for some in result.partitions(ROWS_AT_ONCE):
                for row in some:
                    found = make.of_row(row)
                    rows.append(Row(entity, row[:width], *found))
                    size += _size(found)
                if size >= PAGE_BYTES:
                    break
    except Exception as error:
        _refuse_if_unavailable(connection, entity, error)
        raise _Unreadable from error
    return rows


def load_rows(
    connection: Connection, entity: Entity, identities: Sequence[tuple[Any, ...]], most: int
) -> Iterator[dict[tuple[Any, ...], tuple[DocumentKey | None, Loaded]]]:
    """Where the documents of rows belong, and what the database says of them, by what makes their `_id`; `most` rows at
    a time, fewer where documents are large.

    No place, and no document, for a row without a legal one; a deleted row is missing.
    Raises `DatabaseUnavailable`.
    """
    for found in _by_size(connection, entity, identities, most):
        yield {each: (None if key is NOWHERE else key, document) for each, (key, document) in found.items()}


def holders(
    connection: Connection, entity: Entity, places: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], DocumentKey]:
    """Those of the places that shall hold a document; also one that cannot be made at present.

    Costs less than to load the documents, unless `when` has to look at them. Raises `DatabaseUnavailable`.
    """
    identities = {place: entity.identity_of(place[1]) for place in places}
    wanted = list({identity for identity in identities.values() if identity is not None})
    keys_: dict[Any, DocumentKey | None] = {}  # None: not known, since the row cannot be read
    if entity.when is not None:
        for found in _by_size(connection, entity, wanted, LOOKED_AT_ONCE):
            keys_ |= {identity: each.key for identity, each in found.items() if each.document is not None}
    elif entity.tenancy is Tenancy.SHARED:
        tenants = _tenants_of(connection, entity, wanted)
        return {
            place: DocumentKey(*place, tenants[identity])
            for place, identity in identities.items()
            if identity in tenants and place[0] == entity.index
        }
    else:
        for identity, tenant in _tenants_of(connection, entity, wanted).items():
            with suppress(InvalidName):  # no place, no document
                keys_[identity] = entity.place_of(identity, tenant)
    belonging = ((place, keys_[identity]) for place, identity in identities.items() if identity in keys_)
    held = ((place, key or _key_at(entity, place)) for place, key in belonging)
    return {place: key for place, key in held if key[:2] == place}


def _key_at(entity: Entity, place: tuple[str, str]) -> DocumentKey:
    """That of a document which is there."""
    return DocumentKey(*place, tenant_of(entity.tenancy, entity.index, *place))


def _tenants_of(
    connection: Connection, entity: Entity, wanted: Sequence[tuple[Any, ...]]
) -> dict[tuple[Any, ...], str | None]:
    """The tenants, as text, of those that have a row."""
    found: dict[tuple[Any, ...], str | None] = {}
    width = len(entity.id_key)
    columns = [*entity.id_columns, *([entity.column(entity.tenant)] if entity.tenant else [])]
    for part in portions(wanted, len(entity.id_key)):
        with _or_unavailable(entity):
            rows = connection.execute(entity.rows(select(*columns)).where(among(entity.id_columns, part))).all()
        for row in rows:
            found[row[:width]] = entity.tenant_text(row[width]) if entity.tenant else None
    return found


def _by_size(
    connection: Connection, entity: Entity, wanted: Sequence[tuple[Any, ...]], most: int
) -> Iterator[dict[Any, Found]]:
    """Some rows after the others, `most` at a time: of `PAGE_BYTES`, if they are as large as those before."""
    start, at_once = 0, ROWS_AT_ONCE
    while some := wanted[start : start + min(at_once, most)]:
        found = _found(connection, entity, some)
        start += len(some)
        at_once = max(1, PAGE_BYTES * len(some) // max(1, sum(map(_size, found.values()))))
        yield found


def _found(
    connection: Connection, entity: Entity, wanted: Sequence[tuple[Any, ...]], room: Room = _EVERYTHING
) -> dict[Any, Found]:
    found: dict[Any, Found] = {}
    at_once = OBJECTS_AT_ONCE if needs_objects(entity) else MOST_PARAMETERS
    parts = list(portions(wanted, len(entity.id_key), at_once))
    for part in parts:
        some = _read(connection, entity, part, room) if room.bytes_ > 0 else dict.fromkeys(part, _UNREAD)
        found |= some
        if len(parts) > 1:
            is_over = time.monotonic() >= room.until
            room = room._replace(bytes_=0 if is_over else room.bytes_ - sum(map(_size, some.values())))
    return found


def _read(connection: Connection, entity: Entity, part: Sequence[tuple[Any, ...]], room: Room) -> dict[Any, Found]:
    try:
        return _query(connection, entity, part, room)
    except Exception as error:
        _refuse_if_unavailable(connection, entity, error)
        # A row that driver, types of columns or a loader cannot read: find it, so that only it fails.
        if len(part) == 1:
            said = (isinstance(error, DBAPIError) and error.orig) or error
            return {part[0]: Found(None, LoadFailed("load_failed", said_of(said)))}
        middle = len(part) // 2
        first = _read(connection, entity, part[:middle], room)
        if time.monotonic() >= room.until:
            return {**dict.fromkeys(part, _UNREAD), **first}
        return {**first, **_read(connection, entity, part[middle:], room)}


def _query(connection: Connection, entity: Entity, wanted: Sequence[tuple[Any, ...]], room: Room) -> dict[Any, Found]:
    found: dict[Any, Found] = {}
    if needs_objects(entity):
        make = Maker(connection, entity)
        with session_of_our_own(connection) as session:
            statement = entity.rows(select(entity.model)).where(among(entity.id_columns, wanted))
            for each in session.scalars(statement.options(*options_of(entity))).unique():
                if found and time.monotonic() >= room.until:
                    return {**dict.fromkeys(wanted, _UNREAD), **found}
                found[tuple(getattr(each, name) for name in entity.id_key)] = make.of_object(each)
        return found
    width, left = len(entity.id_key), room.bytes_
    statement = columns_of(entity).where(among(entity.id_columns, wanted))
    with closing(Maker(connection, entity)) as make, connection.execute(statement) as result:
        for row in chain.from_iterable(result.partitions(ROWS_AT_ONCE)):
            if found and (left <= 0 or time.monotonic() >= room.until):
                return {**dict.fromkeys(wanted, _UNREAD), **found}
            found[row[:width]] = made = make.of_row(row)
            left -= _size(made)
    return found


def _size(found: Found) -> int:
    return len(found.document) if isinstance(found.document, bytes) else 0


def _after(entity: Entity, statement: Select[Any], after: tuple[Any, ...] | None) -> Select[Any]:
    """Rows in the order of what makes their `_id`, after that one."""
    statement = statement.where(*(column.is_not(None) for column in entity.id_columns)).order_by(*entity.id_columns)
    columns = [wide(column) for column in entity.id_columns]
    if after is None:
        return statement
    return statement.where(columns[0] > after[0] if len(columns) == 1 else tuple_(*columns) > after)


def _at(place: tuple[str, str], found: Found | None) -> Loaded:
    """What a place shall hold: nothing, if the document of its row belongs elsewhere now."""
    if found is None or (found.key is not None and found.key[:2] != place):
        return None
    return found.document


def _unavailable(entity: Entity, error: Exception) -> DatabaseUnavailable:
    said = error.orig if isinstance(error, DBAPIError) else error
    return DatabaseUnavailable(f"entity {entity.name!r} cannot be loaded: {said}")


def _refuse_if_unavailable(connection: Connection, entity: Entity, error: Exception) -> None:
    """Raises `DatabaseUnavailable` for a failure of the database: one of a row is that row's alone."""
    of_the_database = isinstance(error, DBAPIError) and not dialect_of(connection).is_row_fault(error.orig)
    if of_the_database or connection.invalidated:
        raise _unavailable(entity, error) from error


@contextmanager
def _or_unavailable(entity: Entity) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise _unavailable(entity, error) from error
