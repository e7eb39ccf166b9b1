"""The file of the embedded destination: its tables, and one connection for all threads of a process."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from outbox.errors import DestinationError, DestinationUnanswered, IndexMissing
from outbox.files import beside, make, reason_not_to_open

APPLICATION_ID = 0x6F627872  # "obxr": marks the file as one of ours, so that no other database is taken for it

MAKES_IT = "the first row makes it, or 'outbox-relay reindex --all'"

_TABLES = (
    """
    CREATE TABLE indexes (
        name TEXT PRIMARY KEY,
        mappings TEXT,                  -- JSON, as registered when the index was made
        settings TEXT,
        created_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
    )""",
    """
    CREATE TABLE aliases (
        name TEXT PRIMARY KEY,          -- what readers ask for
        index_name TEXT NOT NULL REFERENCES indexes (name)
    )""",
    """
    CREATE TABLE documents (
        number INTEGER PRIMARY KEY,
        index_name TEXT NOT NULL,
        document_id TEXT NOT NULL,
        version INTEGER NOT NULL,       -- only a higher one replaces it, or its tombstone
        deleted INTEGER NOT NULL,       -- 1: a tombstone, kept for good
        source TEXT,                    -- JSON as it came; NULL in a tombstone
        UNIQUE (index_name, document_id)
    )""",
    """
    CREATE TABLE words_due (            -- what changed since its words were taken up
        document INTEGER PRIMARY KEY    -- documents.number
    )""",
    """
    CREATE VIRTUAL TABLE words USING fts5 (text, tokenize = 'unicode61 remove_diacritics 2', prefix = '2 3')""",
    """
    CREATE VIRTUAL TABLE vocabulary USING fts5vocab (words, 'row')""",
)

_ONE_OF_EACH = """
SELECT (SELECT count(*) FROM indexes), (SELECT count(*) FROM aliases), (SELECT max(number) FROM documents),
    (SELECT max(document) FROM words_due), (SELECT max(rowid) FROM words), (SELECT term FROM vocabulary LIMIT 1)
"""

_STEP_S = 0.005
"""Pause between two looks whether another process has made the file."""


class FileMissing(Exception):
    """There is no file yet, or an empty one, and this call must not make it."""


class File:
    """Transactions on the file at `path`. `timeout` is how many seconds one waits for other threads and processes."""

    # One connection under a lock, not one a thread: SQLite has one writer anyway, and threads that wait for a lock
    # get it the moment it is free, while connections that find the file locked only look again now and then.
    def __init__(self, path: Path, timeout: float) -> None:
        self.path, self._timeout = path, timeout
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None

    @contextmanager
    def writing(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction that holds the write lock from its beginning: kept as a whole, or not at all."""
        with self._connected(create) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One state of the file, whatever others write meanwhile."""
        with self._connected(create=False) as connection:
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")

    @contextmanager
    def _connected(self, create: bool) -> Iterator[sqlite3.Connection]:
        deadline = time.monotonic() + self._timeout
        if not self._lock.acquire(timeout=self._timeout):
            raise TimeoutError("other threads of this process keep the file busy")
        try:
            # A file that was replaced or removed must not be written to any longer.
            if self._connection is None or self._identity != self._found():
                self._disconnect()
                self._connection = self._connect(create, deadline)
            left_ms = max(0, int((deadline - time.monotonic()) * 1000))
            self._connection.execute(f"PRAGMA busy_timeout = {left_ms}")  # for other processes
            try:
                yield self._connection
            except BaseException:
                self._roll_back(self._connection)
                raise
        finally:
            self._lock.release()

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._disconnect()  # the next call starts with a new connection

    def _found(self) -> tuple[int, int] | None:
        """Which file the path leads to; None: there is none."""
        try:
            found = os.stat(self.path)  # noqa: PTH116  (a call for every batch)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _connect(self, create: bool, deadline: float) -> sqlite3.Connection:
        if not create and self._found() is None:
            raise FileMissing
        if why := reason_not_to_open(self.path):
            raise PermissionError(why)
        if create:
            self._make(deadline)
        self._identity = self._found()  # before it is opened: one that comes in its place meanwhile is another
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode=rw",  # never makes one
            uri=True,
            timeout=self._timeout,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=64,
        )
        try:
            _prepare(connection, create=create)
        except BaseException:
            connection.close()
            raise
        return connection

    def _make(self, deadline: float) -> None:
        """An empty file, unless there is one.

        The log of a removed file and its index would spoil it: while an idle process has them open, SQLite takes them
        for those of the new file.
        """
        path = self.path.resolve()
        with _alone_in(path.parent, deadline) as alone:
            if alone and self._found() is None:
                for suffix in ("-wal", "-shm"):
                    beside(path, suffix).unlink(missing_ok=True)
            make(self.path)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._identity = None

    def exists(self) -> bool:
        return self._found() is not None

    def close(self) -> None:
        with self._lock:
            self._disconnect()

    @contextmanager
    def failing_as(self, what: str) -> Iterator[None]:
        """Raise a failure as `DestinationError`, `what` and the file in front.

        It is `IndexMissing` where there is no file, and `DestinationUnanswered` where others keep it busy.
        """
        try:
            yield
        except FileMissing:
            raise IndexMissing(f"{what}: file {self.path} does not exist; {MAKES_IT}") from None
        except (sqlite3.Error, OSError) as error:
            busy = isinstance(error, TimeoutError) or getattr(error, "sqlite_errorname", "") == "SQLITE_BUSY"
            kind = DestinationUnanswered if busy else DestinationError
            raise kind(f"{what}: file {self.path}: {describe(error)}") from error


@contextmanager
def _alone_in(directory: Path, deadline: float) -> Iterator[bool]:
    """Nobody else makes a file in this directory meanwhile; False where it cannot be opened, of which SQLite says why.

    The lock is on the directory itself: no file is left behind, and it ends with the process.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"other processes keep directory {directory} locked") from None
                time.sleep(_STEP_S)
        yield True
    finally:
        os.close(descriptor)


def probe(connection: sqlite3.Connection) -> None:
    """Read a little of each table: of a file that is malformed, SQLite says so at the first look."""
    connection.execute(_ONE_OF_EACH).fetchone()


def describe(error: Exception) -> str:
    said = str(error) or type(error).__name__
    if getattr(error, "sqlite_errorname", "").startswith("SQLITE_CORRUPT"):
        return (
            f"it is malformed ({said}); remove it with what is beside it (-wal, -shm), and fill a new one with "
            "'outbox-relay reindex --all'"
        )
    return said


def _prepare(connection: sqlite3.Connection, *, create: bool) -> None:
    """Tables for a new file; nothing for one that has them. Raises `sqlite3.DatabaseError` for any other database."""
    connection.execute("BEGIN")  # one state of the file: another process may be making its tables at this moment
    application, tables = _identified(connection)
    connection.execute("COMMIT")
    if application == tables == 0:
        if not create:
            raise FileMissing
        connection.execute("BEGIN IMMEDIATE")
        if _identified(connection) == (0, 0):  # no other process was faster
            for statement in _TABLES:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
        application, _ = _identified(connection)
    if application != APPLICATION_ID:
        raise sqlite3.DatabaseError(
            "it is another database; set OUTBOX_EMBEDDED_PATH to a file that is not used for anything else"
        )
    # Readers and the writer do not wait for each other then. A process that finds the file busy leaves it to the next:
    # this switch does not wait, and the file remembers it.
    with suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA journal_mode = WAL")
    # The relay calls a row done once `apply` has answered: what it answered must be on disk.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 10000")


def _identified(connection: sqlite3.Connection) -> tuple[int, int]:
    """Whose file it is, and how many tables and indexes it has."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return application, tables
