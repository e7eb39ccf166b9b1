"""What an SQLite engine needs so that an application and a relay can write to one file side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, event

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

BUSY_TIMEOUT_S = 30.0
"""How long a writer waits for another one before "database is locked"."""

AUTOCHECKPOINT_PAGES = 10_000
"""40 MB of write-ahead log before a writer must checkpoint by itself: the relay's maintenance does it sooner,
outside all transactions. SQLite's default, 1,000, stalls a writer for tens of milliseconds now and then."""


def prepare(engine: Engine | AsyncEngine, *, busy_timeout: float = BUSY_TIMEOUT_S) -> None:
    """Make every new connection of `engine` fit for a database that a relay works on; call it once, first.

    * `journal_mode=WAL`: readers and the writer do not wait for each other.
    * `busy_timeout` seconds: a writer waits for another one instead of failing.
    * `BEGIN IMMEDIATE`: a transaction takes the write lock at its beginning. SQLite's default is to take it at the
      first write, and to fail at once, whatever the timeout, when another connection wrote since the first read.
    * Savepoints and rollbacks do what they say; with the default driver mode a released first savepoint makes an
      outer rollback keep its rows.

    For sessions that only read, take no lock: `engine.execution_options(outbox_begin="DEFERRED")`.
    An `AsyncEngine` (aiosqlite) is prepared in the same way. Raises `ValueError` for other databases.
    """
    sync_engine = engine if isinstance(engine, Engine) else engine.sync_engine
    if sync_engine.dialect.name != "sqlite":
        raise ValueError(f"sqlite.prepare() is for SQLite, this engine speaks {sync_engine.dialect.name}")

    @event.listens_for(sync_engine, "connect")
    def on_connect(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.isolation_level = None  # the driver must not begin or commit by itself
        cursor = dbapi_connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(busy_timeout * 1000)}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute(f"PRAGMA wal_autocheckpoint = {AUTOCHECKPOINT_PAGES}")
        cursor.close()

    @event.listens_for(sync_engine, "begin")
    def on_begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql(f"BEGIN {options.get('outbox_begin', 'IMMEDIATE')}")
