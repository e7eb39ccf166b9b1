"""What an SQLite engine needs so that an application and a relay can write to one file side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from sqlalchemy import Dialect, Engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, scoped_session

from outbox.errors import ConfigurationError
from outbox.store.sessions import require_session
from outbox.store.sqlite import lock as write_lock
from outbox.store.sqlite.holder import name_holder
from outbox.store.sqlite.place import opened_by, path_of

if TYPE_CHECKING:
    from sqlalchemy import Connection, ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine

BUSY_TIMEOUT_S = 30.0
"""How long a writer waits for another one before "database is locked"."""

AUTOCHECKPOINT_PAGES = 10_000
"""40 MB of write-ahead log before a writer must checkpoint by itself: the relay's maintenance does it sooner,
outside all transactions. SQLite's default, 1,000, stalls a writer for tens of milliseconds now and then."""

WRITE: Final = "WRITE"
"""The default of `outbox_begin`: the write lock is taken at the first statement that writes."""

_BUSY_TIMEOUT: Final = "outbox.busy_timeout"

_prepared: WeakSet[Dialect] = WeakSet()
_warned = False


def prepare(engine: Engine | AsyncEngine, *, busy_timeout: float = BUSY_TIMEOUT_S) -> None:
    """Make every new connection of `engine` fit for a database that a relay works on; call it once, first.

    * `journal_mode=WAL`: readers and the writer do not wait for each other.
    * A transaction takes the write lock at its first statement that writes, and waits up to `busy_timeout` seconds for
      it; until then it reads what is committed, statement by statement, and holds no lock. SQLite's own default is to
      fail at once, whatever the timeout, when another connection wrote since the first read. `lock` takes the lock
      sooner, for a transaction that decides what to write by what it read.
    * Savepoints and rollbacks do what they say; with the default driver mode a released first savepoint makes an
      outer rollback keep its rows.

    `engine.execution_options(outbox_begin="IMMEDIATE")` takes the lock when a transaction begins, `"DEFERRED"` gives a
    transaction one view of the database from its first read on; both also as options of a connection.
    An `AsyncEngine` (aiosqlite) is prepared in the same way. Raises `ValueError` for other databases.
    """
    sync_engine = engine if isinstance(engine, Engine) else engine.sync_engine
    if sync_engine.dialect.name != "sqlite":
        raise ValueError(f"sqlite.prepare() is for SQLite, this engine speaks {sync_engine.dialect.name}")

    @event.listens_for(sync_engine, "connect")
    def on_connect(dbapi_connection: Any, record: Any) -> None:
        # The driver begins by itself for cursors that no listener sees, and then with the lock.
        dbapi_connection.isolation_level = "IMMEDIATE"
        cursor = dbapi_connection.cursor()
        record.info.update({_BUSY_TIMEOUT: busy_timeout, write_lock.FILE: opened_by(cursor)})
        cursor.execute(f"PRAGMA busy_timeout = {int(busy_timeout * 1000)}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute(f"PRAGMA wal_autocheckpoint = {AUTOCHECKPOINT_PAGES}")
        cursor.close()

    @event.listens_for(sync_engine, "begin")
    def on_begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("isolation_level") == "AUTOCOMMIT":
            return
        driver = connection.connection.dbapi_connection
        if driver is not None and driver.isolation_level == "":  # SQLAlchemy has put it back after AUTOCOMMIT
            driver.isolation_level = "IMMEDIATE"
        begin = options.get("outbox_begin", WRITE)
        if begin == "IMMEDIATE":
            write_lock.begin(connection, busy_timeout)
        elif begin != WRITE:
            connection.exec_driver_sql(f"BEGIN {begin}")

    @event.listens_for(sync_engine, "before_cursor_execute")
    def on_execute(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if write_lock.writes(statement):
            take_for(connection)

    event.listen(sync_engine, "handle_error", on_error)
    _prepared.add(sync_engine.dialect)


def on_error(context: ExceptionContext) -> None:
    """See `outbox.store.dialect.Dialect.on_error`."""
    connection, error = context.connection, context.sqlalchemy_exception
    if connection is not None and isinstance(error, OperationalError) and not write_lock.is_trying(connection):
        name_holder(error, connection.info.get(write_lock.FILE))


def is_prepared_engine(engine: Engine) -> bool:
    """Whether `prepare` was called for it, or for one that it was made of by `execution_options`."""
    return engine.dialect in _prepared


def is_prepared(connection: Connection) -> bool:
    """Whether `prepare` was called for its engine before the connection was made."""
    return _BUSY_TIMEOUT in connection.info


def take_for(connection: Connection) -> None:
    """Take the write lock for a transaction, unless it has it; a connection in AUTOCOMMIT is left as it is.

    An engine that is not prepared waits as its driver is set to (5 s by default, in coarse steps).
    """
    driver = connection.connection.dbapi_connection
    if driver is None or driver.isolation_level is None:
        return
    if (busy_timeout := connection.info.get(_BUSY_TIMEOUT)) is not None:
        write_lock.take(connection, busy_timeout)
    elif not write_lock.is_held(connection):
        _warn_of_unprepared(connection.engine)
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        except OperationalError as error:
            name_holder(error, path_of(connection.engine))
            raise


def _warn_of_unprepared(engine: Engine) -> None:
    """Once in a process. A database in memory has no relay beside it."""
    global _warned
    if _warned or (path := path_of(engine)) is None:
        return
    _warned = True
    from loguru import logger  # not above: the write side loads it for a mistake only

    logger.warning(
        "the engine of {database} is not prepared for a relay beside it: reads and writes can fail with 'database is "
        "locked'; call outbox.sqlite.prepare(engine) once, before its first connection",
        database=str(path),
    )


def lock(session: Session | scoped_session[Any]) -> None:
    """Take the write lock now, and forget what the session has read before.

    What is read from here on stays as it is until the transaction ends. For documents that are built by hand from rows:
    what was read before the lock can be older than the row that is written. Waits as long as `prepare` said.
    Raises `ConfigurationError` if the session has changes that are not flushed: what they were based on may be old; and
    for a session of another database. `InvalidInput` for what is no session.
    """
    require_session(session, "sqlite.lock", "sqlite.lock(session)")
    if isinstance(session, scoped_session):
        session = session()
    if (name := session.get_bind().dialect.name) != "sqlite":
        raise ConfigurationError(
            f"sqlite.lock(session) takes the write lock of SQLite, and this session speaks {name}: read the rows that "
            "it decides by with select(…).with_for_update()"
        )
    if session.new or session.dirty or session.deleted:
        raise ConfigurationError(
            "sqlite.lock(session) forgets what the session has read, and it has changes that are not flushed: call it "
            "before the first change, or flush them"
        )
    take_for(session.connection())
    session.expire_all()
