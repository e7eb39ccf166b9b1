"""The write side: outbox rows in the application's own transaction."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.orm import Session, scoped_session

from outbox import documents
from outbox.entities.entity import Entity
from outbox.entities.registry import EntityRegistry
from outbox.errors import (
    ConfigurationError,
    InvalidDocument,
    InvalidName,
    shortened,
)
from outbox.settings import WriteSettings, write_settings
from outbox.store.dialect import Row
from outbox.store.models import Action, now_ms
from outbox.store.sessions import require_session
from outbox.write import sync
from outbox.write.changes import Place, note_rows_of_application, places_of
from outbox.write.journal import journal_of


class OutboxRepository:
    """Puts changes of search documents into the outbox, in the transaction of `session`.

    Each call flushes the session first, so that a row's id is issued after the entity is written, then inserts.
    The rows commit and roll back with the session's transaction or savepoint. With an `AsyncSession`, call it
    inside `await async_session.run_sync(lambda session: ...)`. A `scoped_session` is taken as the session that it
    stands for when a method is called.

    With a registry, what is said of a document of a registered entity becomes a `refresh` row: the relay sends what
    the database says when it gets there, and the document that was passed is not looked at.

    A tenant is text, a UUID, an integer or a member of an enum.

    Every method checks its input before anything is stored; after an `InvalidInput` the session is still usable.
    `DatabaseUnavailable` (locked, full) and `SchemaError` (no outbox tables) come where the rows are stored: roll the
    transaction back then. On PostgreSQL a lost connection, a deadlock and a serialization failure come as of any other
    statement, as SQLAlchemy's `DBAPIError`, so that what tries transactions again does so.
    With `OUTBOX_ENABLED=false` the methods check nothing, store nothing and return None or an empty list.
    """

    def __init__(
        self,
        session: Session | scoped_session[Any],
        registry: EntityRegistry | None = None,
        *,
        settings: WriteSettings | None = None,
    ) -> None:
        require_session(session, "OutboxRepository", "OutboxRepository(session).index(...)")
        self._given, self._registry = session, registry
        self._settings = settings or write_settings()

    @property
    def _session(self) -> Session:
        """Of a `scoped_session`, as Flask-SQLAlchemy's `db.session` is one, that of the request at this moment."""
        return self._given() if isinstance(self._given, scoped_session) else self._given

    def index(
        self, index: str, document_id: str, document: Mapping[str, Any], *, tenant_id: object = None
    ) -> int | None:
        """Make `document` the whole content of `document_id` in `index`. Returns the id of the outbox row.

        Raises `InvalidDocument` or `InvalidName`, see `outbox.documents`.
        """
        if not self._settings.enabled:
            return None
        tenant = _checked(index, document_id, tenant_id)
        if entity := self._entity_of(index, document_id):
            return self._refresh(entity, index, document_id, tenant_id)
        content = documents.serialise(document, max_bytes=self._settings.max_document_bytes)
        return self._insert(Action.INDEX, index, document_id, tenant, content)

    def update(
        self,
        index: str,
        document_id: str,
        changes: Mapping[str, Any],
        *,
        upsert: Mapping[str, Any] | None = None,
        tenant_id: object = None,
    ) -> int | None:
        """Merge `changes` into `document_id` in `index`. Returns the id of the outbox row.

        Objects are merged key by key at any depth; arrays, scalars and None replace what was there, as
        Elasticsearch's own `_update` does. Where there is no such document, `upsert` becomes the whole of it, and
        `changes` are not merged into it; without `upsert` the row is dead (`document_missing`).
        Raises `InvalidDocument` (also for no changes at all, unless there is an `upsert`) or `InvalidName`.
        """
        if not self._settings.enabled:
            return None
        tenant = _checked(index, document_id, tenant_id)
        if entity := self._entity_of(index, document_id):
            return self._refresh(entity, index, document_id, tenant_id)
        content = documents.serialise(changes, max_bytes=self._settings.max_document_bytes)
        if upsert is not None:
            content = b"[%s,%s]" % (content, documents.serialise(upsert, max_bytes=self._settings.max_document_bytes))
        elif content == b"{}":
            raise InvalidDocument(f"the update of {index}/{shortened(document_id)} is empty; name at least one field")
        return self._insert(Action.UPDATE, index, document_id, tenant, content)

    def delete(self, index: str, document_id: str, *, tenant_id: object = None) -> int | None:
        """Remove `document_id` from `index`; no error if it is not there. Returns the id of the outbox row.

        Raises `InvalidName`.
        """
        if not self._settings.enabled:
            return None
        tenant = _checked(index, document_id, tenant_id)
        return self._insert(Action.DELETE, index, document_id, tenant, None)

    def index_many(
        self,
        index: str,
        documents_by_id: Iterable[tuple[str, Mapping[str, Any]]],
        *,
        tenant_id: object = None,
    ) -> list[int]:
        """`index` for many documents, at a fraction of the cost a row. Returns the ids of the rows, in order.

        All documents are checked before the first is stored. Raises `InvalidDocument` or `InvalidName`, which name
        the document.
        """
        if not self._settings.enabled:
            return []
        documents.check_index_name(index)
        entities = self._registry.of_index(index) if self._registry else []
        tenants = {entity: _tenant_of(entity, tenant_id) for entity in (*entities, None)}
        action = Action.REFRESH.value if entities else Action.INDEX.value
        limit, created_at = self._settings.max_document_bytes, now_ms()
        ready: list[Row] = []
        contents: list[str] = []
        for document_id, document in documents_by_id:
            documents.check_document_id(document_id)
            entity, size = _owner(entities, document_id), 0
            if entity is None:
                try:
                    content = documents.serialise(document, max_bytes=limit)
                except InvalidDocument as error:
                    raise type(error)(f"{index}/{shortened(document_id)}: {error}") from None
                contents.append(content.decode())
                size = len(content)
            name = None if entity is None else entity.name
            ready.append((action, index, document_id, tenants[entity], name, size, created_at))
        if not ready:
            return []
        self._session.flush()
        return self._store(ready, contents)

    def refresh(self, entity: object, key: object = None, *, tenant_id: object = None) -> list[int]:
        """Have the document of a row made anew of what the database says. Returns the ids of the outbox rows.

        `refresh(contact)`: the documents of a mapped object, one for each entity that it is registered as, where the
        database says that they are; and where the object says so, if it was loaded before they moved. Or
        `refresh("contacts", 7)`: by the name of the entity and the primary key (a tuple if it is composite; the value
        of another column, if the entity is registered with `id`), with the tenant where that is part of the document's
        place. Raises `InvalidName`, and `ConfigurationError` for
        what is not registered.
        """
        if not self._settings.enabled:
            return []
        if self._registry is None:
            raise ConfigurationError("refresh needs to know the entities: OutboxRepository(session, registry)")
        self._session.flush()
        if isinstance(entity, str):
            named = self._registry[entity]
            identity = key if isinstance(key, tuple) else (key,)
            if key is None or len(identity) != len(named.id_key):
                raise InvalidName(
                    f"entity {named.name!r} has the {named.id_said} {', '.join(named.id_key)}; pass all of it"
                )
            try:
                places = [(named, named.place_of(identity, _tenant_of(named, tenant_id)))]
            except InvalidName:
                raise
            except (TypeError, ValueError) as error:  # of what makes text of a value
                raise InvalidName(
                    f"{shortened(key)} is no {named.id_said} of entity {named.name!r} "
                    f"({', '.join(named.id_key)}): {error}"
                ) from None
        else:
            places = self._places_of_object(entity)
        return self._store(_refresh_rows(places))

    def wait_until_synced(self, timeout: float = 10.0, *, searchable: bool = False) -> dict[int, str]:
        """Wait until the rows that the last transaction of this session wrote are delivered; call it after `commit`.

        Captured rows are among them, and those of triggers, if the session is captured. Returns what became of each
        row, by its id, e.g. `applied` or `superseded`.
        With `searchable` the indexes are refreshed then, so that a search finds the documents.
        Raises `SyncFailed` when a row is dead, or the transaction is not committed; `SyncTimeout` after `timeout`
        seconds; with `searchable` also `ConfigurationError` and `DestinationError`.
        """
        return sync.wait_until_synced(self._session, timeout, searchable=searchable)

    def _entity_of(self, index: str, document_id: str) -> Entity | None:
        return _owner(self._registry.of_index(index), document_id) if self._registry else None

    def _entities_of(self, instance: object) -> list[Entity]:
        assert self._registry is not None
        state = inspect(instance, raiseerr=False)
        found = [each for each in self._registry if state is not None and each.has(getattr(state, "mapper", None))]
        if not found:
            raise ConfigurationError(f"{shortened(instance)} is of no registered entity; registry.add() its model")
        return found

    def _places_of_object(self, instance: object) -> list[Place]:
        places: list[Place] = []
        refused: list[InvalidName] = []
        for entity in self._entities_of(instance):
            places.append((entity, entity.key_of_object(instance)))
            identity = tuple(getattr(instance, name) for name in entity.key)
            places += places_of(self._session, entity, [identity], refused)
        if refused:
            raise refused[0]
        return list(dict.fromkeys(places))

    def _refresh(self, entity: Entity, index: str, document_id: str, tenant_id: object) -> int:
        self._session.flush()
        tenant = _tenant_of(entity, tenant_id)
        return self._store([(Action.REFRESH.value, index, document_id, tenant, entity.name, 0, now_ms())])[0]

    def _insert(
        self, action: Action, index: str, document_id: str, tenant_id: str | None, content: bytes | None
    ) -> int:
        self._session.flush()
        text, size = (None, 0) if content is None else (content.decode(), len(content))
        row = (action.value, index, document_id, tenant_id, None, size, now_ms())
        return self._store([row], [] if text is None else [text])[0]

    def _store(self, rows: Sequence[Row], contents: Sequence[str] = ()) -> list[int]:
        session = self._session
        journal = journal_of(session)
        ids = journal.insert(rows, contents)
        note_rows_of_application(session, journal, rows)
        _have_it_committed(session)
        return list(ids)


def _have_it_committed(session: Session) -> None:
    """zope.sqlalchemy rolls back a transaction that it has seen no write in, and rows of the outbox pass it by."""
    zope = sys.modules.get("zope.sqlalchemy.datamanager")
    if zope and session in zope._SESSION_STATE:  # else it would have a session that is none of its own join
        zope.mark_changed(session)


def _refresh_rows(places: Iterable[Place]) -> list[Row]:
    """A `refresh` row for each place of an entity's document."""
    at = now_ms()
    return [(Action.REFRESH.value, key[0], key[1], key[2], entity.name, 0, at) for entity, key in places]


def _owner(entities: Sequence[Entity], document_id: str) -> Entity | None:
    """The entity of an index that a document belongs to; None if the index has none. Raises `InvalidName`."""
    for entity in entities:
        if entity.identity_of(document_id) is not None:
            return entity
    if not entities:
        return None
    said = (
        f"entity {each.name!r} ({each.id_said} {', '.join(each.id_key)}, tenancy {str(each.tenancy)!r})"
        for each in entities
    )
    raise InvalidName(
        f"document id {shortened(document_id)} is none of {' or '.join(said)}; use refresh(), which makes it"
    )


def _checked(index: str, document_id: str, tenant_id: object) -> str | None:
    """The tenant as text. Raises `InvalidName` for what is wrong with any of the three."""
    documents.check_index_name(index)
    documents.check_document_id(document_id)
    return _tenant_of(None, tenant_id)


def _tenant_of(entity: Entity | None, tenant_id: object) -> str | None:
    """A tenant as text, as the entity's own column holds it where there is one."""
    if tenant_id is None:
        return None
    text = documents.tenant_text(tenant_id)
    return (entity and entity.tenant_meant(tenant_id)) or text
