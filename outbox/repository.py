"""The write side: outbox rows in the application's own transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Dialect, Insert, Table
from sqlalchemy.orm import Session

from outbox import documents, models
from outbox.errors import DatabaseUnavailable, InvalidDocument, InvalidInput, SchemaError, shortened
from outbox.models import Action, now_ms
from outbox.settings import WriteSettings, write_settings

_EVENT_COLUMNS = ("action", "index_name", "document_id", "tenant_id", "document_bytes", "created_at")
_BIND = {"clause": models.events}


class OutboxRepository:
    """Puts changes of search documents into the outbox, in the transaction of `session`.

    Each call flushes the session first, so that a row's id is issued after the entity is written, then inserts.
    The rows commit and roll back with the session's transaction or savepoint. With an `AsyncSession`, call it
    inside `await async_session.run_sync(lambda session: ...)`.

    Every method checks its input before anything is stored; after an `InvalidInput` the session is still usable.
    With `OUTBOX_ENABLED=false` the methods check nothing, store nothing and return None or an empty list.
    """

    def __init__(self, session: Session, *, settings: WriteSettings | None = None) -> None:
        if not callable(getattr(session, "flush", None)) or hasattr(session, "sync_session"):
            raise InvalidInput(
                f"OutboxRepository needs a SQLAlchemy Session, not {type(session).__name__}; for an AsyncSession: "
                "await session.run_sync(lambda session: OutboxRepository(session).index(...))"
            )
        self._session = session
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
        content = documents.serialise(changes, max_bytes=self._settings.max_document_bytes)
        if content == "{}":
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
        limit = self._settings.max_document_bytes
        contents = []
        for document_id, document in documents_by_id:
            documents.check_document_id(document_id)
            try:
                contents.append((document_id, documents.serialise(document, max_bytes=limit)))
            except InvalidDocument as error:
                raise type(error)(f"{index}/{shortened(document_id)}: {error}") from None
        if not contents:
            return []
        (first_id, first), *others = contents
        # The first insert takes the write lock, so the ids after its own are ours to give.
        event_id = self._insert(Action.INDEX, index, first_id, tenant_id, first)
        ids = range(event_id + 1, event_id + 1 + len(others))
        created_at = now_ms()
        rows = [
            (id_, Action.INDEX.value, index, document_id, tenant_id, len(content.encode()), created_at)
            for id_, (document_id, content) in zip(ids, others, strict=True)
        ]
        contents_by_id = [(id_, content) for id_, (_, content) in zip(ids, others, strict=True)]
        cursor, statements = self._cursor()
        try:
            cursor.executemany(statements.event_with_id, rows)
            cursor.executemany(statements.document, contents_by_id)
        except statements.driver_error as error:
            raise _explained(error) from error
        return [event_id, *ids]

    def _insert(self, action: Action, index: str, document_id: str, tenant_id: str | None, content: str | None) -> int:
        self._session.flush()
        cursor, statements = self._cursor()
        size = 0 if content is None else len(content.encode())
        try:
            cursor.execute(statements.event, (action.value, index, document_id, tenant_id, size, now_ms()))
            event_id: int = cursor.lastrowid
            if content is not None:
                cursor.execute(statements.document, (event_id, content))
        except statements.driver_error as error:
            raise _explained(error) from error
        return event_id

    def _cursor(self) -> tuple[Any, _Statements]:
        """A cursor of the driver in the session's transaction, and what to execute with it.

        Through SQLAlchemy each statement would cost twice as much, and this is the application's own time.
        """
        connection = self._session.connection(bind_arguments=_BIND)
        return connection.connection.cursor(), _statements(connection.dialect)


class _Statements(NamedTuple):
    """The text of each INSERT, with positional parameters, and what the driver raises."""

    driver_error: type[Exception]

    event: str
    event_with_id: str
    document: str


@lru_cache(maxsize=8)
def _statements(dialect: Dialect) -> _Statements:
    def insert(table: Table, columns: tuple[str, ...]) -> str:
        return str(Insert(table).values(dict.fromkeys(columns)).compile(dialect=dialect, column_keys=columns))

    return _Statements(
        dialect.loaded_dbapi.Error,
        insert(models.events, _EVENT_COLUMNS),
        insert(models.events, ("id", *_EVENT_COLUMNS)),
        insert(models.documents, ("event_id", "document")),
    )


def _explained(error: Exception) -> DatabaseUnavailable | SchemaError:
    if "no such table" in str(error):
        return SchemaError(f"the database has no outbox tables ({error}): run 'outbox-relay migrate'")
    return DatabaseUnavailable(f"the outbox row cannot be stored: {error}; roll the transaction back")


def _check_names(index: str, document_id: str, tenant_id: str | None) -> None:
    documents.check_index_name(index)
    documents.check_document_id(document_id)
    documents.check_tenant_id(tenant_id)
