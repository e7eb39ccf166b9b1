"""Transactions of ours within one of the application, for its tests: what they write is undone when it is rolled back.

A test that rolls back what it did holds the write lock all the while, and a database in memory has one connection for
everybody: in both cases the outbox must work on the connection of the application, and leave its transaction alone.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import StaticPool

from outbox.store.sqlite.engine import take_for

_SAVEPOINT: Final = "outbox_nested"


class _Borrowed:
    """The driver's connection of the application, for an engine that must neither end its transaction nor close it."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self.isolation_level: str | None = None  # of this engine; the application's stays as it is

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def commit(self) -> None:
        """Nothing: the application commits."""

    rollback = close = commit


def engine_within(connection: Connection) -> Engine:
    """An engine over the application's own connection, whose transactions are savepoints where one of it is open."""
    if connection.in_transaction():
        take_for(connection)  # now: a savepoint or DDL outside of what the driver has begun would commit
    driver: Any = connection.connection.driver_connection
    engine = create_engine("sqlite://", creator=lambda: _Borrowed(driver), poolclass=StaticPool)
    within = False

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def translate(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        nonlocal within
        if statement == "BEGIN IMMEDIATE":
            if within := driver.in_transaction:
                statement = f"SAVEPOINT {_SAVEPOINT}"
        elif within and statement == "COMMIT":
            statement = f"RELEASE {_SAVEPOINT}"
        elif within and statement == "ROLLBACK":
            statement = f"ROLLBACK TO {_SAVEPOINT}"
        return statement, parameters

    return engine
