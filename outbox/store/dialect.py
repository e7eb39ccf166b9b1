"""The seam: what each database has to say and do in its own way. Everything else is the same SQL for all of them.

Fragments are parts of a statement. Acts take `run`, which carries out one statement as `Store.run` does.
What an implementation may rely on is what this page promises, and no caller may rely on more: not on a single
writer, not on ids without gaps, not on a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection, Engine, ExceptionContext, Insert
from sqlalchemy.exc import DBAPIError

from outbox.store.found import Found

Row = tuple[str, str, str, str | None, str | None, int, int]
"""A row to insert: `action, index_name, document_id, tenant_id, entity, document_bytes, created_at`."""

Level = Literal["ok", "warn", "fail"]
Name = TypeVar("Name", int, str)


class Run(Protocol):
    """`Store.run`."""

    def __call__(self, sql: str, parameters: Mapping[str, Any] | None = None, /, **named: Any) -> Found: ...


class Hold(NamedTuple):
    """A write transaction that has ended: when, by the monotonic clock, and how long it had the lock; in seconds."""

    ended: float
    seconds: float


class Sizes(NamedTuple):
    """Bytes of a database: `used` with what is empty inside, `free` of it, and of its `log` where that grows."""

    used: int
    free: int
    log: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `check` has looked at. `remedy` is empty when it is ok."""

    name: str
    level: Level
    found: str
    remedy: str = ""


def finding(name: str, good: bool, found: str, remedy: str, otherwise: Level = "fail") -> Finding:
    """Ok, or what is to be done."""
    return Finding(name, "ok", found) if good else Finding(name, otherwise, found, remedy)


class Held(Protocol):
    """A sign that a process is there, until `end` or until the process has ended."""

    def keep(self) -> None:
        """Show it again where it was lost and the process was not."""

    def end(self) -> None: ...


class Watch(Protocol):
    """Tells of writes to the database, by a file descriptor that becomes readable. More than commits may do that, and
    a commit may become visible a little later."""

    def fileno(self) -> int: ...

    def read(self) -> bool:
        """Whether something was written since the last call. Raises `OSError` if it will tell of nothing any more."""

    def close(self) -> None: ...


class Presence(Protocol):
    """How processes of one database know that another was killed, sooner than its lease expires.

    `kind` is "relay" (named by its id) or "reindex" (named by its lease).
    """

    def hold(self, kind: str, name: int | str) -> Held:
        """Show that this process is there. Where that cannot be done it warns, and leases alone decide."""

    def dead(self, kind: str, names: Iterable[Name]) -> list[Name]:
        """Those whose process has ended for sure, without `end`. Not one that is stopped, or never showed itself."""

    def live(self, kind: str, names: Iterable[Name]) -> list[Name]:
        """Those whose process is there, even if it is stopped and gives no sign of life."""

    def remove_locks(self, kind: str, names: Iterable[Name]) -> None:
        """Remove what dead ones left behind, once what they held has been given back: they are not `dead` then."""


class Dialect(Protocol):
    """One kind of database. Has no state: one object serves every store."""

    ids_follow_commits: bool
    """Whether no row is committed after one with a higher id: one transaction writes at a time."""

    # -- a statement ----------------------------------------------------------------------------------------------

    def prepared(self, sql: str, parameters: Mapping[str, Any]) -> tuple[str, Any]:
        """A statement with `:name` parameters as the driver takes it. A list is one parameter: see `among`, `table`."""

    def cursor(self, driver: Any, parameters: Any) -> Any:
        """What carries out one such statement over a connection of the driver."""

    def among(self, name: str) -> str:
        """`id {among("ids")}`: whether a value is in the list of numbers or texts `:ids`."""

    def outside(self, name: str) -> str:
        """`id {outside("ids")}`: whether it is not."""

    def table(self, name: str, /, **columns: str) -> str:
        """`FROM {table("pairs", index_name="TEXT", id="BIGINT")} AS p`: the list of tuples `:pairs` as rows.

        `p.place`: the place of each in the list, from 1 on.
        """

    def indexed(self, index: str) -> str:
        """After a table and its alias: read it by `ix_outbox_events_{index}`."""

    def of_each(self, alias: str, ids: str) -> str:
        """`FROM lanes {of_each("f", "SELECT id … LIMIT 9")}`: with each of them `f.id`, what its own SELECT finds."""

    def looked_up(self, alias: str, id_: str) -> str:
        """`FROM heads {looked_up("h", "heads.id")}`: with each of them the row that it names, and no other is read."""

    def greatest(self, *values: str) -> str:
        """None of them may be NULL."""

    def least(self, *values: str) -> str:
        """None of them may be NULL."""

    def same(self, first: str, second: str) -> str:
        """Whether two values are equal, or both NULL; by an index of the first one."""

    def as_bytes(self, text: str) -> str:
        """A text as UTF-8 bytes (or whatever bytes another program has put there); `length` of it counts bytes."""

    # -- acts -----------------------------------------------------------------------------------------------------

    def address(self, engine: Engine) -> str:
        """Where the database is, for people: the absolute path of a file."""

    def guard(self, engine: Engine, *, create: bool) -> None:
        """Unless `create`, have the engine never make a database, also when it is removed later; call it before the
        first connection. Raises `ConfigurationError` if there is none, and if opening it would lock its owner out."""

    def is_prepared(self, engine: Engine) -> bool:
        """Whether that was done for an engine."""

    def prepare(self, engine: Engine) -> None:
        """Make every new connection of ours fit for the outbox; once, before the first one. Beside applications they
        tidy up before one of these has to."""

    def begin(self, run: Run, connection: Connection, *, alone: bool, last: Hold) -> None:
        """Begin a write transaction, once no application waits to write. `alone`: beside no other transaction that asks
        for it. `last`: the one before it, of this connection."""

    def recording(self, run: Run) -> None:
        """Note of a write transaction that it changes rows of a claim before it takes its turn."""

    def take_turn(self, run: Run, *, settled: bool) -> None:
        """Have a write transaction run beside no other one that asks for it, from here on. `settled`: nor beside one
        that is `recording`; it has changed nothing so far."""

    def step_rows(self, connection: Connection) -> int:
        """How many rows one write transaction may change: few where applications have to wait for it."""

    def flush(self, run: Run, connection: Connection) -> None:
        """Have on disk what this connection has committed, and everything committed before it. Holds no lock meanwhile.
        Raises `OSError`."""

    def temporary(self, run: Run, name: str, /, **columns: str) -> None:
        """Make an empty table of this connection's own; all of its columns are the key."""

    def highest_id(self, run: Run) -> int:
        """The highest id that was issued so far; rows with lower ones may still be uncommitted."""

    def watermark(self, run: Run) -> int:
        """The same once that is over: no row with an id up to it appears any more. Not in a transaction that has
        written rows itself."""

    def draw_version(self, run: Run, number: int) -> int | None:
        """The last of `number` new versions in a row, above all that were drawn before. Inside a write transaction
        that is `alone`, after their rows are locked; as durable as that is. None: the timeline is not that of the
        epoch."""

    def timeline(self, run: Run) -> str | None:
        """Which history of the server this is: another one since it failed over to a standby, or was restored to an
        earlier moment, and may lack what was committed last. None: nothing tells."""

    def highest_version(self, run: Run) -> int:
        """The highest version that was drawn so far."""

    def raise_tokens(self, run: Run, last: int) -> None:
        """Have all further versions of this epoch end in a higher number than `last`. Inside a write transaction."""

    def until_announced_ends(self, run: Run) -> None:
        """Wait for the transactions of applications that are about to be committed at this moment: some milliseconds,
        and never for those that were only prepared."""

    def reading(self, run: Run) -> AbstractContextManager[None]:
        """Around reads of the application's tables by the connection of `run`: one that somebody has locked for long,
        for a migration say, fails them, so that whoever reads can go on with others."""

    def signal(self, run: Run) -> int:
        """A number that changes when another connection commits rows: cheap enough to be asked every millisecond. It
        need not tell of a row that is committed long after others with higher ids."""

    def state(self, run: Run) -> int | None:
        """A number that changes whenever another connection has committed what a claim must not miss. Where it is the
        same inside of a write transaction, what was looked at before still holds. None: nothing tells."""

    def watch(self, run: Run, engine: Engine) -> Watch | None:
        """What tells when to ask for it. None: nothing does, ask often. Raises `OSError` where the system refuses."""

    def schema_token(self, run: Run) -> int:
        """A number that changes whenever a table is made or altered. Cheap as well."""

    def exists(self, engine: Engine) -> bool:
        """Whether there is a database at that address. Opens nothing."""

    def identity(self, engine: Engine) -> object:
        """What tells the database from another one that has taken its address, such as a file that was replaced.

        Raises `DatabaseUnavailable` if there is none at that address."""

    def presence(self, engine: Engine) -> Presence: ...

    def sizes(self, run: Run, engine: Engine) -> Sizes: ...

    def checkpoint(self, run: Run, engine: Engine) -> None:
        """What the database leaves to its users to tidy up, in a moment without load."""

    def malformed(self, run: Run) -> list[tuple[int, dict[str, str]]]:
        """Pending rows of other programs whose texts are none: id, and what can be shown instead, by column."""

    def mend_numbers(self, run: Run, now: int) -> None:
        """Make numbers of pending rows whole ones. Inside a write transaction."""

    def is_row_fault(self, error: BaseException | None) -> bool:
        """Whether the driver failed by what a row holds, and not by the database."""

    def on_error(self, context: ExceptionContext) -> None:
        """What SQLAlchemy's event `handle_error` means to an engine that is `prepare`d. Raises nothing."""

    def explain(self, error: DBAPIError, connection: Connection) -> None:
        """Have an error of a connection say more, where the database knows more: who holds a lock, say."""

    def findings(self, engine: Engine) -> list[Finding]:
        """Whether the database itself is as the outbox needs it, for `check`. Changes nothing.

        The last one is called "database" if that cannot be read, and is about something else otherwise."""

    # -- in the transaction of an application, through its own connection, and as cheap as can be ----------------

    def migrating(self, engine: Engine) -> AbstractContextManager[Connection]:
        """A transaction: until it ends no other one migrates the tables, none writes `alone`, none is `recording`."""

    def engine_within(self, connection: Connection) -> Engine:
        """An engine over this connection, whose transactions are savepoints where it has one open."""

    def lock(self, connection: Connection) -> None:
        """Take what lets one transaction at a time look and then write, where a database has such a lock; now, unless
        the transaction has it. Raises SQLAlchemy's `OperationalError`."""

    def is_locked(self, connection: Connection) -> bool:
        """Whether the transaction may hold that lock, and so keep a relay from its work."""

    def when_locked(self, connection: Connection, call: Callable[[], None]) -> None:
        """Have `call` called when the transaction takes it: now, if it has it or there is none."""

    def require_transaction(self, connection: Connection) -> None:
        """Raises `ConfigurationError` where the driver begins no transaction, and the application has begun none by
        itself; before a change, so that it is not committed without its rows. A database that tells only when a
        statement has been carried out refuses in `insert`."""

    def announce_end(self, connection: Connection) -> None:
        """Say that the transaction is about to be committed, see `until_announced_ends`. Nobody waits for anybody."""

    def insert(self, connection: Connection, rows: Sequence[Row], contents: Sequence[str] = ()) -> Sequence[int]:
        """Insert rows of one `created_at`, and their documents if any. Returns their ids, ascending, in the order of
        the rows. Raises `DatabaseUnavailable` or `SchemaError`, and `ConfigurationError` in AUTOCOMMIT. What says that
        the transaction is to be tried again (a deadlock, a lost connection) comes as SQLAlchemy raises it, where the
        database has such errors."""

    def insert_selected(
        self, connection: Connection, statement: Insert, parameters: Mapping[str, Any]
    ) -> Sequence[int]:
        """Insert the rows that a SELECT finds. Returns their ids, ascending."""

    def schema_token_in(self, connection: Connection) -> int:
        """`schema_token`, as the transaction sees it. Raises `DatabaseUnavailable`."""

    def highest_id_in(self, connection: Connection) -> int | None:
        """The highest id before the transaction wrote, or a lower one; None if its role may not ask. Raises
        `DatabaseUnavailable`."""

    def written_since(self, connection: Connection, highest_id: int) -> Sequence[int]:
        """Ids of the rows above that one which the transaction has written, whether by statements or triggers;
        ascending. Raises `DatabaseUnavailable`."""
