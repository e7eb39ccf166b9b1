"""The write side: outbox rows in the application's own transaction."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Engine, inspect, select
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from outbox import documents
from outbox.entities.entity import Entity
from outbox.entities.keys import DocumentKey
from outbox.entities.registry import EntityRegistry
from outbox.errors import (
    ConfigurationError,
    InvalidDocument,
    InvalidInput,
    InvalidName,
    SyncFailed,
    SyncTimeout,
    shortened,
)
from outbox.settings import WriteSettings, load, write_settings
from outbox.store import models
from outbox.store.models import Action, State, now_ms
from outbox.write import journal as rows

FIRST_PAUSE_S: Final = 0.002
LONGEST_PAUSE_S: Final = 0.05


class OutboxRepository:
    """Puts changes of search documents into the outbox, in the transaction of `session`.

    Each call flushes the session first, so that a row's id is issued after the entity is written, then inserts.
    The rows commit and roll back with the session's transaction or savepoint. With an `AsyncSession`, call it
    inside `await async_session.run_sync(lambda session: ...)`.

    With a registry, what is said of a document of a registered entity becomes a `refresh` row: the relay sends what
    the database says when it gets there, and the document that was passed is not looked at.

    Every method checks its input before anything is stored; after an `InvalidInput` the session is still usable.
    `DatabaseUnavailable` (locked, full) and `SchemaError` (no outbox tables) come where the rows are stored: roll the
    transaction back then.
    With `OUTBOX_ENABLED=false` the methods check nothing, store nothing and return None or an empty list.
    """

    def __init__(
        self, session: Session, registry: EntityRegistry | None = None, *, settings: WriteSettings | None = None
    ) -> None:
        if not callable(getattr(session, "flush", None)) or hasattr(session, "sync_session"):
            raise InvalidInput(
                f"OutboxRepository needs a SQLAlchemy Session, not {type(session).__name__}; for an AsyncSession: "
                "await session.run_sync(lambda session: OutboxRepository(session).index(...))"
            )
        self._session, self._registry = session, registry
        self._settings = settings or write_settings()

    def index(
        self, index: str, document_id: str, document: Mapping[str, Any], *, tenant_id: str | None = None
    ) -> int | None:
        """Make `document` the whole content of `document_id` in `index`. Returns the id of the outbox row.

        Raises `InvalidDocument` or `InvalidName`, see `outbox.documents`.
        """
        if not self._settings.enabled:
            return None
        _check_names(index, document_id, tenant_id)
        if self._registry and (entity := self._entity_of(index)):
            return self._refresh(entity, index, document_id, tenant_id)
        content = documents.serialise(document, max_bytes=self._settings.max_document_bytes)
        return self._insert(Action.INDEX, index, document_id, tenant_id, content)

    def update(
        self, index: str, document_id: str, changes: Mapping[str, Any], *, tenant_id: str | None = None
    ) -> int | None:
        """Merge `changes` into `document_id` in `index`. Returns the id of the outbox row.

        Objects are merged key by key at any depth; arrays, scalars and None replace what was there, as
        Elasticsearch's own `_update` does. A document that is not there makes the row dead (`document_missing`).
        Raises `InvalidDocument` (also for no changes at all) or `InvalidName`.
        """
        if not self._settings.enabled:
            return None
        _check_names(index, document_id, tenant_id)
        if self._registry and (entity := self._entity_of(index)):
            return self._refresh(entity, index, document_id, tenant_id)
        content = documents.serialise(changes, max_bytes=self._settings.max_document_bytes)
        if content == b"{}":
            raise InvalidDocument(f"the update of {index}/{shortened(document_id)} is empty; name at least one field")
        return self._insert(Action.UPDATE, index, document_id, tenant_id, content)

    def delete(self, index: str, document_id: str, *, tenant_id: str | None = None) -> int | None:
        """Remove `document_id` from `index`; no error if it is not there. Returns the id of the outbox row.

        Raises `InvalidName`.
        """
        if not self._settings.enabled:
            return None
        _check_names(index, document_id, tenant_id)
        return self._insert(Action.DELETE, index, document_id, tenant_id, None)

    def index_many(
        self,
        index: str,
        documents_by_id: Iterable[tuple[str, Mapping[str, Any]]],
        *,
        tenant_id: str | None = None,
    ) -> list[int]:
        """`index` for many documents, at a fraction of the cost a row. Returns the ids of the rows, in order.

        All documents are checked before the first is stored. Raises `InvalidDocument` or `InvalidName`, which name
        the document.
        """
        if not self._settings.enabled:
            return []
        documents.check_index_name(index)
        documents.check_tenant_id(tenant_id)
        entity = self._entity_of(index) if self._registry else None
        name = entity.name if entity else None
        action = Action.REFRESH.value if entity else Action.INDEX.value
        limit, created_at = self._settings.max_document_bytes, now_ms()
        ready: list[rows.Row] = []
        contents: list[str] = []
        for document_id, document in documents_by_id:
            documents.check_document_id(document_id)
            size = 0
            if entity:
                _check_belongs(entity, document_id)
            else:
                try:
                    content = documents.serialise(document, max_bytes=limit)
                except InvalidDocument as error:
                    raise type(error)(f"{index}/{shortened(document_id)}: {error}") from None
                contents.append(content.decode())
                size = len(content)
            ready.append((action, index, document_id, tenant_id, name, size, created_at))
        if not ready:
            return []
        self._session.flush()
        return list(rows.insert_many(rows.journal_of(self._session), ready, contents))

    def refresh(self, entity: object, key: object = None, *, tenant_id: str | None = None) -> list[int]:
        """Have the document of a row made anew of what the database says. Returns the ids of the outbox rows.

        `refresh(contact)`: the documents of a mapped object, one for each entity that it is registered as; or
        `refresh("contacts", 7)`: by the name of the entity and the primary key (a tuple if it is composite), with
        the tenant where that is part of the document's place. Raises `InvalidName`, and `ConfigurationError` for
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
            if key is None or len(identity) != len(named.key):
                raise InvalidName(f"entity {named.name!r} has the primary key {', '.join(named.key)}; pass all of it")
            try:
                places = [(named, named.place_of(identity, tenant_id))]
            except InvalidName:
                raise
            except (TypeError, ValueError) as error:  # of what makes text of a value
                raise InvalidName(
                    f"{shortened(key)} is no primary key of entity {named.name!r} ({', '.join(named.key)}): {error}"
                ) from None
        else:
            places = [(each, each.key_of_object(entity)) for each in self._entities_of(entity)]
        return list(rows.insert_many(rows.journal_of(self._session), refresh_rows(places)))

    def wait_until_synced(self, timeout: float = 10.0, *, searchable: bool = False) -> dict[int, str]:
        """Wait until the rows that the last transaction of this session wrote are delivered; call it after `commit`.

        Captured rows are among them, and those of triggers, if the session is captured. Returns what became of each
        row, by its id, e.g. `applied` or `superseded`.
        With `searchable` the indexes are refreshed then, so that a search finds the documents.
        Raises `SyncFailed` when a row is dead, or the transaction is not committed; `SyncTimeout` after `timeout`
        seconds; with `searchable` also `ConfigurationError` and `DestinationError`.
        """
        journal = rows.last_journal(self._session)
        if self._session.in_transaction() or (journal and journal.root.is_active):
            raise SyncFailed(
                "the transaction is not committed, or the session has begun another one, which keeps the relay from "
                "the write lock; call wait_until_synced() right after session.commit()"
            )
        if journal is None or not journal.written:
            return {}
        outcomes, indexes = _Waiting(self._session, journal).until(time.monotonic() + timeout, timeout)
        if searchable and indexes:
            from outbox import destinations  # not above: the write side loads no search engine's client

            destination = destinations.destination_of(load())
            try:
                for name in sorted(indexes):
                    destination.refresh(name)
            finally:
                destination.close()
        return outcomes

    def _entity_of(self, index: str) -> Entity | None:
        """The registered entity whose documents stand in an index."""
        assert self._registry is not None
        found = self._registry.of_index(index)
        if len(found) > 1:
            raise InvalidInput(
                f"documents of {' and '.join(repr(each.name) for each in found)} stand in the index {index!r}; "
                "say which by refresh()"
            )
        return found[0] if found else None

    def _entities_of(self, instance: object) -> list[Entity]:
        assert self._registry is not None
        state = inspect(instance, raiseerr=False)
        found = [each for each in self._registry if state is not None and each.has(getattr(state, "mapper", None))]
        if not found:
            raise ConfigurationError(f"{shortened(instance)} is of no registered entity; registry.add() its model")
        return found

    def _refresh(self, entity: Entity, index: str, document_id: str, tenant_id: str | None) -> int:
        _check_belongs(entity, document_id)
        self._session.flush()
        return self._store((Action.REFRESH.value, index, document_id, tenant_id, entity.name, 0, now_ms()))

    def _insert(
        self, action: Action, index: str, document_id: str, tenant_id: str | None, content: bytes | None
    ) -> int:
        self._session.flush()
        text, size = (None, 0) if content is None else (content.decode(), len(content))
        return self._store((action.value, index, document_id, tenant_id, None, size, now_ms()), text)

    def _store(self, row: rows.Row, content: str | None = None) -> int:
        return rows.insert(rows.journal_of(self._session), row, content)


def refresh_rows(places: Iterable[tuple[Entity, DocumentKey]]) -> list[rows.Row]:
    """A `refresh` row for each place of an entity's document."""
    at = now_ms()
    return [(Action.REFRESH.value, key[0], key[1], key[2], entity.name, 0, at) for entity, key in places]


class _Waiting:
    """Looks at the rows of a journal, on a connection of its own that takes no write lock."""

    def __init__(self, session: Session, journal: rows.Journal) -> None:
        bind: Engine | Connection = rows.bind_of(session)
        self._engine = bind.engine.execution_options(outbox_begin="DEFERRED")
        self._ranges = [(range(first, first + number), created_at) for first, number, created_at in journal.written]
        self._written = {(at, created_at) for ids, created_at in self._ranges if created_at is not None for at in ids}
        self._by_triggers = [ids for ids, created_at in self._ranges if created_at is None]
        self._number = len({at for ids, _ in self._ranges for at in ids})

    def until(self, deadline: float, timeout: float) -> tuple[dict[int, str], set[str]]:
        """The outcomes of the rows, and the indexes they went to."""
        pause = FIRST_PAUSE_S
        with self._engine.connect() as connection:
            while waiting := self._unfinished(connection):
                if time.monotonic() >= deadline:
                    raise SyncTimeout(
                        f"{len(waiting):,} of {self._number:,} rows are not delivered after {timeout:g} s; is a "
                        "relay running? 'outbox-relay status' says what waits and why"
                    )
                self._sleep(min(pause, max(0.0, deadline - time.monotonic())))
                pause = min(pause * 2, LONGEST_PAUSE_S)
            done = self._look(connection)
        return {row.id: row.outcome for row in done}, {row.index_name for row in done}

    def _unfinished(self, connection: Connection) -> Sequence[Any]:
        rows_ = self._look(connection, models.events.c.state != State.DONE.value)
        dead = [row for row in rows_ if row.state == State.DEAD]
        if dead:
            first = dead[0]
            raise SyncFailed(
                f"{len(dead):,} of {self._number:,} rows are dead, the first is {first.id} of "
                f"{first.index_name}/{shortened(first.document_id)} ({first.error_type}: {first.error}); "
                "see 'outbox-relay dead list'"
            )
        return rows_

    def _look(self, connection: Connection, *conditions: Any) -> Sequence[Any]:
        table = models.events
        first, last = min(ids[0] for ids, _ in self._ranges), max(ids[-1] for ids, _ in self._ranges)
        found = connection.execute(select(table).where(table.c.id.between(first, last), *conditions)).all()
        connection.rollback()  # the next look shall see what was committed meanwhile
        return [row for row in found if (row.id, row.created_at) in self._written or self._is_by_trigger(row.id)]

    def _is_by_trigger(self, event_id: int) -> bool:
        return any(event_id in ids for ids in self._by_triggers)

    def _sleep(self, seconds: float) -> None:
        if self._engine.dialect.is_async:
            import asyncio  # not above: only such applications load it

            await_only(asyncio.sleep(seconds))
        else:
            time.sleep(seconds)


def _check_belongs(entity: Entity, document_id: str) -> None:
    if entity.identity_of(document_id) is None:
        raise InvalidName(
            f"document id {shortened(document_id)} is none of entity {entity.name!r} (primary key "
            f"{', '.join(entity.key)}, tenancy {str(entity.tenancy)!r}); use refresh(), which makes it"
        )


def _check_names(index: str, document_id: str, tenant_id: str | None) -> None:
    documents.check_index_name(index)
    documents.check_document_id(document_id)
    documents.check_tenant_id(tenant_id)
