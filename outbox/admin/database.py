"""The application's database, for a server that runs for months: it may be replaced or migrated meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

from loguru import logger
from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from outbox import logs, schema
from outbox.errors import DatabaseUnavailable
from outbox.store.store import Store, database_name, dialect_of


class Database:
    """Opens the outbox tables, for each request anew, so it may be used from several threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._identity: object = None
        self._known_layout: int | None = None

    @contextmanager
    def store(self) -> Iterator[Store]:
        """The outbox tables, for one request: of the database that has the address now.

        Raises `DatabaseUnavailable` if the database cannot be read or written, inside the context too, and
        `SchemaError` if its tables have come to another revision than this version needs: requests are served again as
        soon as they are at that one.
        """
        self._check_identity()
        try:
            self._check_tables()
            with closing(Store(self._engine)) as opened:
                yield opened
        except (DatabaseError, PoolTimeout) as error:
            raise DatabaseUnavailable(f"database {database_name(self._engine)}: {error}") from error

    def _check_identity(self) -> None:
        """After the database was replaced, nothing may be read from the one before."""
        found = dialect_of(self._engine).identity(self._engine)
        with self._lock:
            before, self._identity = self._identity, found
        if before is not None and before != found:
            logger.warning(
                "database {database} is another file now; it is opened anew",
                database=logs.safe(database_name(self._engine)),
            )
            self._known_layout = None
            self._engine.dispose()

    def _check_tables(self) -> None:
        """After a migration beneath this process nothing may be read or written as before."""
        with closing(Store(self._engine)) as opened:  # closed before more is asked: all connections may be in use
            layout = opened.schema_token()
        if layout != self._known_layout:
            schema.require_head(self._engine)
            self._known_layout = layout
