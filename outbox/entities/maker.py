"""One row becomes a document, or the reason why none can be made of it; and what has to be read for that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, NamedTuple
from weakref import WeakSet

from sqlalchemy import Connection, Select, TypeDecorator, select
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, ProgrammingError
from sqlalchemy.orm import (
    ColumnProperty,
    Load,
    Mapper,
    RelationshipProperty,
    Session,
    joinedload,
    selectinload,
    undefer,
)
from sqlalchemy.orm.interfaces import ORMOption

from outbox import documents
from outbox.documents import TENANT_FIELD
from outbox.entities.columns import alike
from outbox.entities.entity import Branch, Entity
from outbox.entities.keys import DocumentKey, Tenancy, among
from outbox.entities.row import ColumnsOfRow
from outbox.errors import InvalidDocument, InvalidName
from outbox.settings import write_settings

_BUILT_FOR_WHEN: Final[WeakSet[Entity]] = WeakSet()
"""Entities whose `when` has asked for more than columns."""

_AWAY: Final = {"42P01", "42703", "42501"}
"""SQLSTATEs of a table or column that is not there, as while a migration is under way, and of one that may not be read.
SQLite says as much by an `OperationalError`."""


class LoadFailed(NamedTuple):
    """Why a document cannot be made of its row. `error_type` is a word for programs, `error` a line for people."""

    error_type: str
    error: str


Loaded = bytes | LoadFailed | None
"""The document as JSON; or None, if there shall be none; or why it cannot be made."""


class Found(NamedTuple):
    """A row's document and where it belongs now."""

    key: DocumentKey | None
    document: Loaded


NOWHERE = DocumentKey("", "", None)


class _NoListeners:
    """In place of the events of a session: each of them is empty."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _NOBODY


class _Nobody(tuple[()]):
    def __call__(self, *_: Any) -> None:
        return None


_NOBODY: Final = _Nobody()


def session_of_our_own(connection: Connection) -> Session:
    """One that reads rows as they are. What an application has on `sqlalchemy.orm.Session`, for all of its sessions, is
    for its requests: criteria for the tenant of a request, say, would hide rows, whose documents were removed then."""
    session = Session(connection, autoflush=False)
    session.__dict__["dispatch"] = _NoListeners()
    return session


class Maker:
    """Makes documents of what was loaded; a failure is that document's alone."""

    def __init__(self, connection: Connection, entity: Entity) -> None:
        self._connection, self._entity = connection, entity
        self._session: Session | None = None
        self._max_bytes = (entity.limits or write_settings()).max_document_bytes
        self._width = len(entity.id_key)
        self._tenant_at = self._width if entity.tenant else None
        self._fields_at = self._width + (1 if entity.tenant else 0)
        self._names = entity.tree.leaves
        self._all_columns = _column_names(entity)

    def of_row(self, row: Sequence[Any]) -> Found:
        """Of its columns, in the order of `columns_of`."""
        entity, end = self._entity, self._fields_at + len(self._names)
        document = dict(zip(self._names, row[self._fields_at : end], strict=True))
        if not entity.tree.is_row:
            document = entity.tree.document(SimpleNamespace(**document))
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
            self._session = session_of_our_own(self._connection)
        statement = self._entity.rows(select(self._entity.model)).where(among(self._entity.id_columns, [identity]))
        found = self._session.scalars(statement.options(*options_of(self._entity)))
        return found.unique().one_or_none()  # as collections that are joined ask for

    def close(self) -> None:
        if self._session is not None:
            self._session.close()

    def of_object(self, instance: Any) -> Found:
        entity = self._entity
        identity = [getattr(instance, name) for name in entity.id_key]
        tenant = getattr(instance, entity.tenant) if entity.tenant else None
        return self._made(identity, tenant, instance, None, entity.to_document or entity.tree.document)

    def _made(
        self,
        identity: Sequence[Any],
        tenant: Any,
        row: Any,
        content: Mapping[str, Any] | None,
        make: Callable[[Any], Mapping[str, Any]] | None,
    ) -> Found:
        """`content` is made of the row by `make`, if that is given, but not for rows that have no document."""
        entity = self._entity
        try:
            key = entity.key_of(identity, tenant)
        except InvalidName as error:
            if entity.tenancy is not Tenancy.SHARED:
                return Found(NOWHERE, None)  # it left its place for one that cannot be
            return Found(None, LoadFailed("invalid_name", str(error)))
        try:
            if entity.when is not None and not entity.when(row):
                return Found(key, None)
        except Exception as error:
            self._raise_if_unavailable(error)
            return Found(key, LoadFailed("when_failed", said_of(error)))
        try:
            if make is not None:
                content = make(row)
            if key.tenant_id is not None and isinstance(content, Mapping):
                content = {**content, TENANT_FIELD: key.tenant_id}
        except Exception as error:
            self._raise_if_unavailable(error)
            return Found(key, LoadFailed("to_document_failed", said_of(error)))
        try:
            return Found(key, documents.serialise(content, max_bytes=self._max_bytes))  # type: ignore[arg-type]
        except InvalidDocument as error:
            return Found(key, LoadFailed("invalid_document", str(error)))
        except Exception as error:  # a mapping of the application's own that raises when it is read
            return Found(key, LoadFailed("invalid_document", said_of(error)))

    def _raise_if_unavailable(self, error: Exception) -> None:
        """Raise what is the database's trouble, met while a document was made: its row is not at fault."""
        away = isinstance(error, ProgrammingError) and getattr(error.orig, "sqlstate", None) in _AWAY
        if away or isinstance(error, OperationalError | InterfaceError | InternalError) or self._connection.invalidated:
            raise error


def said_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def needs_objects(entity: Entity) -> bool:
    return not _is_of_columns(entity) or _are_built_for_when(entity)


def _is_of_columns(entity: Entity) -> bool:
    return entity.to_document is None and entity.load_options is None and entity.tree.plain


def _are_built_for_when(entity: Entity) -> bool:
    """Whether `when` gets objects where columns would do for the fields: as it has asked for them; or at once where the
    application listens to them being loaded, so that they are not what their columns are."""
    if entity.when is None or not _is_of_columns(entity):
        return False
    listeners = [each.class_manager.dispatch.load for each in entity.mapper.self_and_descendants]
    return entity in _BUILT_FOR_WHEN or any(listeners)


def _column_names(entity: Entity) -> list[str]:
    """All columns of an entity, by the names of its attributes: what `when` may look at."""
    return [] if entity.when is None else [prop.key for prop in entity.mapper.column_attrs]


def columns_of(entity: Entity) -> Select[Any]:
    names = [*entity.placed_by, *entity.tree.leaves, *_column_names(entity)]
    return entity.rows(select(*(entity.column(name).label(f"c{at}") for at, name in enumerate(names))))


def options_of(entity: Entity) -> list[ORMOption]:
    options = [*_tree_options(entity.mapper, entity.tree, None), *(entity.load_options or ())]
    # `when` gets all columns where no object is built: so it does where one is.
    return [Load(entity.model).undefer("*"), *options] if _are_built_for_when(entity) else options


def _tree_options(mapper: Mapper[Any], tree: Branch, above: Any) -> list[ORMOption]:
    """Load with the objects what the paths lead to, and deferred columns among the fields."""
    options: list[ORMOption] = []
    for name in tree.leaves:
        prop = mapper.attrs.get(name)
        if isinstance(prop, ColumnProperty) and prop.deferred:
            attribute = getattr(mapper.class_, name)
            options.append(above.undefer(attribute) if above else undefer(attribute))
    for name, branch in tree.branches.items():
        attribute, relationship = getattr(mapper.class_, name), mapper.relationships[name]
        if branch.many and not _is_joined_otherwise(relationship):
            option = above.selectinload(attribute) if above else selectinload(attribute)
        else:
            option = above.joinedload(attribute) if above else joinedload(attribute)
        below = _tree_options(relationship.mapper, branch, option)
        options += [option, *below]
    return options


def _is_joined_otherwise(relationship: RelationshipProperty[Any]) -> bool:
    """Whether the database may take keys for equal that Python does not, by a collation, as CITEXT, or since the types
    of the two read them differently: of members that are selected by themselves, Python says whose they are."""
    pairs = [(local.type, remote.type) for local, remote in relationship.local_remote_pairs or ()]
    plain = [each.impl_instance if isinstance(each, TypeDecorator) else each for pair in pairs for each in pair]
    return any(getattr(each, "collation", None) or each.__visit_name__ == "CITEXT" for each in plain) or not all(
        alike(local, remote) for local, remote in pairs
    )
