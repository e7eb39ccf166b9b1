"""The write lock of an SQLite file: which statements need it, how a transaction waits for it, and who goes first.

SQLite has one writer at a time, and its own waiting sleeps for up to 100 ms between two tries: a process that takes the
lock often wins it each time. So an application waits in fine steps and shows that it waits, by a lock on a small file
beside the database (the operating system releases it however a process ends); relays, which take the lock often and can
wait, let waiting applications go first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import InvalidRequestError, OperationalError

from outbox.files import beside
from outbox.store.sqlite.place import open_for_lock

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from outbox.store.dialect import Hold

STEP_S = 0.000_5
"""Pause between two tries of a writer that waits."""

LONGEST_YIELD_S = 0.05
"""How long a relay leaves the lock to waiting writers before it takes its turn."""

BUSY_S = 5.0
"""How long after a writer had to wait relays hold the lock for short steps only, and rest between them."""

REST_TIMES = 4
"""How long a relay rests then: so many times as long as it held the lock. Two relays that drain leave a writer of one
row every 5 ms 0.9 of its writes with it, and 0.75 without; a relay whose rows come alone holds it for half a
millisecond, and rests too short a time to deliver them late."""

_FIRST_WORD = re.compile(r"(?:\s|\(|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*(\w*)", re.DOTALL)
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\[[^]]*\]|--[^\n]*|/\*.*?\*/", re.DOTALL)
_WRITES_IN_WITH = re.compile(r"\b(?:INSERT|UPDATE|DELETE|REPLACE)\b(?!\s*\()", re.IGNORECASE)
_WRITING_PRAGMA = re.compile(r"\s*PRAGMA\s+(?:\w+\.)?(?:user_version|application_id)\s*[=(]", re.IGNORECASE)
_NO_WRITE = frozenset(
    ("SELECT", "VALUES", "EXPLAIN", "BEGIN", "COMMIT", "END", "ROLLBACK", "RELEASE", "VACUUM", "ATTACH", "DETACH", "")
)

FILE = "outbox.file"
"""Where a prepared connection keeps the file that it has open; None: its database is in memory."""

_TAKEN = "outbox.lock_taken_in"
_CALLS = "outbox.calls_when_locked"
_TRYING = "outbox.tries_to_lock"


def writes(statement: str) -> bool:
    """Whether a statement needs the write lock.

    A SAVEPOINT does: released as the outermost one, it would commit. What ends or begins a transaction as text is left
    as it is, and so is what SQLite refuses inside of one (VACUUM, ATTACH).
    """
    first = _FIRST_WORD.match(statement)
    word = first.group(1).upper() if first else ""
    if word in _NO_WRITE:
        return False
    if word == "WITH":
        return bool(_WRITES_IN_WITH.search(_QUOTED.sub("", statement)))
    if word == "PRAGMA":
        return bool(_WRITING_PRAGMA.match(statement, first.start(1) if first else 0))
    return True


def take(connection: Connection, busy_timeout: float) -> None:
    """Take the write lock now, unless this transaction has it.

    Raises `sqlalchemy.exc.OperationalError` ("database is locked") after `busy_timeout` seconds, and
    `InvalidRequestError` if SQLite has ended the transaction by itself meanwhile.
    """
    driver: Any = connection.connection.driver_connection
    transaction, info = connection.get_transaction(), connection.info
    if driver.in_transaction:
        info[_TAKEN] = transaction
        return
    if info.get(_TAKEN) is transaction is not None:
        raise InvalidRequestError(
            "SQLite has ended this transaction by itself (a full disk, or a statement with OR ROLLBACK): what it wrote "
            "is gone; roll the session back and begin again"
        )
    begin(connection, busy_timeout)
    info[_TAKEN] = transaction
    waiting_for, call = info.pop(_CALLS, (None, None))
    if call and waiting_for is transaction:
        call()


def is_held(connection: Connection) -> bool:
    """Whether the transaction may hold the lock; one that has only read does not, unless it began with it."""
    driver: Any = connection.connection.driver_connection
    return bool(driver.in_transaction)


def when_taken(connection: Connection, call: Callable[[], None]) -> None:
    """Have `call` called once this transaction has taken the lock: now, if it has."""
    if is_held(connection):
        call()
    else:
        connection.info[_CALLS] = (connection.get_transaction(), call)


def begin(connection: Connection, busy_timeout: float) -> None:
    """Begin a transaction that has the lock. Raises as `take` does."""
    with _impatient(connection, busy_timeout):
        if _tried(connection):
            return
        deadline = time.monotonic() + busy_timeout
        with waiting(connection.info[FILE]):
            while time.monotonic() < deadline:
                time.sleep(STEP_S)
                if _tried(connection):
                    return
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # the last try: its error says what is the matter


@contextlib.contextmanager
def _impatient(connection: Connection, busy_timeout: float) -> Iterator[None]:
    """SQLite itself does not wait: its steps are too coarse."""
    cursor: Any = connection.connection.cursor()
    try:
        cursor.execute("PRAGMA busy_timeout = 0")
        yield
    finally:
        cursor.execute(f"PRAGMA busy_timeout = {int(busy_timeout * 1000)}")
        cursor.close()


def is_trying(connection: Connection) -> bool:
    """Whether it just tries to take the lock, time and again: that it is taken is no error then."""
    return bool(connection.info.get(_TRYING))


def _tried(connection: Connection) -> bool:
    connection.info[_TRYING] = True
    try:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    except OperationalError as error:
        code = getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_BUSY)
        if code == sqlite3.SQLITE_BUSY_SNAPSHOT:
            raise InvalidRequestError(
                "another connection has written since this one began to read a result that is still open: read it to "
                "the end before the first write, or take the lock before it with outbox.sqlite.lock(session)"
            ) from error
        if code != sqlite3.SQLITE_BUSY:
            raise
        return False
    finally:
        connection.info[_TRYING] = False
    return True


# -- who waits --------------------------------------------------------------------------------------------------------


def _mark(database: Path) -> Path:
    return beside(database, "-waiting")


@contextlib.contextmanager
def waiting(database: Path | None) -> Iterator[None]:
    """Say to relays that a writer waits. Where no file can be made beside the database, nothing is said."""
    if database is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context(open_for_lock(_mark(database), database))
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.utime(file.fileno())
        yield


def is_busy(database: Path | None) -> bool:
    """Whether a writer had to wait within the last seconds."""
    if database is None:
        return False
    try:
        return abs(time.time() - _mark(database).stat().st_mtime) < BUSY_S
    except OSError:
        return False


def rest(database: Path | None, last: Hold) -> None:
    """Keep away from the lock for a while after this connection has held it, where a writer had to wait lately."""
    resting = last.ended + REST_TIMES * last.seconds - time.monotonic()
    if resting > 0 and is_busy(database):
        time.sleep(min(resting, LONGEST_YIELD_S))


def leave_to_writers(database: Path | None) -> None:
    """Wait until no writer waits for the lock, at most `LONGEST_YIELD_S`."""
    if database is None:
        return
    began = time.monotonic()
    with contextlib.suppress(OSError), _mark(database).open("rb") as file:  # no file: no application ever had to wait
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - began > LONGEST_YIELD_S:
                    break
                time.sleep(STEP_S)
