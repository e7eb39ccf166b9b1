"""The write side: outbox rows in the application's own transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Dialect, Insert, Table
from sqlalchemy.orm import Session

from outbox import documents, models
from outbox.errors import InvalidDocument, InvalidInput, shortened
from outbox.models import Action, now_ms
from outbox.settings import WriteSettings, write_settings

_EVENT_COLUMNS = ("action", "index_name", "document_id", "tenant_id", "document_bytes", "created_at")


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
        if not others:
            return [event_id]
        connection = self._connection()
        created_at = now_ms()
        ids = range(event_id + 1, event_id + 1 + len(others))
        rows = [
            (id_, Action.INDEX.value, index, document_id, tenant_id, len(content.encode()), created_at)
            for id_, (document_id, content) in zip(ids, others, strict=True)
        ]
        statement = _insert_sql(models.events, ("id", *_EVENT_COLUMNS), connection.dialect)
        connection.exec_driver_sql(statement, rows)
        texts = [(id_, content) for id_, (_, content) in zip(ids, others, strict=True)]
        connection.exec_driver_sql(_insert_documents(connection), texts)
        return [event_id, *ids]

    def _insert(self, action: Action, index: str, document_id: str, tenant_id: str | None, content: str | None) -> int:
        self._session.flush()
        connection = self._connection()
        size = 0 if content is None else len(content.encode())
        statement = _insert_sql(models.events, _EVENT_COLUMNS, connection.dialect)
        row = (action.value, index, document_id, tenant_id, size, now_ms())
        event_id: int = connection.exec_driver_sql(statement, row).lastrowid
        if content is not None:
            connection.exec_driver_sql(_insert_documents(connection), (event_id, content))
        return event_id

    def _connection(self) -> Connection:
        return self._session.connection(bind_arguments={"clause": models.events})


def _check_names(index: str, document_id: str, tenant_id: str | None) -> None:
    documents.check_index_name(index)
    documents.check_document_id(document_id)
    documents.check_tenant_id(tenant_id)


def _insert_documents(connection: Connection) -> str:
    return _insert_sql(models.documents, ("event_id", "document"), connection.dialect)


@lru_cache(maxsize=32)
def _insert_sql(table: Table, columns: tuple[str, ...], dialect: Dialect) -> str:
    """The text of an INSERT with positional parameters: compiling and binding it anew would double its cost."""
    return str(Insert(table).values(dict.fromkeys(columns)).compile(dialect=dialect, column_keys=columns))
