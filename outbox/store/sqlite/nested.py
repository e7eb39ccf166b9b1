"""Transactions of ours within one of the application, for its tests: what they write is undone when it is rolled back.

A test that rolls back what it did holds the write lock all the while, and a database in memory has one connection for
everybody: in both cases the outbox must work on the connection of the application, and leave its transaction alone.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.pool import StaticPool

from outbox.store.sqlite.engine import take_for

_SAVEPOINT: Final = "outbox_nested"


class _Cursor:
    """Begins and ends savepoints instead of transactions where one of the application is open."""

    def __init__(self, borrowed: _Borrowed) -> None:
        self._borrowed, self._cursor = borrowed, borrowed.driver.cursor()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def execute(self, statement: str, parameters: Any = ()) -> Any:
        if statement == "BEGIN IMMEDIATE":
            if self._borrowed.begin_within():
                statement = f"SAVEPOINT {_SAVEPOINT}"
        elif self._borrowed.within and statement == "COMMIT":
            statement = f"RELEASE {_SAVEPOINT}"
        elif self._borrowed.within and statement == "ROLLBACK":
            statement = f"ROLLBACK TO {_SAVEPOINT}"
        return self._cursor.execute(statement, parameters)


class _Borrowed:
    """The driver's connection of the application, for an engine that must neither end its transaction nor close it."""

    def __init__(self, driver: Any) -> None:
        self.driver, self.within = driver, False
        self.isolation_level: str | None = None  # of this engine; the application's stays as it is

    def __getattr__(self, name: str) -> Any:
        return getattr(self.driver, name)

    def cursor(self) -> _Cursor:
        return _Cursor(self)

    def begin_within(self) -> bool:
        """Whether a transaction that begins now is one within another."""
        self.within = bool(self.driver.in_transaction)
        return self.within

    def commit(self) -> None:
        """Nothing: the application commits."""

    rollback = close = commit


def engine_within(connection: Connection) -> Engine:
    """An engine over the application's own connection, whose transactions are savepoints where one of it is open."""
    if connection.in_transaction():
        take_for(connection)  # now: a savepoint or DDL outside of what the driver has begun would commit
    driver: Any = connection.connection.driver_connection
    return create_engine("sqlite://", creator=lambda: _Borrowed(driver), poolclass=StaticPool)
