"""The outbox tables, over one connection: what is the same for all who work with them.

What one audience asks of them has a module of its own, as functions of a store: `claims`, `outcomes` and `conflicts`
are a relay's, `upkeep` is maintenance's; then `operators`, `jobs` (a reindex), `verifications` and `figures` (the
dashboard).

Statements are the same for every database: they take `:name` parameters, and what databases do in different ways
comes from `store.dialect`. This is the one module that chooses it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError

from outbox.errors import ConfigurationError, DatabaseUnavailable, SchemaError, in_one_line
from outbox.store import shown
from outbox.store.dialect import Dialect, Hold, Presence, Sizes
from outbox.store.found import Found
from outbox.store.models import VERSION_TABLE, fresh, waiting
from outbox.store.postgresql.dialect import PostgreSQL
from outbox.store.sqlite.dialect import SQLite

MAX_ERROR_CHARS = 2_000

_LOCK_SHARE = 5

T = TypeVar("T")

_COUNTED = {
    "fresh": fresh(),
    "waiting": waiting(),
    "leases": "state = 'claimed'",
    "done": "state = 'done'",
    "dead": "state = 'dead'",
}
_UNFINISHED = ("fresh", "waiting", "leases")
_DIALECTS: dict[str, Dialect] = {"sqlite": SQLite(), "postgresql": PostgreSQL()}


def dialect_of(engine: Engine | Connection) -> Dialect:
    """What a database says and does in its own way. Raises `ConfigurationError` for one that is not supported."""
    try:
        return _DIALECTS[engine.dialect.name]
    except KeyError:
        raise ConfigurationError(
            f"the outbox does not work on {engine.dialect.name}: use {' or '.join(_DIALECTS)}"
        ) from None


def database_name(engine: Engine) -> str:
    """Where a database is, for people."""
    return dialect_of(engine).address(engine)


def is_supported(connection: Connection) -> bool:
    """Whether the outbox works on a database. A session may have others beside its own."""
    return connection.dialect.name in _DIALECTS


@dataclass(frozen=True, slots=True)
class Control:
    """What holds for all relays."""

    epoch: int
    highest_pruned_version: int
    paused_at: int | None
    paused_by: str | None
    pause_reason: str | None
    timeline: str | None


@dataclass(slots=True)
class LockTimes:
    """How long the write transactions of a store have waited for the write lock and held it, in ms."""

    waited_ms: float = 0.0
    held_ms: float = 0.0
    longest_ms: float = 0.0  # the longest that one of them has held it
    last: Hold = field(default_factory=lambda: Hold(0.0, 0.0))

    def add(self, asked: float, began: float, ended: float) -> None:
        """Instants of the monotonic clock, in seconds."""
        self.last = Hold(ended, ended - began)
        self.waited_ms += (began - asked) * 1_000
        self.held_ms += self.last.seconds * 1_000
        self.longest_ms = max(self.longest_ms, self.last.seconds * 1_000)


class Store:
    """The outbox tables, over one connection of its own. For one thread at a time.

    Every method is one short transaction, or says that it is part of one. Raises `DatabaseUnavailable` when the
    database is locked for longer than its busy timeout, full, or gone; nothing was changed then.
    """

    def __init__(self, engine: Engine) -> None:
        self.dialect = dialect_of(engine)
        self._connection = _connected(engine)
        self._in_transaction = False
        self._turn: tuple[float, float] | None = None  # when it asked for the lock and when it had it, if it has
        self._pinned: tuple[int, str | None] | None = None
        self.lock_times = LockTimes()

    @property
    def connection(self) -> Connection:
        """For reading what the application wrote, in between."""
        return self._connection

    @property
    def presence(self) -> Presence:
        """Which other processes of this database are there."""
        return self.dialect.presence(self._connection.engine)

    def close(self) -> None:
        with suppress(DBAPIError):  # it was lost, and nobody has noticed so far
            self._connection.close()

    def run(self, sql: str, parameters: Mapping[str, Any] | None = None, /, **named: Any) -> Found:
        """One statement with `:name` parameters, given as a mapping or by name. A list or tuple is one parameter, for
        `dialect.among` and `dialect.table`. Raises `DatabaseUnavailable`, and `OperationalError` for a value that the
        driver cannot read.
        """
        given = named if parameters is None else parameters
        if self._connection.invalidated:  # it was lost, which a file never is
            if self._in_transaction:
                raise DatabaseUnavailable("database: the connection was lost in the middle of a transaction")
            lost, self._connection = self._connection, _connected(self._connection.engine)
            lost.close()
        return _carried_out(self.dialect, self._connection, sql, given)

    @contextmanager
    def write(self, *, durable: bool, alone: bool = False) -> Iterator[None]:
        """A short write transaction. `durable`: flushed when it returns.

        `alone`: no other one that says so runs beside it, so that what it has read stays true.
        """
        if self._in_transaction:  # a part of it
            yield
            return
        asked = time.monotonic()
        self.dialect.begin(self.run, self._connection, alone=alone, last=self.lock_times.last)
        self._turn = (asked, time.monotonic()) if alone or self.dialect.ids_follow_commits else None
        self._in_transaction = True
        try:
            yield
            self.run("COMMIT")  # on a full disk this may fail and leave the transaction open, with its lock
        except BaseException:
            with suppress(DatabaseUnavailable):  # some errors have ended the transaction already
                self.run("ROLLBACK")
            raise
        finally:
            self._in_transaction = False
            if self._turn:
                self.lock_times.add(*self._turn, time.monotonic())
        if durable:
            self.flush()

    def take_turn(self, *, settled: bool = False) -> None:
        """Within `write`: it is `alone` from here on. `settled`: beside nobody who records, either."""
        if not self._turn:
            asked = time.monotonic()
            self.dialect.take_turn(self.run, settled=settled)
            self._turn = (asked, time.monotonic())

    def in_steps(self, rows: Sequence[T]) -> Iterator[Sequence[T]]:
        """Rows for one write transaction after another, each short enough for the applications that wait for it."""
        at = 0
        while at < len(rows):  # what is left is not copied each time: a purge may have millions
            step = self.dialect.step_rows(self._connection)
            yield rows[at : at + step]
            at += step

    def flush(self) -> None:
        """Have on disk what was committed, and everything that was committed before it."""
        try:
            self.dialect.flush(self.run, self._connection)
        except OSError as error:
            raise DatabaseUnavailable(f"database: what was written is not on disk: {error.strerror}") from error

    # -- the revision of the tables -----------------------------------------------------------------------------

    def pin(self) -> None:
        """From now on `claim`, and a reindex, refuse tables of another revision than they have now.

        What a migration adds may change where rows go: a relay that does not know it must not deliver any.
        """
        self._pinned = (self.schema_token(), self._revision())

    def require_pinned(self) -> None:
        """Raises `SchemaError` if the tables have come to another revision."""
        if self._pinned is None or (token := self.schema_token()) == self._pinned[0]:
            return
        at, revision = self._pinned[1], self._revision()  # any CREATE or ALTER of the application leads here, too
        if revision != at:
            raise SchemaError(
                f"database {database_name(self._connection.engine)} came to revision {revision} while this process "
                f"worked with {at}, and it ends: start outbox-relay of the version that knows it; until then rows wait"
            )
        self._pinned = (token, at)

    def schema_token(self) -> int:
        """A number that changes with every CREATE, ALTER and DROP. Costs next to nothing."""
        return self.dialect.schema_token(self.run)

    def _revision(self) -> str | None:
        return revision_of(self._connection)

    # -- what holds for all -------------------------------------------------------------------------------------

    def control(self) -> Control:
        """What holds for all relays; the defaults when the row is missing (tables created without a migration)."""
        row = self.run(
            "SELECT epoch, highest_pruned_version, paused_at, paused_by, pause_reason, timeline FROM outbox_control"
        ).one_or_none()
        return Control(*tuple(row)) if row else Control(1, 0, None, None, None, None)

    def highest_id(self) -> int:
        """The highest id that was issued so far."""
        return self.dialect.highest_id(self.run)

    def watermark(self) -> int:
        """The same once no row with an id up to it can appear any more."""
        return self.dialect.watermark(self.run)

    def highest_version(self) -> int:
        """The highest version that was drawn so far."""
        return self.dialect.highest_version(self.run)

    def signal(self) -> int:
        """A number that changes when another connection commits, and never by a commit of this one."""
        return self.dialect.signal(self.run)

    def sizes(self) -> Sizes:
        """How large the database is."""
        return self.dialect.sizes(self.run, self._connection.engine)

    # -- where rows go ------------------------------------------------------------------------------------------

    def targets(self) -> dict[str, str]:
        """The physical index that decides what becomes of the rows of each index."""
        found = self.run("SELECT index_name, physical_index FROM outbox_indexes WHERE role = 'live'")
        return {row[0]: row[1] for row in found}

    def routes(self) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
        """The same, and the other physical indexes that rows of an index go to: see `outbox.reindex`."""
        targets: dict[str, str] = {}
        others: dict[str, tuple[str, ...]] = {}
        for name, target, role in self.run("SELECT index_name, physical_index, role FROM outbox_indexes"):
            if role == "live":
                targets[name] = target
            else:
                others[name] = (*others.get(name, ()), target)
        return targets, others

    def register_index(self, name: str, target: str, *, found: bool = False) -> None:
        """Note where the rows of an index go; the first to say so decides. `found`: others may have filled it."""
        with self.write(durable=True, alone=True):
            self.run(
                "INSERT INTO outbox_indexes (index_name, physical_index, found) SELECT :name, :target, :found"
                " WHERE NOT EXISTS (SELECT 1 FROM outbox_indexes WHERE index_name = :name)",
                name=name,
                target=target,
                found=int(found),
            )

    # -- rows ---------------------------------------------------------------------------------------------------

    def event(self, event_id: int) -> dict[str, Any] | None:
        """One row with its document, or None."""
        return next(iter(self._with_documents("e.id = :id", id=event_id)), None)

    def events(self, *, index: str | None = None, document_id: str | None = None) -> list[dict[str, Any]]:
        """All rows with their documents in the order of their ids, narrowed by what is given."""
        condition, given = narrowed(index_name=index, document_id=document_id)
        return self._with_documents(condition, **given)

    def _with_documents(self, condition: str, **given: Any) -> list[dict[str, Any]]:
        document = self.dialect.as_bytes("d.document")
        rows = self.run(
            f"SELECT {shown.columns(self.dialect)}, {document} AS document FROM outbox_events AS e"
            f" LEFT JOIN outbox_documents AS d ON d.event_id = e.id WHERE {condition} ORDER BY e.id",
            given,
        )
        return shown.rows(rows)

    def counts(self) -> dict[str, int]:
        """Number of rows by state."""
        fresh, waiting, claimed, done, dead = self.counted(*_COUNTED)
        return {"pending": fresh + waiting, "claimed": claimed, "done": done, "dead": dead}

    def counted(self, *names: str) -> Sequence[int]:
        """Number of entries of these indexes: a tenth of the time that a walk through the table takes."""
        counts = (
            f"(SELECT count(*) FROM outbox_events {self.dialect.indexed(name)} WHERE {_COUNTED[name]})"
            for name in names
        )
        return tuple(self.run(f"SELECT {', '.join(counts)}").one())

    def unfinished(self) -> int:
        """Rows that are pending or claimed."""
        return sum(self.counted(*_UNFINISHED))

    def oldest_unfinished(self) -> int | None:
        """When the oldest row that is pending or claimed was written."""
        each = (  # the sum keeps PostgreSQL from walking through all ids up to the first such row
            f"SELECT min(id + 0) AS id FROM outbox_events {self.dialect.indexed(name)} WHERE {_COUNTED[name]}"
            for name in _UNFINISHED
        )
        oldest: int | None = self.run(
            "SELECT CAST(created_at AS BIGINT) FROM outbox_events"
            f" WHERE id = (SELECT min(id) FROM ({' UNION ALL '.join(each)}) AS oldest)"
        ).scalar_one_or_none()
        return oldest

    # -- the list of relays -------------------------------------------------------------------------------------

    def register_relay(self, host: str, pid: int, software: str, now: int, *, again: int | None = None) -> int:
        """Enter a relay in the list. Returns its id: the one it had before, where it is entered `again`."""
        named, given = ("", "") if again is None else ("id, ", ":again, ")
        with self.write(durable=False):
            relay: int = self.run(
                f"INSERT INTO outbox_relays ({named}host, pid, version, started_at, heartbeat_at)"
                f" VALUES ({given}:host, :pid, :software, :now, :now) RETURNING id",
                {"host": host, "pid": pid, "software": software, "now": now, "again": again},
            ).scalar_one()
        return relay

    def deregister_relays(self, relays: Iterable[int]) -> None:
        """Take relays off the list."""
        if not (listed := list(relays)):
            return
        with self.write(durable=False):
            self.run(f"DELETE FROM outbox_relays WHERE id {self.dialect.among('relays')}", relays=listed)

    def relays(self) -> list[dict[str, Any]]:
        """All listed relays."""
        rows = self.run("SELECT * FROM outbox_relays ORDER BY id").mappings()
        return [{**row, "breakers": json.loads(row["breakers"])} for row in rows]


def _connected(engine: Engine) -> Connection:
    """A connection of which each statement is committed by itself."""
    try:
        return engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    except DBAPIError as error:
        raise DatabaseUnavailable(
            f"database {database_name(engine)} cannot be opened: {in_one_line(error.orig)}; check OUTBOX_DATABASE_URL"
        ) from error


def revision_of(connection: Connection) -> str | None:
    """The revision that the tables are at; None where there are none, or other migrations made them."""
    if not connection.dialect.has_table(connection, VERSION_TABLE):
        return None
    revision: str | None = connection.exec_driver_sql(f"SELECT version_num FROM {VERSION_TABLE}").scalar_one_or_none()
    return revision


def narrowed(**given: str | int | None) -> tuple[str, dict[str, Any]]:
    """A condition that holds where each column has the value that is given for it, and its parameters."""
    wanted = {column: value for column, value in given.items() if value is not None}
    return " AND ".join(("1 = 1", *(f"{column} = :{column}" for column in wanted))), wanted


def of_tenants(tenants: tuple[str, ...], column: str = "tenant_id") -> tuple[str, dict[str, Any]]:
    """The same for rows of a tenant, in one of these spellings; of all, if none is given."""
    wanted = {f"tenant_{number}": each for number, each in enumerate(tenants)}
    return (f"{column} IN ({', '.join(f':{name}' for name in wanted)})" if wanted else "1 = 1"), wanted


def pause_after(began: float) -> float:
    """How many seconds to leave the write lock to others after a step that began then, by `time.monotonic`.

    What works in many steps holds it for about a fifth of its time: SQLite hands it to the one that asks at the right
    moment, so a writer must find it free more often than not.
    """
    return (time.monotonic() - began) * (_LOCK_SHARE - 1)


def _carried_out(dialect: Dialect, connection: Connection, sql: str, given: Mapping[str, Any]) -> Found:
    """Have the driver carry out a statement with `:name` parameters. Raises `DatabaseUnavailable`, and what SQLAlchemy
    makes of any other error of the driver."""
    statement, parameters = dialect.prepared(sql, given)
    driver: Any = connection.connection
    known: Any = connection.dialect
    try:
        with closing(dialect.cursor(driver, parameters)) as cursor:
            cursor.execute(statement, parameters or ())
            columns = cursor.description or ()
            return Found(cursor.fetchall() if columns else (), columns, cursor.rowcount)
    except known.loaded_dbapi.Error as error:
        if lost := known.is_disconnect(error, driver, None):
            connection.invalidate(error)
        hidden = connection.engine.hide_parameters
        failed = DBAPIError.instance(
            statement, parameters, error, known.loaded_dbapi.Error, hide_parameters=hidden, dialect=known
        )
        # Internal to PostgreSQL is e.g. that a server takes no writes at present: a full disk, a standby.
        if (lost or isinstance(failed, OperationalError | InternalError)) and not dialect.is_row_fault(error):
            dialect.explain(failed, connection)
            raise DatabaseUnavailable(f"database: {in_one_line(failed.orig)}") from failed
        raise failed from error


def printable(error: str | None) -> str | None:
    """At most 2,000 characters, control characters escaped, so that no error can forge a line."""
    return None if error is None else escaped(error[:MAX_ERROR_CHARS])[:MAX_ERROR_CHARS]


def escaped(text: str) -> str:
    """A text with its control characters escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
