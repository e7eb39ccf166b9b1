"""PostgreSQL, behind the seam: many writers, whose ids follow no commits, and a server that others share."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from outbox.errors import DatabaseUnavailable, in_one_line
from outbox.store.dialect import Finding, Hold, Run, Sizes, Watch
from outbox.store.models import EPOCH_STEP
from outbox.store.postgresql import engine as engines
from outbox.store.postgresql import inserts, nested, statements
from outbox.store.postgresql.ddl import TOKENS
from outbox.store.postgresql.findings import findings
from outbox.store.postgresql.presence import Locks

STEP_ROWS: Final = 1_000

ALONE: Final = 0x6F7574626F78  # "outbox"
"""The advisory lock of those that must not run side by side. Applications never take it."""

ENDING: Final = ALONE + 1
"""Applications share it for the last moments of a transaction; nobody takes it alone, so that nobody waits."""

RECORDING: Final = ALONE + 2
"""Shared by those that change rows of their claim and take `ALONE` then. Who changes rows that others have claimed, or
the tables, takes it before `ALONE`, so that neither has what the other waits for."""

ENDING_WITHIN_S: Final = 5.0
ENDING_LOOK_S: Final = 0.002

WATERMARK_WITHIN_S: Final = 60.0
WATERMARK_LOOK_S: Final = 0.02

FAR_ABOVE: Final = 1_000_000

NEWEST: Final = 100
"""Of so many of the highest ids `signal` tells also if they are committed later than others."""

_EPOCH: Final = "coalesce((SELECT epoch FROM outbox_control), 1) * CAST(:step AS BIGINT)"

_TIMELINE: Final = "substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"

# The statements of a claim take longer to plan than to carry out, and get no better plan for what they are given. For
# the commit see `flush`.
_BEGIN: Final = "BEGIN; SET LOCAL synchronous_commit = off; SET LOCAL plan_cache_mode = force_generic_plan"

_TAKE_TURN: Final = f"SELECT pg_advisory_xact_lock({ALONE})"
_SETTLED: Final = f"SELECT pg_advisory_xact_lock({RECORDING})"
_TAKE_TURN_SETTLED: Final = f"{_SETTLED}; {_TAKE_TURN}"

# Who has the table open for writing. A prepared transaction has no process, but a lock on its own number.
_WRITERS: Final = (
    "SELECT l.virtualtransaction, coalesce('process ' || l.pid, 'prepared as ' || quote_literal((SELECT x.gid"
    " FROM pg_prepared_xacts AS x JOIN pg_locks AS own ON own.transactionid = x.transaction"
    " WHERE own.virtualtransaction = l.virtualtransaction AND own.pid IS NULL)), 'a prepared one')"
    " FROM pg_locks AS l WHERE l.locktype = 'relation' AND l.granted AND l.relation = 'outbox_events'::regclass"
    " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')"
    " AND l.pid IS DISTINCT FROM pg_backend_pid()"
)

# Who has announced its end; one that is prepared has no process, and may stay so.
_ENDING: Final = (
    "SELECT virtualtransaction, pid FROM pg_locks WHERE locktype = 'advisory' AND pid IS NOT NULL AND objsubid = 1"
    f" AND classid = {ENDING >> 32} AND objid = {ENDING & 0xFFFFFFFF}"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def _still_open(run: Run, asked: str, within_s: float, every_s: float) -> Collection[str]:
    """What is said of those transactions of a SELECT that have not ended within so many seconds. One that is prepared
    meanwhile has not: it keeps its number."""
    left, deadline = {row[0]: row[1] for row in run(asked)}, time.monotonic() + within_s
    while left and time.monotonic() <= deadline:
        time.sleep(every_s)
        left = {row[0]: row[1] for row in run(asked) if row[0] in left}
    return left.values()


class PostgreSQL:
    """See `outbox.store.dialect.Dialect` for what each of these promises."""

    ids_follow_commits = False
    on_error = staticmethod(engines.on_error)
    reading = staticmethod(engines.reading)

    # -- a statement ----------------------------------------------------------------------------------------------

    prepared = staticmethod(statements.prepared)

    def cursor(self, driver: Any, parameters: Any) -> Any:
        """Documents come as they are, and not in hexadecimal; not for several statements at once, which are text."""
        return driver.cursor(binary=bool(parameters))

    def among(self, name: str) -> str:
        return f"= ANY (:{name})"

    def outside(self, name: str) -> str:
        return f"<> ALL (:{name})"

    def table(self, name: str, /, **columns: str) -> str:
        arrays = ", ".join(statements.column(name, at, kind) for at, kind in enumerate(columns.values()))
        return f"(SELECT * FROM unnest({arrays}) WITH ORDINALITY AS given ({', '.join(columns)}, place))"

    def indexed(self, index: str) -> str:  # noqa: ARG002
        """It finds the index by the condition, which is that of the index to the letter."""
        return ""

    def of_each(self, alias: str, ids: str) -> str:
        return f"CROSS JOIN LATERAL ({ids}) AS {alias}"

    def looked_up(self, alias: str, id_: str) -> str:
        """A join could be planned as one that reads the whole table, when that was small or while its statistics are of
        yesterday; what has a limit of its own is no part of a join."""
        return f"CROSS JOIN LATERAL (SELECT * FROM outbox_events WHERE id = {id_} LIMIT 1) AS {alias}"

    def greatest(self, *values: str) -> str:
        return f"greatest({', '.join(values)})"

    def least(self, *values: str) -> str:
        return f"least({', '.join(values)})"

    def same(self, first: str, second: str) -> str:
        return f"({first} = {second} OR {first} IS NULL AND {second} IS NULL)"

    def as_bytes(self, text: str) -> str:
        return f"convert_to({text}, 'UTF8')"

    # -- acts -----------------------------------------------------------------------------------------------------

    def address(self, engine: Engine) -> str:
        """Without user, password and options."""
        url = engine.url
        host = url.host or url.query.get("host") or "localhost"
        return f"{url.database or url.username or ''} on {host}{f':{url.port}' if url.port else ''}"

    def guard(self, engine: Engine, *, create: bool) -> None:
        """No connection makes a database."""

    def is_prepared(self, engine: Engine) -> bool:  # noqa: ARG002
        """Those of applications need nothing."""
        return True

    def prepare(self, engine: Engine) -> None:
        engines.prepare(engine, self.address(engine))

    def begin(self, run: Run, connection: Connection, *, alone: bool, last: Hold) -> None:  # noqa: ARG002
        """The lock is a statement of its own: what comes after it sees what its holders before have committed."""
        begin = f"{_BEGIN}; {_TAKE_TURN}" if alone else _BEGIN
        try:
            run(begin)
        except DatabaseUnavailable:
            ended = connection.invalidated
            with suppress(DatabaseUnavailable):
                run("ROLLBACK")
            if not ended:
                raise
            run(begin)  # its session was ended while nobody used it: nothing is done so far

    def recording(self, run: Run) -> None:
        run(f"SELECT pg_advisory_xact_lock_shared({RECORDING})")

    def take_turn(self, run: Run, *, settled: bool) -> None:
        run(_TAKE_TURN_SETTLED if settled else _TAKE_TURN)

    def step_rows(self, connection: Connection) -> int:  # noqa: ARG002
        """No application waits for rows that relays change."""
        return STEP_ROWS

    def flush(self, run: Run, connection: Connection) -> None:  # noqa: ARG002
        """A commit that waits for the disk, or for what else the server is set to; all before it is there as well."""
        run("SELECT pg_logical_emit_message(true, 'outbox', '')")

    def temporary(self, run: Run, name: str, /, **columns: str) -> None:
        typed = ", ".join(f"{column} {kind}" for column, kind in columns.items())
        run(f"CREATE TEMP TABLE IF NOT EXISTS {name} ({typed}, PRIMARY KEY ({', '.join(columns)}))")
        run(f"TRUNCATE pg_temp.{name}")

    def highest_id(self, run: Run) -> int:
        return int(run(inserts.HIGHEST_ID).scalar_one())

    def watermark(self, run: Run) -> int:
        """Waits for the transactions that have the table open now, and keeps nobody waiting: an id is issued after the
        table is open. Raises `DatabaseUnavailable` if one of them does not end."""
        highest = self.highest_id(run)
        if left := _still_open(run, _WRITERS, WATERMARK_WITHIN_S, WATERMARK_LOOK_S):
            raise DatabaseUnavailable(
                f"database: transactions that write outbox rows are open for more than {WATERMARK_WITHIN_S:.0f} s "
                f"({', '.join(sorted(left))}); end them, or try again when they are over"
            )
        return highest

    def draw_version(self, run: Run, number: int) -> int | None:
        """Of a sequence: nobody waits for the transactions of others that draw, and none is drawn twice, but where a
        standby that lacks the last ones has taken over."""
        drawn: int | None = run(
            f"SELECT CASE WHEN control.timeline IS NULL OR control.timeline = {_TIMELINE} THEN {_EPOCH} +"
            f" (SELECT max(nextval('{TOKENS}')) FROM generate_series(1, :number)) END"
            " FROM (SELECT 1) AS one LEFT JOIN outbox_control AS control ON true",
            step=EPOCH_STEP,
            number=number,
        ).scalar_one()
        return drawn

    def timeline(self, run: Run) -> str | None:
        """The first part of the name of the file that is written to. Some services that only speak like PostgreSQL have
        no such files."""
        try:
            return str(run(f"SELECT {_TIMELINE}").scalar_one())
        except DBAPIError:
            return None

    def highest_version(self, run: Run) -> int:
        drawn = "last_value - CASE WHEN is_called THEN 0 ELSE 1 END"
        return int(run(f"SELECT {_EPOCH} + {drawn} FROM {TOKENS}", step=EPOCH_STEP).scalar_one())

    def raise_tokens(self, run: Run, last: int) -> None:
        """Far above what others draw meanwhile: to lock the sequence would keep them waiting."""
        run(
            f"SELECT setval('{TOKENS}', greatest(:last, last_value + {FAR_ABOVE})) FROM {TOKENS}"
            " WHERE last_value < :last",
            last=last,
        )

    def until_announced_ends(self, run: Run) -> None:
        """A process that stands still in these moments is not waited for any longer: its host may be gone."""
        _still_open(run, _ENDING, ENDING_WITHIN_S, ENDING_LOOK_S)

    def signal(self, run: Run) -> int:
        """The highest id that can be seen, and how many of the ids below it: a lower one may be committed later."""
        highest, seen = run(
            "SELECT newest.id, (SELECT count(*) FROM outbox_events AS e"
            f" WHERE e.id > newest.id - {NEWEST} AND e.id <= newest.id)"
            " FROM (SELECT coalesce(max(id), 0) AS id FROM outbox_events) AS newest"
        ).one()
        return int(highest) * (NEWEST + 1) + int(seen)

    def state(self, run: Run) -> int:  # noqa: ARG002
        """Always the same: no relay claims between a look and its claim, and whatever is committed after one with a
        higher id comes as late in between as right after the claim."""
        return 0

    def watch(self, run: Run, engine: Engine) -> Watch | None:  # noqa: ARG002
        """To be notified costs writers more than a look: NOTIFY lets one transaction commit at a time."""
        return None

    def schema_token(self, run: Run) -> int:
        return inserts.token_of(run(inserts.SCHEMA).one())

    def exists(self, engine: Engine) -> bool:  # noqa: ARG002
        return True

    def identity(self, engine: Engine) -> object:
        try:
            with engine.connect() as connection:
                found = connection.exec_driver_sql(
                    "SELECT (SELECT system_identifier FROM pg_control_system()), oid FROM pg_database"
                    " WHERE datname = current_database()"
                ).one()
        except DBAPIError as error:
            raise DatabaseUnavailable(
                f"database {self.address(engine)} cannot be opened: {in_one_line(error.orig)}; "
                "check OUTBOX_DATABASE_URL"
            ) from error
        return tuple(found)

    def presence(self, engine: Engine) -> Locks:
        return Locks(engine)

    def sizes(self, run: Run, engine: Engine) -> Sizes:  # noqa: ARG002
        return Sizes(int(run("SELECT pg_database_size(current_database())").scalar_one()), 0, 0)

    def checkpoint(self, run: Run, engine: Engine) -> None:
        """The server sees to it."""

    def malformed(self, run: Run) -> list[tuple[int, dict[str, str]]]:  # noqa: ARG002
        """A column holds nothing but its type."""
        return []

    def mend_numbers(self, run: Run, now: int) -> None:
        """None needs it."""

    def is_row_fault(self, error: BaseException | None) -> bool:
        """A value that server, driver or an expression cannot deal with."""
        return any(each.__name__ == "DataError" for each in type(error).__mro__)  # of whichever driver

    def explain(self, error: DBAPIError, connection: Connection) -> None:
        """The server's own words say it."""

    def findings(self, engine: Engine) -> list[Finding]:
        return findings(engine, self.address(engine))

    # -- in the transaction of an application ---------------------------------------------------------------------

    @contextmanager
    def migrating(self, engine: Engine) -> Iterator[Connection]:
        """Whatever the engine of an application does: with a snapshot of its own, one that has waited would not see the
        tables that another has just made, and one in AUTOCOMMIT would neither wait nor be undone as a whole."""
        with engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
            for statement in (_SETTLED, _TAKE_TURN):  # one by one: asyncpg takes no several at once
                connection.exec_driver_sql(statement)
            yield connection

    engine_within = staticmethod(nested.engine_within)

    def lock(self, connection: Connection) -> None:
        """There is none: an application waits for nobody that only the outbox knows of."""

    def is_locked(self, connection: Connection) -> bool:  # noqa: ARG002
        return False

    def when_locked(self, connection: Connection, call: Callable[[], None]) -> None:  # noqa: ARG002
        call()

    def announce_end(self, connection: Connection) -> None:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock_shared({ENDING})")

    require_transaction = staticmethod(inserts.require_transaction)
    insert = staticmethod(inserts.insert)
    insert_selected = staticmethod(inserts.insert_selected)

    def schema_token_in(self, connection: Connection) -> int:
        return inserts.schema_token(connection)

    def highest_id_in(self, connection: Connection) -> int | None:
        return inserts.highest_id(connection)

    def written_since(self, connection: Connection, highest_id: int) -> Sequence[int]:
        return inserts.written_since(connection, highest_id)
