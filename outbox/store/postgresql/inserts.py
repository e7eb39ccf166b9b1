"""Outbox rows in the transaction of an application, on PostgreSQL: one statement for all of them.

Through the driver: through SQLAlchemy each statement would cost a third more, and this is the application's own time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Final, cast

from sqlalchemy import Connection, Insert

from outbox.errors import ConfigurationError, DatabaseUnavailable, SchemaError
from outbox.store import models
from outbox.store.dialect import Row
from outbox.store.postgresql.ddl import is_own

DRIVERS: Final = ("psycopg", "psycopg_async", "asyncpg")
"""Those of applications; relays and commands use the first."""

_COLUMNS: Final = "action, index_name, document_id, tenant_id, entity, document_bytes, created_at"
_ONE: Final = f"INSERT INTO outbox_events ({_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s) RETURNING id"
_ONE_WITH_DOCUMENT: Final = (
    f"WITH written AS ({_ONE}),"
    " stored AS (INSERT INTO outbox_documents (event_id, document) SELECT id, %s FROM written)"
    " SELECT id FROM written"
)
_MANY: Final = (  # the rows of `unnest` come in their order, and so do the ids that they get
    f"INSERT INTO outbox_events ({_COLUMNS})"
    " SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::int[], %s::bigint[])"
    " RETURNING id"
)
_DOCUMENTS: Final = "INSERT INTO outbox_documents (event_id, document) SELECT * FROM unnest(%s::bigint[], %s::text[])"

HIGHEST_ID: Final = "SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM outbox_events_id_seq"
NEWEST: Final = 10_000
"""Among so many of the newest rows are those that a transaction has written before it is looked at."""
_HIGHEST_ID_IF_ALLOWED: Final = (  # to name the sequence in FROM takes the right, whether it is read or not
    "SELECT CASE WHEN has_sequence_privilege('outbox_events_id_seq', 'SELECT')"
    " AND has_table_privilege('outbox_events', 'SELECT')"
    " THEN greatest(0, coalesce(pg_sequence_last_value('outbox_events_id_seq'::regclass), 0)"
    f" - CASE WHEN pg_current_xact_id_if_assigned() IS NULL THEN 0 ELSE {NEWEST} END) END"
)

# Reads as many rows of the catalogue as the outbox has relations and triggers, and the end of one of its indexes. The
# triggers are found through their functions: that one was dropped or disabled changes nothing of a table.
SCHEMA: Final = (
    "SELECT (SELECT coalesce(sum(xmin::text::bigint), 0) FROM pg_class WHERE relname LIKE 'outbox\\_%'),"
    " (SELECT max(oid)::bigint FROM pg_class),"
    # One within the other, so that each is found by its index, whatever PostgreSQL knows of their numbers.
    " (SELECT coalesce(sum(p.xmin::text::bigint"
    " + (SELECT coalesce(sum((SELECT t.xmin::text::bigint"
    " + (SELECT c.xmin::text::bigint FROM pg_class AS c WHERE c.oid = t.tgrelid)"  # its table may have another name now
    " FROM pg_trigger AS t WHERE t.oid = d.objid)), 0)"
    " FROM pg_depend AS d WHERE d.refclassid = 'pg_proc'::regclass AND d.refobjid = p.oid"
    " AND d.classid = 'pg_trigger'::regclass)), 0)"
    " FROM pg_proc AS p WHERE p.proname LIKE 'outbox\\_%'),"
    " hashtext(current_schemas(false)::text)::bigint"  # one engine may go from schema to schema
)

_WRITTEN: Final = (  # who has only read looks at no row
    "SELECT e.id FROM outbox_events AS e WHERE e.id > %s"
    f" AND pg_current_xact_id_if_assigned() IS NOT NULL AND {is_own('e')} ORDER BY e.id"
)

_UNDEFINED_TABLE: Final = "42P01"
_ROLLED_BACK: Final = "40"
"""The class of what says that a transaction may succeed if it is tried again: deadlocks, serialization failures."""


def insert(connection: Connection, rows: Sequence[Row], contents: Sequence[str] = ()) -> Sequence[int]:
    """See `Dialect.insert`."""
    if not rows:
        return range(0)
    with _running(connection) as run:
        require_transaction(connection)
        if len(rows) == 1:
            ((id_,),) = run(_ONE_WITH_DOCUMENT if contents else _ONE, (*rows[0], *contents))
            return (id_,)
        ids = [row[0] for row in run(_MANY, [list(column) for column in zip(*rows, strict=True)])]
        if contents:
            run(_DOCUMENTS, (ids, list(contents)))
    return ids


def insert_selected(connection: Connection, statement: Insert, parameters: Mapping[str, Any]) -> Sequence[int]:
    """See `Dialect.insert_selected`."""
    require_transaction(connection)
    return sorted(connection.execute(statement.returning(models.events.c.id), parameters).scalars())


def schema_token(connection: Connection) -> int:
    """See `Dialect.schema_token_in`."""
    with _running(connection) as run:
        return token_of(run(SCHEMA)[0])


def token_of(found: Sequence[Any]) -> int:
    """One number of what `SCHEMA` finds."""
    changes, newest, triggers, path = map(int, found)
    return (changes << 192) + (newest << 128) + (triggers << 64) + path


def highest_id(connection: Connection) -> int | None:
    """See `Dialect.highest_id_in`."""
    with _running(connection) as run:
        return cast("int | None", run(_HIGHEST_ID_IF_ALLOWED)[0][0])


def written_since(connection: Connection, after: int) -> Sequence[int]:
    """See `Dialect.written_since`."""
    with _running(connection) as run:
        return [row[0] for row in run(_WRITTEN, (after,))]


@contextmanager
def _running(connection: Connection) -> Iterator[Callable[..., Sequence[Any]]]:
    """What carries out a statement of this module, and returns the rows that it finds."""
    driver = connection.dialect.driver
    if driver not in DRIVERS:
        raise ConfigurationError(f"the outbox does not work with the driver {driver}: use postgresql+{DRIVERS[0]}://…")
    cursor: Any = connection.connection.cursor()

    def run(sql: str, parameters: Sequence[Any] = ()) -> Sequence[Any]:
        cursor.execute(_numbered(sql) if driver == "asyncpg" else sql, parameters or None)
        return cursor.fetchall() if cursor.description else ()

    try:
        yield run
    except connection.dialect.loaded_dbapi.Error as error:
        state = getattr(error, "sqlstate", None) or ""
        if state == _UNDEFINED_TABLE:
            raise SchemaError(f"the database has no outbox tables ({error}): run 'outbox-relay migrate'") from error
        if state.startswith(_ROLLED_BACK) or connection.dialect.is_disconnect(error, connection.connection, cursor):
            # As of a statement of the application, which tries again on this error, and on no other. Nothing public
            # judges and wraps an error; this is the same in SQLAlchemy 2.0 and 2.1.
            connection._handle_dbapi_exception(error, None, None, cursor, None)
        raise DatabaseUnavailable(f"the outbox row cannot be stored: {error}; roll the transaction back") from error
    finally:
        cursor.close()


@cache
def _numbered(sql: str) -> str:
    """With parameters as asyncpg has them."""
    first, *others = sql.split("%s")
    return first + "".join(f"${number}{other}" for number, other in enumerate(others, start=1))


def require_transaction(connection: Connection) -> None:
    """See `Dialect.require_transaction`."""
    driver: Any = connection.connection.driver_connection
    if connection.dialect.driver == "asyncpg":
        adapted: Any = connection.connection.dbapi_connection
        alone = adapted.isolation_level == "autocommit" and not driver.is_in_transaction()
    else:
        alone = driver.autocommit and driver.info.transaction_status.name == "IDLE"
    if alone:
        raise ConfigurationError(
            "the session is in AUTOCOMMIT: each statement is committed by itself, so that a change and its outbox "
            "row are not written together; use a session with transactions"
        )
