"""The application's database, as a server that runs for months must read it: the file and the tables of this moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from loguru import logger
from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from outbox import logs, schema
from outbox.errors import DatabaseUnavailable
from outbox.store.store import Store


class Database:
    """Opens the outbox tables, for each request anew, so it may be used from several threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._file: tuple[int, int] | None = None
        self._known_layout: int | None = None

    @contextmanager
    def store(self) -> Iterator[Store]:
        """The outbox tables, for one request: of the file that has the database's name now.

        Raises `DatabaseUnavailable` if the database cannot be read or written, inside the context too, and
        `SchemaError` if its tables have come to another revision than this version needs: requests are served again as
        soon as they are at that one.
        """
        self._check_file()
        try:
            self._check_tables()
            with closing(Store(self._engine)) as opened:
                yield opened
        except (DatabaseError, PoolTimeout) as error:
            raise DatabaseUnavailable(f"database {self._engine.url.database}: {error}") from error

    def _check_file(self) -> None:
        """Open connections would go on reading a file that was removed, and new ones would create an empty one."""
        path = str(self._engine.url.database)
        try:
            found = Path(path).stat()
        except OSError as error:
            raise DatabaseUnavailable(
                f"database {path} cannot be opened: {error.strerror}; check OUTBOX_DATABASE_URL"
            ) from error
        with self._lock:
            before, self._file = self._file, (found.st_dev, found.st_ino)
        if before is not None and before != self._file:
            logger.warning("database {database} is another file now; it is opened anew", database=logs.safe(path))
            self._known_layout = None
            self._engine.dispose()

    def _check_tables(self) -> None:
        """After a migration beneath this process nothing may be read or written as before."""
        with closing(Store(self._engine)) as opened:  # closed before more is asked: all connections may be in use
            layout = opened.schema_token()
        if layout != self._known_layout:
            schema.require_head(self._engine)
            self._known_layout = layout
