"""What a transaction of a session has put into the outbox, remembered as long as the transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Insert, insert
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session

from outbox.errors import ConfigurationError
from outbox.store import models
from outbox.store.dialect import Row
from outbox.store.models import EPOCH_STEP
from outbox.store.store import dialect_of, is_supported

T = TypeVar("T")

_BIND: Final[dict[str, Any]] = {"clause": insert(models.events)}  # a session may read from another database
_BEGUN: Final = "outbox.begun"
_NOTHING_BEGUN: Final = (None, None)
_OPEN: Final = "outbox.open"
_WRITTEN: Final = "outbox.written"


class Journal:
    """What a transaction of a session has put into the outbox.

    `written`: ascending ids of rows, and their `created_at`. Rows of a savepoint that was rolled back are still listed;
    their ids may be issued again, so `created_at` tells whose a row is. None: all of them are ours.
    `since`: the lowest of these ids.
    `noted`: what is noted already, for each savepoint that is open: the notes of one that was rolled back are gone.
    `overruled`: how often the notes of a link have come to say nothing any more: they hold that number.
    `made_of`: what has changed and documents are made of, by what leads to these; for `note_late_dependents`.
    """

    __slots__ = ("_info", "connection", "made_of", "noted", "of", "overruled", "root", "since", "within", "written")

    def __init__(self, session: Session, connection: Connection) -> None:
        self._info = session.info
        self.connection = connection
        self.root: Any = connection.get_transaction()
        self.of: Any = session.get_transaction()  # it may begin and end several times on a connection that it was given
        self.within: Any = None  # the transaction of the session that is known to be on this connection
        self.written: list[tuple[Sequence[int], int | None]] = []
        self.since = EPOCH_STEP  # above all ids
        self.noted: dict[Any, set[Any]] = {}
        self.overruled: dict[Any, int] = {}
        self.made_of: dict[Any, set[Any]] = {}

    def fresh(self, wanted: Iterable[T]) -> list[T]:
        """What is not noted yet, by the transaction or by the open savepoint; it is now.

        A savepoint has its own notes: if it is rolled back, its rows are gone, and so must its notes be. Asked of the
        connection, so that savepoints are known whichever way they were set.
        """
        noted, root = self.noted, self.root
        scope = self.connection.get_nested_transaction() or root
        here = noted.get(scope)
        if here is None:
            for ended in [each for each in noted if not each.is_active]:
                del noted[ended]
            here = noted[scope] = set()
        fresh = [each for each in wanted if each not in here]
        if scope is not root and (outside := noted.get(root)):
            fresh = [each for each in fresh if each not in outside]
        here.update(fresh)
        return fresh

    def forget(self, notes: Iterable[Any]) -> None:
        """Let them be noted anew: they mean something else now."""
        for note in notes:
            for noted in self.noted.values():
                noted.discard(note)

    def insert(self, rows: Sequence[Row], contents: Sequence[str] = ()) -> Sequence[int]:
        """Insert rows of one `created_at`, and their documents if they have any. Returns their ids, in order.

        Raises `DatabaseUnavailable` or `SchemaError`.
        """
        ids = dialect_of(self.connection).insert(self.connection, rows, contents)
        if ids:
            self.add(ids, rows[0][-1])
        return ids

    def insert_selected(self, statement: Insert, parameters: Mapping[str, Any], created_at: int) -> None:
        """Insert the rows that a SELECT finds, all of this `created_at`."""
        if ids := dialect_of(self.connection).insert_selected(self.connection, statement, parameters):
            self.add(ids, created_at)

    def add(self, ids: Sequence[int], created_at: int | None) -> None:
        """Remember rows that were written."""
        self.written.append((ids, created_at))
        self.since = min(self.since, ids[0])
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
        bind_of(session)  # its error says what to do
        connection = session.connection(bind_arguments=_BIND)
        within = session.get_nested_transaction() or session.get_transaction()  # it may have begun just now
    return journal_on(session, within, connection)


def journal_on(session: Session, transaction: Any, connection: Connection) -> Journal:
    """The same, of a transaction that the session has begun on this connection to the outbox tables."""
    journal: Journal | None = session.info.get(_OPEN)
    if not journal or journal.root is not connection.get_transaction() or journal.of is not session.get_transaction():
        journal = session.info[_OPEN] = Journal(session, connection)
    journal.within = transaction
    return journal


def lock(session: Session) -> Connection:
    """Take the write lock of the outbox's database, where it has one: what is read from here on stays true.

    Returns the connection to it."""
    connection = journal_of(session).connection
    if is_supported(connection):
        dialect_of(connection).lock(connection)
    return connection


def begun(session: Session, transaction: Any, connection: Connection) -> None:
    """Remember what the session has begun: to ask it for its connection costs half as much as an INSERT."""
    session.info[_BEGUN] = (transaction, connection)


def connection_begun(session: Session) -> Connection | None:
    """The connection on which the session has begun the transaction that goes on, to whichever database, if it has."""
    _, connection = session.info.get(_BEGUN, _NOTHING_BEGUN)
    return connection if connection is not None and not connection.closed and connection.in_transaction() else None


def leads_to_outbox(session: Session, connection: Connection) -> bool:
    """Whether the outbox tables of a session are in the database of this connection."""
    try:
        return bool(connection.engine is bind_of(session).engine)
    except ConfigurationError:
        return False  # the first change of an entity says so


def open_journal(session: Session) -> Journal | None:
    """That of the current transaction, if it has put something into the outbox, or looked for what to put there."""
    journal: Journal | None = session.info.get(_OPEN)
    if journal is None or journal.of is not session.get_transaction():
        return None
    return journal if journal.connection.get_transaction() is journal.root else None


def last_journal(session: Session) -> Journal | None:
    """That of the last transaction of the session that has put something into the outbox."""
    return session.info.get(_WRITTEN)


def bind_of(session: Session) -> Any:
    """The engine or connection that the outbox tables of a session are behind. Raises `ConfigurationError`."""
    try:
        return session.get_bind(**_BIND)
    except UnboundExecutionError:
        raise ConfigurationError(
            "the session does not know in which database the outbox tables are; bind them to that of the entities: "
            "sessionmaker(binds={Base: engine, **dict.fromkeys(outbox.models.metadata.sorted_tables, engine)})"
        ) from None
