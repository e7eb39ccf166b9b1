"""Outbox rows on their way into the table: inserted through the driver, and remembered as long as their transaction.

Through SQLAlchemy each statement would cost twice as much, and this is the application's own time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import Connection, Dialect, Insert, Table
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from outbox.errors import ConfigurationError, DatabaseUnavailable, SchemaError
from outbox.store import models

COLUMNS: Final = (
    "action", "index_name", "document_id", "tenant_id", "entity", "document_bytes", "created_at",
)  # fmt: skip
"""What a row is made of, in this order."""

Row = tuple[str, str, str, str | None, str | None, int, int]

T = TypeVar("T")

_BIND: Final = {"clause": models.events}
_BEGUN: Final = "outbox.begun"
_NOTHING_BEGUN: Final = (None, None)
_OPEN: Final = "outbox.open"
_WRITTEN: Final = "outbox.written"


class Journal:
    """What a transaction of a session has put into the outbox.

    `written`: first id, number and `created_at` of rows in a sequence. Rows of a savepoint that was rolled back are
    still listed; their ids are issued again, so `created_at` tells whose a row is. None: all of them are ours.
    `noted`: what is noted already, for each savepoint: the notes of one that was rolled back are gone.
    """

    __slots__ = ("_info", "connection", "driver", "noted", "root", "within", "written")

    def __init__(self, session: Session, connection: Connection) -> None:
        self._info = session.info
        self.connection = connection
        self.root: Any = connection.get_transaction()
        self.driver: Any = connection.connection.dbapi_connection
        self.within: Any = None  # the transaction of the session that is known to be on this connection
        self.written: list[tuple[int, int, int | None]] = []
        self.noted: dict[Any, set[Any]] = {}

    def fresh(self, wanted: Iterable[T]) -> list[T]:
        """What is not noted yet, by the transaction or by the open savepoint; it is now.

        A savepoint has its own notes: if it is rolled back, its rows are gone, and so must its notes be. Asked of the
        connection, so that savepoints are known whoever set them.
        """
        noted, root = self.noted, self.root
        scope = self.connection.get_nested_transaction() or root
        here = noted.get(scope)
        if here is None:
            here = noted[scope] = set()
        fresh = [each for each in wanted if each not in here]
        if scope is not root and (outside := noted.get(root)):
            fresh = [each for each in fresh if each not in outside]
        here.update(fresh)
        return fresh

    def add(self, first: int, number: int, created_at: int | None) -> None:
        """Remember rows that were written."""
        self.written.append((first, number, created_at))
        self._info[_WRITTEN] = self


def journal_of(session: Session) -> Journal:
    """The journal of the session's current transaction, with its connection to the outbox tables."""
    info = session.info
    within = session.get_nested_transaction() or session.get_transaction()
    journal: Journal | None = info.get(_OPEN)
    if journal and journal.within is within and journal.connection.get_transaction() is journal.root:
        return journal
    transaction, connection = info.get(_BEGUN, _NOTHING_BEGUN)
    if not connection or transaction is not within or connection.engine is not bind_of(session).engine:
        connection = session.connection(bind_arguments=_BIND)
        within = session.get_nested_transaction() or session.get_transaction()  # it may have begun just now
    return journal_on(session, within, connection)


def journal_on(session: Session, transaction: Any, connection: Connection) -> Journal:
    """The same, of a transaction that the session has begun on this connection to the outbox tables."""
    journal: Journal | None = session.info.get(_OPEN)
    if journal is None or journal.root is not connection.get_transaction():
        journal = session.info[_OPEN] = Journal(session, connection)
    journal.within = transaction
    return journal


def begun(session: Session, transaction: Any, connection: Connection) -> None:
    """Remember what the session has begun: to ask it for its connection costs half as much as an INSERT."""
    session.info[_BEGUN] = (transaction, connection)


def last_journal(session: Session) -> Journal | None:
    """That of the last transaction of the session that has put something into the outbox."""
    return session.info.get(_WRITTEN)


def bind_of(session: Session) -> Any:
    """The engine or connection that the outbox tables of a session are behind."""
    return session.get_bind(clause=models.events)


def insert(journal: Journal, row: Row, content: str | None = None) -> int:
    """Insert a row, and its document if it has one. Returns its id."""
    statements, cursor = _statements(journal.connection.dialect), journal.driver.cursor()
    try:
        cursor.execute(statements.event, row)
        if not getattr(journal.driver, "in_transaction", True) and not _is_shared(journal.connection):
            raise ConfigurationError(
                "the session is in AUTOCOMMIT: each statement is committed by itself, so that a change and its outbox "
                "row are not written together; use a session with transactions"
            )
        event_id: int = cursor.lastrowid
        if content is not None:
            cursor.execute(statements.document, (event_id, content))
    except statements.driver_error as error:
        raise _explained(error) from error
    finally:
        cursor.close()  # left to the garbage collector, it may reset its statement while another thread is using that
    journal.add(event_id, 1, row[-1])
    return event_id


def insert_many(journal: Journal, rows: Sequence[Row], contents: Sequence[str] = ()) -> Sequence[int]:
    """Insert rows of one `created_at`, and their documents if they have any. Returns their ids, in order."""
    if not rows:
        return []
    # The first insert takes the write lock, so the ids after its own are ours to give.
    first = insert(journal, rows[0], contents[0] if contents else None)
    if len(rows) > 1:
        statements, cursor = _statements(journal.connection.dialect), journal.driver.cursor()
        try:
            cursor.executemany(statements.event_with_id, [(at, *row) for at, row in enumerate(rows[1:], first + 1)])
            if contents:
                cursor.executemany(statements.document, list(enumerate(contents[1:], first + 1)))
        except statements.driver_error as error:
            raise _explained(error) from error
        finally:
            cursor.close()
        journal.add(first + 1, len(rows) - 1, rows[0][-1])
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


def _is_shared(connection: Connection) -> bool:
    """Whether everybody has the same connection, as tests in memory do: then the store has set it to AUTOCOMMIT."""
    return isinstance(connection.engine.pool, StaticPool)


def _explained(error: Exception) -> DatabaseUnavailable | SchemaError:
    if "no such table" in str(error):
        return SchemaError(f"the database has no outbox tables ({error}): run 'outbox-relay migrate'")
    return DatabaseUnavailable(f"the outbox row cannot be stored: {error}; roll the transaction back")
