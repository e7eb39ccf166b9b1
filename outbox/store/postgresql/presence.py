"""How processes of one database know that another one was killed, sooner than its lease expires.

Each holds an advisory lock on a connection of its own; PostgreSQL releases it within milliseconds when the process
ends, however it ends. A process that is stopped keeps its lock: there the lease decides. A lock leaves no trace when it
is gone, so a table lists those that have shown themselves, and since when the server runs: after its restart all locks
are gone, and no process is dead by that.

A process that has only lost its connection counts as dead until it has another one: what it holds is given to others
meanwhile, and each row is fenced by its claim.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from outbox.errors import DatabaseUnavailable, in_one_line
from outbox.store.dialect import Name
from outbox.store.postgresql.ddl import PRESENCE

# Of a process, for these tables, whatever the role of a session calls them: applications may have locks of their own.
_TABLES: Final = f"(SELECT relnamespace FROM pg_class WHERE oid = CAST('{PRESENCE}' AS regclass))"
_KEY: Final = f"hashtextextended(format('outbox-relay %s %s %s', {_TABLES}, CAST(:kind AS TEXT), {{name}}), 0)"
_LOCKS: Final = (
    "SELECT 1 FROM pg_locks AS l WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted"
    " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND (l.classid::bigint << 32 | l.objid::bigint) = "
)
_HELD: Final = f"EXISTS ({_LOCKS}{_KEY.format(name='p.name')})"
_OWN: Final = f"{_LOCKS}{_KEY.format(name='CAST(:name AS TEXT)')} AND l.pid = pg_backend_pid()"
_LISTED: Final = (
    f"SELECT p.name FROM {PRESENCE} AS p WHERE p.kind = :kind AND p.name = ANY(:names)"
    " AND p.server_started = pg_postmaster_start_time() AND "
)


class Lock:
    """The lock of one process, held until `end` or until the process has ended."""

    def __init__(self, engine: Engine, kind: str, name: int | str) -> None:
        self._engine, self._given = engine, {"kind": kind, "name": str(name)}
        self._connection: Connection | None = None
        if reason := self._take():
            from loguru import logger  # not above: the write side loads this module, and no logs

            logger.warning(
                "no lock can be held in the database: {reason}; if this {kind} is killed, others notice it only when "
                "its lease ends",
                reason=reason,
                kind=kind,
            )

    def _take(self) -> str | None:
        """Why it cannot be had; None if it is."""
        try:
            self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            if self._hold(self._connection):
                return None
            reason = "another process has the same name"
        except SQLAlchemyError as error:
            reason = in_one_line(getattr(error, "orig", error))
        self._close()
        return reason

    def keep(self) -> None:
        """Lost with its connection, or when the server was restarted. What it cannot have now it may have next time."""
        try:
            held = self._connection is not None and self._connection.execute(text(_OWN), self._given).first()
        except SQLAlchemyError:
            held = None
        if not held:
            self._close()
            self._take()

    def _hold(self, connection: Connection) -> bool:
        taken = f"SELECT pg_try_advisory_lock({_KEY.format(name='CAST(:name AS TEXT)')})"
        if not connection.execute(text(taken), self._given).scalar_one():
            return False
        connection.execute(  # after it: without a lock it would tell of a killed process
            text(
                f"INSERT INTO {PRESENCE} (kind, name, server_started) VALUES (:kind, :name, pg_postmaster_start_time())"
                " ON CONFLICT (kind, name) DO UPDATE SET server_started = excluded.server_started"
            ),
            self._given,
        )
        return True

    def end(self) -> None:
        """Take the process off the list, and release its lock."""
        if self._connection is not None:
            with contextlib.suppress(SQLAlchemyError):
                self._connection.execute(
                    text(f"DELETE FROM {PRESENCE} WHERE kind = :kind AND name = :name"), self._given
                )
            self._close()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError):
                connection.detach()  # the pool would give the lock to the next one
                connection.close()


class Locks:
    """The locks of all processes of one database: see `outbox.store.dialect.Presence`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def hold(self, kind: str, name: int | str) -> Lock:
        return Lock(self._engine, kind, name)

    def dead(self, kind: str, names: Iterable[Name]) -> list[Name]:
        return self._found(kind, names, f"NOT {_HELD}")

    def live(self, kind: str, names: Iterable[Name]) -> list[Name]:
        return self._found(kind, names, _HELD)

    def _found(self, kind: str, names: Iterable[Name], condition: str) -> list[Name]:
        if not (asked := {str(name): name for name in names}):
            return []
        with self._connected() as connection:
            given = {"kind": kind, "names": list(asked)}
            found: Any = connection.execute(text(_LISTED + condition), given).scalars()
            listed = set(found)
        return [name for text_, name in asked.items() if text_ in listed]

    def remove_locks(self, kind: str, names: Iterable[int | str]) -> None:
        given = {"kind": kind, "names": [str(name) for name in names]}
        with self._connected() as connection:
            connection.execute(
                text(f"DELETE FROM {PRESENCE} AS p WHERE p.kind = :kind AND p.name = ANY(:names) AND NOT {_HELD}"),
                given,
            )

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Connection]:
        try:
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                yield connection
        except DBAPIError as error:
            raise DatabaseUnavailable(f"database: {in_one_line(error.orig)}") from error
