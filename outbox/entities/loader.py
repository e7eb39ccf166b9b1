"""Documents made of rows of the application: those of some places, or of an entity page by page."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any, Final, NamedTuple
from weakref import WeakSet

from sqlalchemy import Connection, Select, func, select, tuple_
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import ColumnProperty, Mapper, Session, joinedload, selectinload, undefer
from sqlalchemy.orm.interfaces import ORMOption

from outbox import documents
from outbox.documents import TENANT_FIELD
from outbox.entities.entity import Branch, Entity
from outbox.entities.keys import MOST_PARAMETERS, DocumentKey, Tenancy, among, portions
from outbox.entities.part import Part as Part
from outbox.entities.row import ColumnsOfRow
from outbox.errors import DatabaseUnavailable, InvalidDocument, InvalidName
from outbox.settings import write_settings
from outbox.store.store import dialect_of

PAGE_BYTES = 5_000_000
"""A page of documents ends when it is as large as that, however few they are."""

OBJECTS_AT_ONCE = 100
ROWS_AT_ONCE = 100  # one by one costs more than to make a small document; all together they may be large

_BUILT_FOR_WHEN: Final[WeakSet[Entity]] = WeakSet()
"""Entities whose `when` has asked for more than columns."""


class LoadFailed(NamedTuple):
    """Why a document cannot be made of its row. `error_type` is a word for programs, `error` a line for people."""

    error_type: str
    error: str


Loaded = bytes | LoadFailed | None
"""The document as JSON; or None, if there shall be none; or why it cannot be made."""


class Row(NamedTuple):
    """A row of an entity: its primary key, where its document belongs, and the document."""

    entity: Entity
    identity: tuple[Any, ...]
    place: DocumentKey | None
    document: Loaded

    @property
    def key(self) -> list[str]:
        """The primary key as text."""
        return self.entity.key_text(self.identity)


class _Found(NamedTuple):
    """A row's document and where it belongs now."""

    key: DocumentKey | None
    document: Loaded


_NOWHERE = DocumentKey("", "", None)
_UNREAD = _Found(None, None)  # there was no room for it


class _Unreadable(Exception):
    """A row of several that were read at once; one by one it can be found."""


def load_places(
    connection: Connection, entity: Entity, places: Sequence[tuple[str, str]], most_bytes: int | None = None
) -> dict[tuple[str, str], Loaded]:
    """What the database says now of the documents at these places: (index name, `_id`).

    With `most_bytes` of those that it gets to before there is so much: of one at least, and of a few too many.

    JSON text; or None, if there is no such row, if `when` excludes it, or if its document now belongs elsewhere
    (another tenant); or why it cannot be made. One query, and one more for each to-many path.
    Raises `DatabaseUnavailable`. Takes no lock of its own.
    """
    identities = {place: entity.identity_of(place[1]) for place in places}
    wanted = list({identity for identity in identities.values() if identity is not None})
    found = _found(connection, entity, wanted, most_bytes)
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


def tenants(connection: Connection, entity: Entity, limit: int = -1) -> list[str]:
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
    """The next primary keys of an entity after that one, in their order. Raises `DatabaseUnavailable`.

    One short read for each page: a long one would keep the write-ahead log from being taken up.
    """
    statement = _after(entity, entity.rows(select(*entity.key_columns)), after)
    with _or_unavailable(entity):
        return [tuple(row) for row in connection.execute(part.of(entity, statement).limit(limit))]


def page(connection: Connection, entity: Entity, part: Part, after: Sequence[str] | None, limit: int) -> list[Row]:
    """The next rows in the order of the primary key, after that key (as text), with their documents.

    Fewer than `limit` where documents are large; none at the end. Takes no lock and holds no snapshot from one
    page to the next. Raises `DatabaseUnavailable`.
    """
    key = None
    if after is not None:
        key = tuple(form.from_text(text) for form, text in zip(entity.key_forms, after, strict=True))
    if not _needs_objects(entity):
        with suppress(_Unreadable):
            return _page_of_columns(connection, entity, part, key, limit)
    following = identities(connection, entity, part, after=key, limit=limit)
    found = _found(connection, entity, following, PAGE_BYTES)
    read = (identity for identity in following if found.get(identity) is not _UNREAD)
    return [Row(entity, identity, *found.get(identity, _Found(None, None))) for identity in read]


def _page_of_columns(
    connection: Connection, entity: Entity, part: Part, after: tuple[Any, ...] | None, limit: int
) -> list[Row]:
    """In one query. Raises `_Unreadable` if the types of its columns cannot read one of the rows."""
    width = len(entity.key)
    rows: list[Row] = []
    size = 0
    try:
        statement = part.of(entity, _after(entity, _columns(entity), after)).limit(limit)
        with closing(_Maker(connection, entity)) as make, connection.execute(statement) as result:
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
    connection: Connection, entity: Entity, identities: Sequence[tuple[Any, ...]]
) -> dict[tuple[Any, ...], tuple[DocumentKey | None, Loaded]]:
    """Where the documents of rows belong, and what the database says of them, by primary key.

    No place, and no document, for a row without a legal one; a deleted row is missing.
    Raises `DatabaseUnavailable`.
    """
    found = _found(connection, entity, identities)
    return {identity: (None if each.key is _NOWHERE else each.key, each.document) for identity, each in found.items()}


def holders(
    connection: Connection, entity: Entity, places: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], DocumentKey]:
    """Those of the places that shall hold a document; also one that cannot be made at present.

    Costs less than to load the documents, unless `when` has to look at them. Raises `DatabaseUnavailable`.
    """
    identities = {place: entity.identity_of(place[1]) for place in places}
    wanted = list({identity for identity in identities.values() if identity is not None})
    if entity.when is not None:
        found = _found(connection, entity, wanted)
        keys_ = {identity: each.key for identity, each in found.items() if each.key and each.document is not None}
    elif entity.tenancy is Tenancy.SHARED:
        tenants = _tenants_of(connection, entity, wanted)
        return {
            place: DocumentKey(*place, tenants[identity])
            for place, identity in identities.items()
            if identity in tenants and place[0] == entity.index
        }
    else:
        keys_ = {}
        for identity, tenant in _tenants_of(connection, entity, wanted).items():
            with suppress(InvalidName):  # no place, no document
                keys_[identity] = entity.place_of(identity, tenant)
    belonging = ((place, keys_.get(identity)) for place, identity in identities.items() if identity is not None)
    return {place: key for place, key in belonging if key is not None and key[:2] == place}


def _tenants_of(
    connection: Connection, entity: Entity, wanted: Sequence[tuple[Any, ...]]
) -> dict[tuple[Any, ...], str | None]:
    """The tenants, as text, of those primary keys that have a row."""
    found: dict[tuple[Any, ...], str | None] = {}
    width = len(entity.key)
    columns = [*entity.key_columns, *([entity.column(entity.tenant)] if entity.tenant else [])]
    for part in portions(wanted, len(entity.key)):
        with _or_unavailable(entity):
            rows = connection.execute(entity.rows(select(*columns)).where(among(entity.key_columns, part))).all()
        for row in rows:
            found[row[:width]] = entity.tenant_text(row[width]) if entity.tenant else None
    return found


def _found(
    connection: Connection, entity: Entity, wanted: Sequence[tuple[Any, ...]], most_bytes: int | None = None
) -> dict[Any, _Found]:
    found: dict[Any, _Found] = {}
    room = sys.maxsize if most_bytes is None else most_bytes
    at_once = OBJECTS_AT_ONCE if _needs_objects(entity) else MOST_PARAMETERS
    for part in portions(wanted, len(entity.key), at_once):
        some = _read(connection, entity, part, room) if room > 0 else dict.fromkeys(part, _UNREAD)
        room -= sum(map(_size, some.values()))
        found |= some
    return found


def _read(connection: Connection, entity: Entity, part: Sequence[tuple[Any, ...]], room: int) -> dict[Any, _Found]:
    try:
        return _query(connection, entity, part, room)
    except Exception as error:
        _refuse_if_unavailable(connection, entity, error)
        # A row that driver, types of columns or a loader cannot read: find it, so that only it fails.
        if len(part) == 1:
            said = (isinstance(error, DBAPIError) and error.orig) or error
            return {part[0]: _Found(None, LoadFailed("load_failed", _text(said)))}
        middle = len(part) // 2
        return {**_read(connection, entity, part[:middle], room), **_read(connection, entity, part[middle:], room)}


def _query(connection: Connection, entity: Entity, wanted: Sequence[tuple[Any, ...]], room: int) -> dict[Any, _Found]:
    if _needs_objects(entity):
        make = _Maker(connection, entity)
        with Session(connection, autoflush=False) as session:
            statement = entity.rows(select(entity.model)).where(among(entity.key_columns, wanted))
            objects = session.scalars(statement.options(*_options(entity))).unique()
            return {tuple(getattr(each, name) for name in entity.key): make.of_object(each) for each in objects}
    found: dict[Any, _Found] = {}
    width = len(entity.key)
    statement = _columns(entity).where(among(entity.key_columns, wanted))
    with closing(_Maker(connection, entity)) as make, connection.execute(statement) as result:
        for rows in result.partitions(ROWS_AT_ONCE):
            if room <= 0:
                return {**dict.fromkeys(wanted, _UNREAD), **found}
            found |= (some := {row[:width]: make.of_row(row) for row in rows})
            room -= sum(map(_size, some.values()))
    return found


def _size(found: _Found) -> int:
    return len(found.document) if isinstance(found.document, bytes) else 0


def _after(entity: Entity, statement: Select[Any], after: tuple[Any, ...] | None) -> Select[Any]:
    """Rows in the order of their primary keys, after that one."""
    columns = entity.key_columns
    statement = statement.where(*(column.is_not(None) for column in columns)).order_by(*columns)
    if after is None:
        return statement
    return statement.where(columns[0] > after[0] if len(columns) == 1 else tuple_(*columns) > after)


def _at(place: tuple[str, str], found: _Found | None) -> Loaded:
    """What a place shall hold: nothing, if the document of its row belongs elsewhere now."""
    if found is None or (found.key is not None and found.key[:2] != place):
        return None
    return found.document


class _Maker:
    """Makes documents of what was loaded; a failure is that document's alone."""

    def __init__(self, connection: Connection, entity: Entity) -> None:
        self._connection, self._entity = connection, entity
        self._session: Session | None = None
        self._max_bytes = (entity.limits or write_settings()).max_document_bytes
        self._width = len(entity.key)
        self._tenant_at = self._width if entity.tenant else None
        self._fields_at = self._width + (1 if entity.tenant else 0)
        self._names = entity.tree.leaves
        self._all_columns = _column_names(entity)

    def of_row(self, row: Sequence[Any]) -> _Found:
        """Of its columns, in the order of `_columns`."""
        entity, end = self._entity, self._fields_at + len(self._names)
        document = dict(zip(self._names, row[self._fields_at : end], strict=True))
        whole = None
        if entity.when is not None:
            columns = dict(zip(self._all_columns, row[end:], strict=True))
            whole = ColumnsOfRow(entity.model, columns, partial(self._object, tuple(row[: self._width])))
        tenant = None if self._tenant_at is None else row[self._tenant_at]
        return self._made(row[: self._width], tenant, whole, document, None)

    def _object(self, identity: tuple[Any, ...]) -> Any:
        """That of a row whose `when` asks for more than columns: from the next query on they are built at once."""
        _BUILT_FOR_WHEN.add(self._entity)
        if self._session is None:
            self._session = Session(self._connection, autoflush=False)
        return self._session.get(self._entity.model, identity)

    def close(self) -> None:
        if self._session is not None:
            self._session.close()

    def of_object(self, instance: Any) -> _Found:
        entity = self._entity
        identity = [getattr(instance, name) for name in entity.key]
        tenant = getattr(instance, entity.tenant) if entity.tenant else None
        return self._made(identity, tenant, instance, None, entity.to_document or entity.tree.document)

    def _made(
        self,
        identity: Sequence[Any],
        tenant: Any,
        row: Any,
        content: Mapping[str, Any] | None,
        make: Callable[[Any], Mapping[str, Any]] | None,
    ) -> _Found:
        """`content` is made of the row by `make`, if that is given, but not for rows that have no document."""
        entity = self._entity
        try:
            key = entity.key_of(identity, tenant)
        except InvalidName as error:
            if entity.tenancy is not Tenancy.SHARED:
                return _Found(_NOWHERE, None)  # it left its place for one that cannot be
            return _Found(None, LoadFailed("invalid_name", str(error)))
        try:
            if entity.when is not None and not entity.when(row):
                return _Found(key, None)
        except Exception as error:
            return _Found(key, LoadFailed("when_failed", _text(error)))
        try:
            if make is not None:
                content = make(row)
            if key.tenant_id is not None and isinstance(content, Mapping):
                content = {**content, TENANT_FIELD: key.tenant_id}
        except Exception as error:
            return _Found(key, LoadFailed("to_document_failed", _text(error)))
        try:
            return _Found(key, documents.serialise(content, max_bytes=self._max_bytes))  # type: ignore[arg-type]
        except InvalidDocument as error:
            return _Found(key, LoadFailed("invalid_document", str(error)))
        except Exception as error:  # a mapping of the application's own that raises when it is read
            return _Found(key, LoadFailed("invalid_document", _text(error)))


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _unavailable(entity: Entity, error: DBAPIError) -> DatabaseUnavailable:
    return DatabaseUnavailable(f"entity {entity.name!r} cannot be loaded: {error.orig}")


def _refuse_if_unavailable(connection: Connection, entity: Entity, error: Exception) -> None:
    """Raises `DatabaseUnavailable` for a failure of the database: one of a row is that row's alone."""
    if isinstance(error, DBAPIError) and not dialect_of(connection).is_row_fault(error.orig):
        raise _unavailable(entity, error) from error


@contextmanager
def _or_unavailable(entity: Entity) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise _unavailable(entity, error) from error


def _needs_objects(entity: Entity) -> bool:
    given = entity.to_document is not None or entity.load_options is not None
    return given or not entity.tree.plain or entity in _BUILT_FOR_WHEN


def _column_names(entity: Entity) -> list[str]:
    """All columns of an entity, by the names of its attributes: what `when` may look at."""
    return [] if entity.when is None else [prop.key for prop in entity.mapper.column_attrs]


def _columns(entity: Entity) -> Select[Any]:
    tenant = [entity.tenant] if entity.tenant else []
    names = [*entity.key, *tenant, *entity.tree.leaves, *_column_names(entity)]
    return entity.rows(select(*(entity.column(name).label(f"c{at}") for at, name in enumerate(names))))


def _options(entity: Entity) -> list[ORMOption]:
    return [*_tree_options(entity.mapper, entity.tree, None), *(entity.load_options or ())]


def _tree_options(mapper: Mapper[Any], tree: Branch, above: Any) -> list[ORMOption]:
    """Load with the objects what the paths lead to, and deferred columns among the fields."""
    options: list[ORMOption] = []
    for name in tree.leaves:
        prop = mapper.attrs.get(name)
        if isinstance(prop, ColumnProperty) and prop.deferred:
            attribute = getattr(mapper.class_, name)
            options.append(above.undefer(attribute) if above else undefer(attribute))
    for name, branch in tree.branches.items():
        attribute = getattr(mapper.class_, name)
        if branch.many:
            option = above.selectinload(attribute) if above else selectinload(attribute)
        else:
            option = above.joinedload(attribute) if above else joinedload(attribute)
        below = _tree_options(mapper.relationships[name].mapper, branch, option)
        options += [option, *below]
    return options
