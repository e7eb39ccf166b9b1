"""See `outbox.store.nested`; on SQLite.

A test that rolls back what it did holds the write lock all the while, and a database in memory has one connection for
everybody: in both cases the outbox has no other connection to work on.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.pool import StaticPool

from outbox.store.nested import Borrowed
from outbox.store.sqlite.engine import take_for


def _in_transaction(driver: Any) -> bool:
    return bool(driver.in_transaction)


def engine_within(connection: Connection) -> Engine:
    """An engine over the application's own connection, whose transactions are savepoints where one of it is open."""
    if connection.in_transaction():
        take_for(connection)  # now: a savepoint or DDL outside of what the driver has begun would commit
    driver: Any = connection.connection.driver_connection
    return create_engine(
        "sqlite://",
        creator=lambda: Borrowed(driver, "BEGIN IMMEDIATE", _in_transaction, isolation_level=None),
        poolclass=StaticPool,
    )
