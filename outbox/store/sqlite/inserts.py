"""Outbox rows in the transaction of an application, on SQLite: one writer at a time, so ids without gaps.

Through the driver: through SQLAlchemy each statement would cost twice as much, and this is the application's own time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Dialect, Insert, Table
from sqlalchemy.pool import StaticPool

from outbox.errors import ConfigurationError, DatabaseUnavailable, SchemaError
from outbox.store import models
from outbox.store.dialect import Row
from outbox.store.sqlite.engine import take_for

_COLUMNS: Final = (
    "action", "index_name", "document_id", "tenant_id", "entity", "document_bytes", "created_at",
)  # fmt: skip


def insert(connection: Connection, rows: Sequence[Row], contents: Sequence[str] = ()) -> Sequence[int]:
    """See `Dialect.insert`."""
    if not rows:
        return range(0)
    take_for(connection)
    statements, driver = _statements(connection.dialect), _driver_of(connection)
    cursor = driver.cursor()
    try:
        cursor.execute(statements.event, rows[0])
        if not getattr(driver, "in_transaction", True) and not _is_shared(connection):
            raise ConfigurationError(
                "the session is in AUTOCOMMIT: each statement is committed by itself, so that a change and its outbox "
                "row are not written together; use a session with transactions"
            )
        first: int = cursor.lastrowid
        if contents:
            cursor.execute(statements.document, (first, contents[0]))
        if len(rows) > 1:
            # We hold the write lock, so the ids after the first are ours to give.
            cursor.executemany(statements.event_with_id, [(at, *row) for at, row in enumerate(rows[1:], first + 1)])
            if contents:
                cursor.executemany(statements.document, list(enumerate(contents[1:], first + 1)))
    except statements.driver_error as error:
        raise _explained(error) from error
    finally:
        cursor.close()  # left to the garbage collector, it may reset its statement while another thread is using that
    return range(first, first + len(rows))


def insert_selected(connection: Connection, statement: Insert, parameters: Mapping[str, Any]) -> Sequence[int]:
    """See `Dialect.insert_selected`."""
    done = connection.execute(statement, parameters)
    if not done.rowcount:
        return range(0)
    return range(done.lastrowid - done.rowcount + 1, done.lastrowid + 1)


def schema_token(connection: Connection) -> int:
    """See `Dialect.schema_token_in`."""
    return _number(connection, "PRAGMA schema_version")


def highest_id(connection: Connection) -> int:
    """See `Dialect.highest_id_in`."""
    return _number(connection, "SELECT seq FROM sqlite_sequence WHERE name = 'outbox_events'")


def _number(connection: Connection, sql: str) -> int:
    cursor = _driver_of(connection).cursor()
    try:
        cursor.execute(sql)
        found = cursor.fetchone()
    except connection.dialect.loaded_dbapi.Error as error:
        raise DatabaseUnavailable(f"the triggers of the database cannot be looked for: {error}") from error
    finally:
        cursor.close()
    return 0 if found is None else int(found[0])


class _Statements(NamedTuple):
    """The text of each INSERT, with positional parameters, and what the driver raises."""

    driver_error: type[Exception]
    event: str
    event_with_id: str
    document: str


@lru_cache(maxsize=8)
def _statements(dialect: Dialect) -> _Statements:
    def insert_into(table: Table, columns: tuple[str, ...]) -> str:
        return str(Insert(table).values(dict.fromkeys(columns)).compile(dialect=dialect, column_keys=columns))

    return _Statements(
        dialect.loaded_dbapi.Error,
        insert_into(models.events, _COLUMNS),
        insert_into(models.events, ("id", *_COLUMNS)),
        insert_into(models.documents, ("event_id", "document")),
    )


def _driver_of(connection: Connection) -> Any:
    return connection.connection.dbapi_connection


def _is_shared(connection: Connection) -> bool:
    """Whether all have the same connection, as tests in memory do: then the store has set it to AUTOCOMMIT."""
    return isinstance(connection.engine.pool, StaticPool)


def _explained(error: Exception) -> DatabaseUnavailable | SchemaError:
    if "no such table" in str(error):  # the driver has no code for it
        return SchemaError(f"the database has no outbox tables ({error}): run 'outbox-relay migrate'")
    return DatabaseUnavailable(f"the outbox row cannot be stored: {error}; roll the transaction back")
