"""Outbox rows on their way into the table: inserted through the driver, and remembered as long as their transaction.

Through SQLAlchemy each statement would cost twice as much, and this is the application's own time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Dialect, Insert, Table
from sqlalchemy.orm import Session

from outbox import models
from outbox.errors import DatabaseUnavailable, SchemaError

COLUMNS: Final = (
    "action", "index_name", "document_id", "tenant_id", "entity", "document_bytes", "created_at",
)  # fmt: skip
"""What a row is made of, in this order."""

Row = tuple[str, str, str, str | None, str | None, int, int]

_BIND: Final = {"clause": models.events}
_JOURNAL: Final = "outbox.journal"


class Journal:
    """What the current transaction of a session has put into the outbox, or the last one that did.

    `written`: first id, number and `created_at` of rows in a sequence. Rows of a savepoint that was rolled back are
    still listed; their ids are issued again, so `created_at` tells whose a row is. None: all of them are ours.
    `noted`: index and `_id` of the refresh rows, for each savepoint: those of one that was rolled back are gone.
    """

    __slots__ = ("noted", "root", "written")

    def __init__(self, root: Any) -> None:
        self.root = root
        self.written: list[tuple[int, int, int | None]] = []
        self.noted: dict[Any, set[tuple[str, str]]] = {}


def connection_of(session: Session) -> Connection:
    """The connection of the session's transaction to the outbox tables."""
    return session.connection(bind_arguments=_BIND)


def bind_of(session: Session) -> Any:
    """The engine or connection that the outbox tables of a session are behind."""
    return session.get_bind(clause=models.events)


def journal_of(session: Session, connection: Connection) -> Journal:
    """What the session's current transaction has put into the outbox so far."""
    root = connection.get_transaction()
    found: Journal | None = session.info.get(_JOURNAL)
    if found is None or found.root is not root:
        session.info[_JOURNAL] = found = Journal(root)
    return found


def last_journal(session: Session) -> Journal | None:
    """What the last transaction of the session that put something into the outbox has put there."""
    return session.info.get(_JOURNAL)


def insert(session: Session, row: Row, content: str | None = None) -> int:
    """Insert a row, and its document if it has one. Returns its id."""
    return _insert(session, connection_of(session), row, content)


def _insert(session: Session, connection: Connection, row: Row, content: str | None) -> int:
    statements = _statements(connection.dialect)
    cursor = connection.connection.cursor()
    try:
        cursor.execute(statements.event, row)
        event_id: int = cursor.lastrowid
        if content is not None:
            cursor.execute(statements.document, (event_id, content))
    except statements.driver_error as error:
        raise _explained(error) from error
    journal_of(session, connection).written.append((event_id, 1, row[-1]))
    return event_id


def insert_many(
    session: Session, rows: Sequence[Row], contents: Sequence[str] = (), *, connection: Connection | None = None
) -> Sequence[int]:
    """Insert rows of one `created_at`, and their documents if they have any. Returns their ids, in order.

    `connection`: that of `connection_of`, where the caller has it already.
    """
    if not rows:
        return []
    connection = connection or connection_of(session)
    # The first insert takes the write lock, so the ids after its own are ours to give.
    first = _insert(session, connection, rows[0], contents[0] if contents else None)
    if len(rows) > 1:
        statements = _statements(connection.dialect)
        cursor = connection.connection.cursor()
        try:
            cursor.executemany(statements.event_with_id, [(at, *row) for at, row in enumerate(rows[1:], first + 1)])
            if contents:
                cursor.executemany(statements.document, list(enumerate(contents[1:], first + 1)))
        except statements.driver_error as error:
            raise _explained(error) from error
        journal_of(session, connection).written.append((first + 1, len(rows) - 1, rows[0][-1]))
    return range(first, first + len(rows))


class _Statements(NamedTuple):
    """The text of each INSERT, with positional parameters, and what the driver raises."""

    driver_error: type[Exception]
    event: str
    event_with_id: str
    document: str


@lru_cache(maxsize=8)
def _statements(dialect: Dialect) -> _Statements:
    def insert_into(table: Table, columns: tuple[str, ...]) -> str:
        return str(Insert(table).values(dict.fromkeys(columns)).compile(dialect=dialect, column_keys=columns))

    return _Statements(
        dialect.loaded_dbapi.Error,
        insert_into(models.events, COLUMNS),
        insert_into(models.events, ("id", *COLUMNS)),
        insert_into(models.documents, ("event_id", "document")),
    )


def _explained(error: Exception) -> DatabaseUnavailable | SchemaError:
    if "no such table" in str(error):
        return SchemaError(f"the database has no outbox tables ({error}): run 'outbox-relay migrate'")
    return DatabaseUnavailable(f"the outbox row cannot be stored: {error}; roll the transaction back")
