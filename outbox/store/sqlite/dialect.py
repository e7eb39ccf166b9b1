"""SQLite, behind the seam: one writer at a time, so that ids follow commits; one file, on one machine."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError

from outbox.errors import DatabaseUnavailable
from outbox.files import beside
from outbox.store.dialect import Finding, Hold, Run, Sizes, Watch
from outbox.store.models import EPOCH_STEP
from outbox.store.sqlite import engine as engines
from outbox.store.sqlite import inserts, lock, malformed, nested
from outbox.store.sqlite.findings import findings
from outbox.store.sqlite.holder import name_holder
from outbox.store.sqlite.place import guard, named_by, path_of
from outbox.store.sqlite.presence import LockFiles
from outbox.store.sqlite.watch import watch_of

LARGE_WAL_BYTES: Final = 160_000_000
"""Four times the log at which a writer moves it into the database by itself."""

STEP_ROWS: Final = 1_000
STEP_ROWS_BESIDE_WRITERS: Final = 100
"""A claim or a record of so many rows holds the lock for about 3 ms."""

AUTOCHECKPOINT_PAGES: Final = 2_000
"""8 MB of log: what works in many transactions moves them into the database itself, after its commits and without a
lock. At the `engine.AUTOCHECKPOINT_PAGES` of applications one of these would have to, for tens of milliseconds."""

EMPTY_WAL_WITHIN_MS: Final = 50


class SQLite:
    """See `outbox.store.dialect.Dialect` for what each of these promises."""

    ids_follow_commits = True

    # -- a statement ----------------------------------------------------------------------------------------------

    def prepared(self, sql: str, parameters: Mapping[str, Any]) -> tuple[str, Any]:
        """The driver takes `:name` itself; a list travels as JSON."""
        given = {
            name: orjson.dumps(value).decode() if isinstance(value, list | tuple) else value
            for name, value in parameters.items()
        }
        return sql, given or None

    def cursor(self, driver: Any, parameters: Any) -> Any:  # noqa: ARG002
        return driver.cursor()

    def among(self, name: str) -> str:
        return f"IN (SELECT value FROM json_each(:{name}))"

    def outside(self, name: str) -> str:
        return f"NOT IN (SELECT value FROM json_each(:{name}))"

    def table(self, name: str, /, **columns: str) -> str:
        parts = ", ".join(f"json_extract(value, '$[{at}]') AS {column}" for at, column in enumerate(columns))
        return f"(SELECT {parts}, key + 1 AS place FROM json_each(:{name}))"

    def indexed(self, index: str) -> str:
        return f"INDEXED BY ix_outbox_events_{index}"

    def of_each(self, alias: str, ids: str) -> str:
        return f"JOIN outbox_events AS {alias} ON {alias}.id IN ({ids})"

    def looked_up(self, alias: str, id_: str) -> str:
        return f"JOIN outbox_events AS {alias} ON {alias}.id = {id_}"

    def greatest(self, *values: str) -> str:
        return f"max({', '.join(values)})"

    def least(self, *values: str) -> str:
        return f"min({', '.join(values)})"

    def same(self, first: str, second: str) -> str:
        return f"{first} IS {second}"

    def as_bytes(self, text: str) -> str:
        return f"CAST({text} AS BLOB)"

    # -- acts -----------------------------------------------------------------------------------------------------

    def address(self, engine: Engine) -> str:
        return str(named_by(engine.url) or "in memory")

    def guard(self, engine: Engine, *, create: bool) -> None:
        guard(engine, create=create)

    def is_prepared(self, engine: Engine) -> bool:
        return engines.is_prepared_engine(engine)

    def prepare(self, engine: Engine) -> None:
        engines.prepare(engine)
        event.listen(engine, "connect", _empty_the_log_sooner)

    def begin(self, run: Run, connection: Connection, *, alone: bool, last: Hold) -> None:  # noqa: ARG002
        """Takes the write lock at once: who reads first and then writes fails when another one wrote in between."""
        lock.rest(_file_of(connection), last)
        lock.leave_to_writers(_file_of(connection))
        run("BEGIN IMMEDIATE")

    def recording(self, run: Run) -> None:
        """None runs beside it."""

    def take_turn(self, run: Run, *, settled: bool) -> None:
        """None runs beside it."""

    def step_rows(self, connection: Connection) -> int:
        return STEP_ROWS_BESIDE_WRITERS if lock.is_busy(_file_of(connection)) else STEP_ROWS

    def flush(self, run: Run, connection: Connection) -> None:  # noqa: ARG002
        """What `synchronous=FULL` does in a commit, which holds the write lock for these milliseconds.

        What a checkpoint has moved into the database was on disk before. SQLite keeps no lock on the log, so that
        closing it here releases none.
        """
        if (file := _file_of(connection)) is None:
            return
        with contextlib.suppress(FileNotFoundError):  # another journal mode: its commits are on disk by themselves
            opened = os.open(beside(file, "-wal"), os.O_RDONLY)
            try:
                os.fdatasync(opened)
            finally:
                os.close(opened)

    def temporary(self, run: Run, name: str, /, **columns: str) -> None:
        typed = ", ".join(f"{column} {kind}" for column, kind in columns.items())
        run(f"CREATE TEMP TABLE IF NOT EXISTS {name} ({typed}, PRIMARY KEY ({', '.join(columns)})) WITHOUT ROWID")
        run(f"DELETE FROM temp.{name}")

    def highest_id(self, run: Run) -> int:
        return int(run("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'outbox_events'").scalar_one())

    def watermark(self, run: Run) -> int:
        """An id is issued under the write lock: whatever can be seen of the sequence is committed."""
        return self.highest_id(run)

    def draw_version(self, run: Run, number: int) -> int:
        drawn = "UPDATE outbox_control SET last_token = last_token + :number RETURNING epoch * :step + last_token"
        if (version := run(drawn, number=number, step=EPOCH_STEP).scalar_one_or_none()) is None:
            run("INSERT INTO outbox_control (id) VALUES (1)")  # tables created without a migration
            version = run(drawn, number=number, step=EPOCH_STEP).scalar_one()
        return int(version)

    def timeline(self, run: Run) -> str | None:  # noqa: ARG002
        """An older file is told by what the indexes hold."""
        return None

    def highest_version(self, run: Run) -> int:
        found = run("SELECT epoch * :step + last_token FROM outbox_control", step=EPOCH_STEP).scalar_one_or_none()
        return EPOCH_STEP if found is None else int(found)

    def raise_tokens(self, run: Run, last: int) -> None:
        run("INSERT INTO outbox_control (id) VALUES (1) ON CONFLICT DO NOTHING")
        run("UPDATE outbox_control SET last_token = max(last_token, :last)", last=last)

    def signal(self, run: Run) -> int:
        """4 µs a look. Never changes by a commit of this connection."""
        return int(run("PRAGMA data_version").scalar_one())

    def until_announced_ends(self, run: Run) -> None:
        """What cannot be seen yet is not committed."""

    def reading(self, run: Run) -> contextlib.AbstractContextManager[None]:  # noqa: ARG002
        """Readers wait for nobody."""
        return contextlib.nullcontext()

    def state(self, run: Run) -> int | None:
        """Read under the write lock, it is that of the view that the transaction has."""
        return self.signal(run)

    def watch(self, run: Run, engine: Engine) -> Watch | None:
        """Other journals are removed by a commit, not written."""
        return watch_of(path_of(engine)) if run("PRAGMA journal_mode").scalar_one() == "wal" else None

    def schema_token(self, run: Run) -> int:
        """One look into the file's header."""
        return int(run("PRAGMA schema_version").scalar_one())

    def exists(self, engine: Engine) -> bool:
        path = path_of(engine)
        return path is None or path.exists()

    def identity(self, engine: Engine) -> object:
        """Open connections keep reading a file that was removed."""
        if (path := path_of(engine)) is None:
            return None
        try:
            found = path.stat()
        except OSError as error:
            raise DatabaseUnavailable(
                f"database {self.address(engine)} cannot be opened: {error.strerror}; check OUTBOX_DATABASE_URL"
            ) from error
        return found.st_dev, found.st_ino

    def presence(self, engine: Engine) -> LockFiles:
        # A database in memory has no other processes.
        return LockFiles(path_of(engine) or Path(tempfile.gettempdir(), f"outbox-{os.getpid()}"))

    def sizes(self, run: Run, engine: Engine) -> Sizes:
        used, free = run(
            "SELECT page_count * page_size, freelist_count * page_size"
            " FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()"
        ).one()
        return Sizes(int(used), int(free), _log_bytes(engine))

    def checkpoint(self, run: Run, engine: Engine) -> None:
        """Move the write-ahead log into the database, as far as no reader is in the way.

        The file of the log is used anew from its beginning only when no reader looks into it at that moment, which
        under steady traffic may never be. So a large one is emptied, if all readers let go of it soon enough; writers
        wait that long.
        """
        _, frames, moved = run("PRAGMA wal_checkpoint(PASSIVE)").one()
        if moved < frames or _log_bytes(engine) < LARGE_WAL_BYTES:
            return
        patience = run("PRAGMA busy_timeout").scalar_one()
        run(f"PRAGMA busy_timeout = {EMPTY_WAL_WITHIN_MS}")
        try:
            run("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            run(f"PRAGMA busy_timeout = {patience}")

    def malformed(self, run: Run) -> list[tuple[int, dict[str, str]]]:
        return malformed.rows(run)

    def mend_numbers(self, run: Run, now: int) -> None:
        malformed.mend_numbers(run, now)

    def is_row_fault(self, error: BaseException | None) -> bool:
        # SQLite takes any bytes for text, also those of a program that does not write UTF-8.
        return str(error).startswith("Could not decode to UTF-8")

    on_error = staticmethod(engines.on_error)

    def explain(self, error: DBAPIError, connection: Connection) -> None:
        name_holder(error, _file_of(connection))

    def findings(self, engine: Engine) -> list[Finding]:
        return findings(engine)

    # -- in the transaction of an application ---------------------------------------------------------------------

    @contextlib.contextmanager
    def migrating(self, engine: Engine) -> Iterator[Connection]:
        with engine.begin() as connection:
            engines.take_for(connection)
            yield connection

    engine_within = staticmethod(nested.engine_within)

    def lock(self, connection: Connection) -> None:
        engines.take_for(connection)

    def is_locked(self, connection: Connection) -> bool:
        return lock.is_held(connection)

    def when_locked(self, connection: Connection, call: Callable[[], None]) -> None:
        if engines.is_prepared(connection):
            lock.when_taken(connection, call)
        else:  # its driver begins by itself, and no listener hears of it
            call()

    def require_transaction(self, connection: Connection) -> None:
        """See `insert`."""

    def announce_end(self, connection: Connection) -> None:
        """Nobody writes beside it."""

    insert = staticmethod(inserts.insert)
    insert_selected = staticmethod(inserts.insert_selected)

    def schema_token_in(self, connection: Connection) -> int:
        return inserts.schema_token(connection)

    def highest_id_in(self, connection: Connection) -> int:
        return inserts.highest_id(connection)

    def written_since(self, connection: Connection, highest_id: int) -> Sequence[int]:
        """There is one writer, so all of them are its own."""
        return range(highest_id + 1, inserts.highest_id(connection) + 1)


def _empty_the_log_sooner(dbapi_connection: Any, _record: Any) -> None:
    cursor = dbapi_connection.cursor()
    cursor.execute(f"PRAGMA wal_autocheckpoint = {AUTOCHECKPOINT_PAGES}")
    cursor.close()


def _file_of(connection: Connection) -> Path | None:
    """As `path_of`, for every transaction: what a prepared connection found when it opened the file costs no look."""
    info = connection.info
    return info[lock.FILE] if lock.FILE in info else path_of(connection.engine)


def _log_bytes(engine: Engine) -> int:
    path = path_of(engine)
    try:
        return beside(path, "-wal").stat().st_size if path else 0
    except FileNotFoundError:
        return 0
