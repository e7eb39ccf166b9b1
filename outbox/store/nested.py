"""Transactions of ours within one of the application, for its tests: what they write goes when it is rolled back.

The outbox must work on the connection of the application then, and leave its transaction alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

_SAVEPOINT: Final = "outbox_nested"


class _Cursor:
    """Begins and ends savepoints instead of transactions where one of the application is open."""

    def __init__(self, borrowed: Borrowed) -> None:
        self._borrowed, self._cursor = borrowed, borrowed.driver.cursor()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def execute(self, statement: str, *parameters: Any) -> Any:
        first, and_, rest = statement.partition(";")
        if first == self._borrowed.begins and self._borrowed.begin_within():
            statement = f"SAVEPOINT {_SAVEPOINT}{and_}{rest}"
        elif self._borrowed.within and statement == "COMMIT":
            statement = f"RELEASE {_SAVEPOINT}"
        elif self._borrowed.within and statement == "ROLLBACK":
            statement = f"ROLLBACK TO {_SAVEPOINT}"
        return self._cursor.execute(statement, *parameters)


class Borrowed:
    """The driver's connection of the application, for an engine that must neither end its transaction nor close it.

    `begins`: the statement that begins one of ours. `in_transaction`: whether one of the application is open. `own`:
    attributes of which the engine's differ from the application's.
    """

    def __init__(self, driver: Any, begins: str, in_transaction: Callable[[Any], bool], **own: Any) -> None:
        self.driver, self.begins, self.within = driver, begins, False
        self._in_transaction = in_transaction
        vars(self).update(own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.driver, name)

    def cursor(self, *_: Any, **__: Any) -> _Cursor:
        return _Cursor(self)

    def begin_within(self) -> bool:
        """Whether a transaction that begins now is one within another."""
        self.within = self._in_transaction(self.driver)
        return self.within

    def commit(self) -> None:
        """Nothing: the application commits."""

    rollback = close = commit
