"""The outbox tables, over one connection: what is the same for everybody who works with them.

What one audience asks of them stands in a room of its own, as functions of a store: `claims` and `evidence` are a
relay's, `upkeep` is maintenance's, `operators` theirs, `verifications` those of `verify`, `jobs` those of a reindex.
The dashboard has a store of its own with what it asks: `figures`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, CursorResult, Engine
from sqlalchemy.exc import DBAPIError, OperationalError

from outbox.errors import DatabaseUnavailable, SchemaError
from outbox.store.models import FRESH, HELD, VERSION_TABLE, WAITING, version

MAX_ERROR_CHARS = 2_000

_LOCK_SHARE = 5

_WITH_DOCUMENTS = (
    "SELECT e.*, CAST(d.document AS BLOB) AS document"  # another program may have written other bytes than UTF-8
    " FROM outbox_events AS e LEFT JOIN outbox_documents AS d ON d.event_id = e.id"
)

_COUNTED = {
    "fresh": FRESH,
    "waiting": WAITING,
    "leases": "state = 'claimed'",
    "done": "state = 'done'",
    "dead": "state = 'dead'",
}


@dataclass(frozen=True, slots=True)
class Control:
    """What holds for all relays."""

    epoch: int
    highest_pruned_version: int
    paused_at: int | None
    paused_by: str | None
    pause_reason: str | None


class Store:
    """The outbox tables, over one connection of its own. For one thread at a time.

    Every method is one short transaction, or says that it is part of one. Raises `DatabaseUnavailable` when the
    database is locked for longer than its busy timeout, full, or gone; nothing was changed then.
    """

    def __init__(self, engine: Engine) -> None:
        try:
            self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        except DBAPIError as error:
            raise DatabaseUnavailable(
                f"database {engine.url.database} cannot be opened: {error.orig}; check OUTBOX_DATABASE_URL"
            ) from error
        self._pinned: tuple[int, str | None] | None = None

    @property
    def connection(self) -> Connection:
        """For reading what the application wrote, in between."""
        return self._connection

    @property
    def path(self) -> Path:
        """The file of the database."""
        return Path(str(self._connection.engine.url.database))

    def close(self) -> None:
        self._connection.close()

    def run(self, sql: str, *parameters: Any) -> CursorResult[*tuple[Any, ...]]:
        """One statement, with what its `?` stand for, or with a dict by names."""
        given = parameters[0] if len(parameters) == 1 and isinstance(parameters[0], dict) else parameters
        try:
            return self._connection.exec_driver_sql(sql, given or None)
        except OperationalError as error:
            raise DatabaseUnavailable(f"database: {error.orig}") from error

    @contextmanager
    def write(self, *, durable: bool) -> Iterator[None]:
        """A short write transaction. `durable`: on disk when it returns, with everything committed before it."""
        self.run(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        self.run("BEGIN IMMEDIATE")
        try:
            yield
            self.run("COMMIT")  # on a full disk this may fail and leave the transaction open, with its lock
        except BaseException:
            with suppress(DatabaseUnavailable):  # some errors have ended the transaction already
                self.run("ROLLBACK")
            raise

    # -- the revision of the tables -----------------------------------------------------------------------------

    def pin(self) -> None:
        """From now on `claim`, and a reindex, refuse tables of another revision than they have now.

        What a migration adds may change where rows go: a relay that does not know it must not deliver any.
        """
        self._pinned = (self.schema_version(), self._revision())

    def require_pinned(self) -> None:
        """Raises `SchemaError` if the tables have come to another revision."""
        if self._pinned is None or (schema_version := self.schema_version()) == self._pinned[0]:
            return
        at, revision = self._pinned[1], self._revision()  # any CREATE or ALTER of the application leads here, too
        if revision != at:
            raise SchemaError(
                f"database {self.path} came to revision {revision} while this process worked with {at}, and it "
                "ends: start outbox-relay of the version that knows it; until then rows wait"
            )
        self._pinned = (schema_version, at)

    def schema_version(self) -> int:
        """A number that changes with every CREATE, ALTER and DROP. Costs one look into the file's header."""
        return int(self.run("PRAGMA schema_version").scalar_one())

    def _revision(self) -> str | None:
        """None where other migrations made the tables."""
        if not self.run("SELECT count(*) FROM sqlite_master WHERE name = ?", VERSION_TABLE).scalar_one():
            return None
        revision: str | None = self.run(f"SELECT version_num FROM {VERSION_TABLE}").scalar_one_or_none()
        return revision

    # -- what holds for all -------------------------------------------------------------------------------------

    def control(self) -> Control:
        """What holds for all relays; the defaults when the row is missing (tables created without a migration)."""
        row = self.run(
            "SELECT epoch, highest_pruned_version, paused_at, paused_by, pause_reason FROM outbox_control"
        ).one_or_none()
        return Control(*tuple(row)) if row else Control(1, 0, None, None, None)

    def raise_epoch(self, above: int, now: int) -> int:
        """Make the epoch one above `above` and the current one, and release every claim. Inside `write`."""
        self.run("INSERT OR IGNORE INTO outbox_control (id) VALUES (1)")
        epoch = max(self.control().epoch, above) + 1
        self.run("UPDATE outbox_control SET epoch = ?", epoch)
        self.run(
            "UPDATE outbox_events SET state = 'pending', available_at = ?, claim_token = NULL,"
            " claimed_by = NULL, lease_expires_at = NULL WHERE state = 'claimed'",
            now,
        )
        return epoch

    def highest_id(self) -> int:
        """The highest id that was issued so far."""
        return int(
            self.run("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'outbox_events'").scalar_one()
        )

    def raise_ids(self, last: int) -> None:
        """Have all further ids be higher than `last`. Inside `write`."""
        known = self.run("UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'outbox_events'", last).rowcount
        if not known:
            self.run("INSERT INTO sqlite_sequence (name, seq) VALUES ('outbox_events', ?)", last)

    def commits_elsewhere(self) -> int:
        """A number that changes when another connection commits, and never by a commit of this one."""
        return int(self.run("PRAGMA data_version").scalar_one())

    # -- where rows go ------------------------------------------------------------------------------------------

    def targets(self) -> dict[str, str]:
        """The physical index that decides what becomes of the rows of each index."""
        found = self.run("SELECT index_name, physical_index FROM outbox_indexes WHERE role = 'live'")
        return {row[0]: row[1] for row in found}

    def copies(self) -> dict[str, tuple[str, ...]]:
        """The other physical indexes that rows go to: see `outbox.reindex`."""
        found: dict[str, tuple[str, ...]] = {}
        for name, target in self.run("SELECT index_name, physical_index FROM outbox_indexes WHERE role <> 'live'"):
            found[name] = (*found.get(name, ()), target)
        return found

    def index_names(self) -> set[str]:
        """Every index that rows name, also those that no relay has looked up so far (or that a restore forgot)."""
        found = self.run("SELECT index_name FROM outbox_indexes UNION SELECT index_name FROM outbox_events")
        return {row[0] for row in found}

    def register_index(self, name: str, target: str) -> None:
        """Note where the rows of an index go; whoever was first decides."""
        with self.write(durable=True):
            self.run(
                "INSERT INTO outbox_indexes (index_name, physical_index) SELECT ?, ?"
                " WHERE NOT EXISTS (SELECT 1 FROM outbox_indexes WHERE index_name = ?)",
                name,
                target,
                name,
            )

    # -- rows ---------------------------------------------------------------------------------------------------

    def event(self, event_id: int) -> dict[str, Any] | None:
        """One row with its document, or None."""
        row = self.run(f"{_WITH_DOCUMENTS} WHERE e.id = ?", event_id).mappings().one_or_none()
        return _shown(dict(row)) if row else None

    def events(self, *, index: str | None = None, document_id: str | None = None) -> list[dict[str, Any]]:
        """All rows with their documents in the order of their ids, narrowed by what is given."""
        rows = self.run(
            f"{_WITH_DOCUMENTS} WHERE (:index IS NULL OR index_name = :index)"
            " AND (:document IS NULL OR document_id = :document) ORDER BY e.id",
            {"index": index, "document": document_id},
        )
        return [_shown(dict(row)) for row in rows.mappings()]

    def counts(self) -> dict[str, int]:
        """Number of rows by state."""
        fresh, waiting, claimed, done, dead = self._counted(*_COUNTED)
        return {"pending": fresh + waiting, "claimed": claimed, "done": done, "dead": dead}

    def _counted(self, *names: str) -> Sequence[int]:
        """Number of entries of these indexes: a tenth of the time that a walk through the table takes."""
        counts = (
            f"(SELECT count(*) FROM outbox_events INDEXED BY ix_outbox_events_{name} WHERE {_COUNTED[name]})"
            for name in names
        )
        return tuple(self.run(f"SELECT {', '.join(counts)}").one())

    def unfinished(self) -> int:
        """Rows that are pending or claimed."""
        return int(
            self.run(
                f"SELECT (SELECT count(*) FROM outbox_events INDEXED BY ix_outbox_events_fresh WHERE {FRESH})"
                f" + (SELECT count(*) FROM outbox_events INDEXED BY ix_outbox_events_held WHERE {HELD})"
            ).scalar_one()
        )

    def any_unfinished(self, index: str) -> bool:
        """Whether a row of the index is pending or claimed."""
        return bool(
            self.run(
                "SELECT EXISTS (SELECT 1 FROM outbox_events INDEXED BY ix_outbox_events_fresh"
                f" WHERE {FRESH} AND index_name = :index)"
                " OR EXISTS (SELECT 1 FROM outbox_events INDEXED BY ix_outbox_events_held"
                f" WHERE ({HELD}) AND index_name = :index)",
                {"index": index},
            ).scalar_one()
        )

    def oldest_unfinished(self) -> int | None:
        """When the oldest row that is pending or claimed was written."""
        oldest: int | None = self.run(
            "SELECT created_at FROM outbox_events WHERE id = (SELECT min(id) FROM ("
            f" SELECT min(id) AS id FROM outbox_events INDEXED BY ix_outbox_events_fresh WHERE {FRESH}"
            f" UNION ALL SELECT min(id) FROM outbox_events INDEXED BY ix_outbox_events_held WHERE {HELD}))"
        ).scalar_one_or_none()
        return oldest

    def remove(self, ids: Sequence[int]) -> int:
        """Delete rows, and remember the highest version among them that may stand in an index. Inside `write`."""
        listed = json.dumps(ids)
        highest = self.run(
            "SELECT max(id) FROM outbox_events WHERE deliveries > 0 AND id IN (SELECT value FROM json_each(?))", listed
        ).scalar_one()
        if highest:
            self.run("INSERT OR IGNORE INTO outbox_control (id) VALUES (1)")
            self.run(
                "UPDATE outbox_control SET highest_pruned_version = max(highest_pruned_version, ?)",
                version(self.control().epoch, highest),
            )
        self.run("DELETE FROM outbox_documents WHERE event_id IN (SELECT value FROM json_each(?))", listed)
        return int(self.run("DELETE FROM outbox_events WHERE id IN (SELECT value FROM json_each(?))", listed).rowcount)

    # -- the list of relays -------------------------------------------------------------------------------------

    def enlist(self, host: str, pid: int, software: str, now: int) -> int:
        """Enter a relay in the list. Returns its id."""
        with self.write(durable=False):
            return int(
                self.run(
                    "INSERT INTO outbox_relays (host, pid, version, started_at, heartbeat_at) VALUES (?, ?, ?, ?, ?)",
                    host,
                    pid,
                    software,
                    now,
                    now,
                ).lastrowid
            )

    def heartbeat(self, relay: int, breakers: Sequence[Mapping[str, Any]], now: int) -> None:
        """Say that a relay is alive, and what it has paused."""
        with self.write(durable=False):
            self.run(
                "UPDATE outbox_relays SET heartbeat_at = ?, breakers = ? WHERE id = ?",
                now,
                json.dumps(list(breakers)),
                relay,
            )

    def delist(self, relays: Iterable[int]) -> None:
        """Take relays off the list."""
        with self.write(durable=False):
            self.run("DELETE FROM outbox_relays WHERE id IN (SELECT value FROM json_each(?))", json.dumps(list(relays)))

    def relays(self) -> list[dict[str, Any]]:
        """All listed relays."""
        rows = self.run("SELECT * FROM outbox_relays ORDER BY id").mappings()
        return [{**row, "breakers": json.loads(row["breakers"])} for row in rows]

    # -- sizes --------------------------------------------------------------------------------------------------

    def wal_bytes(self) -> int:
        """Size of the write-ahead log beside the database."""
        try:
            return self.path.with_name(f"{self.path.name}-wal").stat().st_size
        except FileNotFoundError:
            return 0

    def file_bytes(self) -> int:
        """Size of the database file, without its write-ahead log."""
        return int(self.run("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()").scalar_one())

    def free_bytes(self) -> int:
        """How much of the file is empty, and used again before it grows."""
        free = self.run("SELECT freelist_count * page_size FROM pragma_freelist_count(), pragma_page_size()")
        return int(free.scalar_one())


def pause_after(began: float) -> float:
    """How many seconds to leave the write lock to others after a step that began then, by `time.monotonic`.

    What works in many steps holds it for about a fifth of its time: SQLite hands the lock to whoever asks at the right
    moment, so a writer must find it free more often than not.
    """
    return (time.monotonic() - began) * (_LOCK_SHARE - 1)


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose document is text, whatever its bytes are."""
    document = row["document"]
    return {**row, "document": document and document.decode(errors="backslashreplace")}


def printable(error: str | None) -> str | None:
    """At most 2,000 characters, control characters escaped, so that no error can forge a line."""
    if error is None or error.isprintable():
        return error and error[:MAX_ERROR_CHARS]
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in error[:MAX_ERROR_CHARS])
    return escaped[:MAX_ERROR_CHARS]
