"""Transactions of ours within one of the application, for its tests: what they write goes when it is rolled back."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.pool import StaticPool

_SAVEPOINT: Final = "outbox_nested"


class _Cursor:
    """Begins and ends savepoints instead of transactions where one of the application is open."""

    def __init__(self, borrowed: _Borrowed) -> None:
        self._borrowed, self._cursor = borrowed, borrowed.driver.cursor()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def execute(self, statement: str, parameters: Any = None) -> Any:
        first, _, rest = statement.partition(";")
        if first == "BEGIN" and self._borrowed.begin_within():
            statement = f"SAVEPOINT {_SAVEPOINT};{rest}"
        elif self._borrowed.within and statement == "COMMIT":
            statement = f"RELEASE {_SAVEPOINT}"
        elif self._borrowed.within and statement == "ROLLBACK":
            statement = f"ROLLBACK TO {_SAVEPOINT}"
        return self._cursor.execute(statement, parameters)


class _Borrowed:
    """The driver's connection of the application, for an engine that must neither end its transaction nor close it."""

    def __init__(self, driver: Any) -> None:
        self.driver, self.within = driver, False
        self.autocommit = False  # of this engine; the application's stays as it is

    def __getattr__(self, name: str) -> Any:
        return getattr(self.driver, name)

    def cursor(self, *_: Any, **__: Any) -> _Cursor:
        return _Cursor(self)

    def begin_within(self) -> bool:
        """Whether a transaction that begins now is one within another."""
        self.within = self.driver.info.transaction_status.name != "IDLE"
        return self.within

    def commit(self) -> None:
        """Nothing: the application commits."""

    rollback = close = commit


def engine_within(connection: Connection) -> Engine:
    """An engine over the application's own connection, whose transactions are savepoints where one of it is open."""
    driver: Any = connection.connection.driver_connection
    if connection.in_transaction() and driver.info.transaction_status.name == "IDLE":
        connection.exec_driver_sql("SELECT 1")  # the driver begins with it, and what follows is within
    return create_engine(
        "postgresql+psycopg://",
        creator=lambda: _Borrowed(driver),
        poolclass=StaticPool,
        use_native_hstore=False,  # to look for it takes the driver's own connection
    )
