"""The tables, and the words that they hold.

A migration of the application may create them from `metadata` instead of `outbox-relay migrate`. All instants are
integers: milliseconds since 1970-01-01 UTC (read one with `datetime(created_at / 1000, 'unixepoch')`).
"""

from __future__ import annotations

import enum
import time
from typing import Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)

from outbox.store.ddl import KEPT_BY_KEY, NEVER_REUSED, Now, complete, some_rows
from outbox.store.drift import DriftKind

VERSION_TABLE: Final = "outbox_alembic_version"
"""Not Alembic's default name: two sets of migrations in one database must not share it."""

EPOCH_STEP: Final = 10**12
"""External version of a document: `epoch * EPOCH_STEP + token`, of which each claim draws one. They stay below it."""


class Action(enum.StrEnum):
    """What a row asks for."""

    INDEX = "index"  # the full document
    UPDATE = "update"  # fields to merge into the document
    DELETE = "delete"
    REFRESH = "refresh"  # whatever the database says of the entity when the row is delivered


class State(enum.StrEnum):
    """Where a row is on its way; docs/reference/rows.md draws the transitions."""

    PENDING = "pending"  # waits for a relay, or for its next attempt (`available_at`)
    CLAIMED = "claimed"  # a relay delivers it, until `lease_expires_at`
    DONE = "done"  # the destination holds what the row said, or something newer
    DEAD = "dead"  # given up; `error` says why; waits for `outbox-relay dead retry|discard`


class Result(enum.StrEnum):
    """How a done row came to its end (`outcome`)."""

    APPLIED = "applied"  # the document was written
    UNCHANGED = "unchanged"  # the destination held this very document, of an earlier row: nothing was written
    DELETED = "deleted"  # the document is gone, or was not there
    SUPERSEDED = "superseded"  # the destination already held something newer
    COALESCED = "coalesced"  # delivered together with a later row of the same document, or replaced by it
    RETRIED = "retried"  # a new row took the place of this one, which was dead


class Role(enum.StrEnum):
    """What a physical index is to the rows that are sent to it."""

    LIVE = "live"  # readers get it, and it decides what becomes of a row
    NEW = "new"  # it is being filled by a reindex: what it refuses ends the reindex, never a row
    OLD = "old"  # it was live before the last reindex, and is kept for a rollback: what it refuses is counted only


class JobState(enum.StrEnum):
    """Where a reindex is; there is one of an index at most that is open, see `OPEN_STATES`."""

    RUNNING = "running"
    FAILING = "failing"  # its new index is still to be removed
    CANCELLING = "cancelling"  # the same
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN_STATES: Final = (JobState.RUNNING, JobState.FAILING, JobState.CANCELLING)
OPEN_JOBS: Final = " OR ".join(f"state = '{state}'" for state in OPEN_STATES)

metadata = MetaData()

_INSTANT = BigInteger().with_variant(Integer, "sqlite")


def _one_of(column: str, words: type[enum.StrEnum]) -> CheckConstraint:
    # Not IN (…): SQLite builds a table of the list for each row, which doubles the cost of an insert.
    return CheckConstraint(" OR ".join(f"{column} = '{word}'" for word in words), name=f"ck_outbox_events_{column}")


def fresh(of: str = "") -> str:
    """Rows that no relay has touched yet; `of`: their alias. What was ever claimed or held back has `available_at`."""
    return "{0}state = 'pending' AND {0}available_at IS NULL".format(of and f"{of}.")


def waiting(of: str = "") -> str:
    """Rows that wait for their next attempt, or behind an earlier row of their document, of whatever lane."""
    return "{0}state = 'pending' AND {0}available_at IS NOT NULL".format(of and f"{of}.")


def unfinished(of: str = "") -> str:
    """Rows that are pending or claimed: no later row of their document may be claimed before them. An OR.

    Always spelled like this: a database that compares conditions by their text finds the index of these rows by it,
    also for those alone that are not fresh, as relays before revision 0007 ask.
    """
    return f"({of and f'{of}.'}state = 'claimed' OR ({waiting(of)})) OR ({fresh(of)})"


def tenant(of: str = "") -> str:
    """Rows of different tenants wait in lanes of their own; those of none share one."""
    return f"coalesce({of and f'{of}.'}tenant_id, '')"


events = Table(
    "outbox_events",
    metadata,
    Column("id", _INSTANT, primary_key=True, comment="order of the row among those of its document"),
    Column(
        "action",
        Text,
        nullable=False,
        comment="index: the document; update: fields to merge; delete; refresh: load it",
    ),
    Column("index_name", Text, nullable=False, comment="the alias that readers use"),
    Column("document_id", Text, nullable=False, comment="the _id in the index"),
    Column("tenant_id", Text),
    Column("entity", Text, comment="name of the registered entity the document was made of, if any"),
    Column("document_bytes", Integer, comment="size of the document; NULL: unknown, measured at the claim"),
    Column("state", Text, nullable=False, server_default=State.PENDING.value),
    Column("attempts", Integer, nullable=False, server_default="0", comment="failures of the document itself"),
    Column("deliveries", Integer, nullable=False, server_default="0", comment="times it was claimed"),
    Column("available_at", _INSTANT, comment="not before; NULL: now, and never claimed so far"),
    Column("claim_token", Text, comment="fence: whoever lost it may not write the outcome"),
    Column("claimed_by", Integer, comment="outbox_relays.id"),
    Column("lease_expires_at", _INSTANT, comment="until then the claim holds"),
    Column("created_at", _INSTANT, nullable=False, server_default=Now()),
    Column("finished_at", _INSTANT),
    Column(
        "outcome", Text, comment="how a done row ended: applied, unchanged, deleted, superseded, coalesced, retried"
    ),
    Column("error_type", Text),
    Column("error", Text, comment="the last failure, control characters escaped, at most 2,000 characters"),
    Column("error_field", Text, comment="the field that this error names, if it names one"),
    Column(
        "version",
        _INSTANT,
        comment="unfinished: from which version on the index may have it, NULL: none; done, dead: the one it was "
        "sent with",
    ),
    _one_of("action", Action),
    _one_of("state", State),
    # One index for each question that is asked often; none of them holds a done row but the one that prunes it.
    Index("ix_outbox_events_fresh", "index_name", text(tenant()), "id", **some_rows(fresh())),
    Index("ix_outbox_events_waiting", "available_at", "id", **some_rows(waiting())),
    Index("ix_outbox_events_held", "index_name", "document_id", "id", **some_rows(unfinished())),
    Index("ix_outbox_events_leases", "lease_expires_at", **some_rows("state = 'claimed'")),
    Index("ix_outbox_events_dead", "index_name", "document_id", "id", **some_rows("state = 'dead'")),
    Index(
        "ix_outbox_events_causes",
        "error_type",
        "error_field",
        "index_name",
        "finished_at",
        "tenant_id",
        **some_rows("state = 'dead'"),
    ),
    Index(
        "ix_outbox_events_dead_of_tenant",
        "tenant_id",
        "error_type",
        "error_field",
        "index_name",
        **some_rows("state = 'dead'"),
    ),
    Index("ix_outbox_events_done", "finished_at", **some_rows("state = 'done'")),
    **NEVER_REUSED,
    comment="one row for each change that the search index has to follow",
)

documents = Table(
    "outbox_documents",
    metadata,
    Column("event_id", _INSTANT, primary_key=True, autoincrement=False),
    Column("document", Text, nullable=False, comment="JSON object on one line"),
    comment="content of outbox_events, apart because each change of state rewrites the row it stands in",
)

failures = Table(
    "outbox_failures",
    metadata,
    Column("event_id", _INSTANT, nullable=False, comment="the row: outbox_events.id"),
    Column(
        "attempt", Integer, nullable=False, comment="1: its first that failed; a dead row that is retried counts on"
    ),
    Column("failed_at", _INSTANT, nullable=False),
    Column("relay", Integer, comment="outbox_relays.id of the relay that had it; NULL: none"),
    Column("host", Text, comment="where that relay ran"),
    Column("pid", Integer, comment="the process that it was there"),
    Column("state", Text, nullable=False, comment="of the row after it: pending, to be tried again, or dead"),
    Column("error_type", Text),
    Column("error_field", Text, comment="the field that the error names, if it names one"),
    Column("error", Text, comment="as in outbox_events"),
    PrimaryKeyConstraint("event_id", "attempt"),
    **KEPT_BY_KEY,
    comment="one row for each attempt that failed, kept as long as its row; what succeeds at once leaves none",
)

indexes = Table(
    "outbox_indexes",
    metadata,
    Column("index_name", Text, nullable=False, comment="the name that rows and readers use"),
    Column("physical_index", Text, nullable=False, comment="where its rows are sent"),
    Column("created_at", _INSTANT, nullable=False, server_default=Now()),
    Column("role", Text, nullable=False, server_default=Role.LIVE.value, comment="live, new or old; one is live"),
    Column("refused", Integer, nullable=False, server_default="0", comment="documents that an old one did not take"),
    Column(
        "found",
        Integer,
        nullable=False,
        server_default="0",
        comment="1: others may have filled it, and no epoch has been begun since",
    ),
    PrimaryKeyConstraint("index_name", "physical_index"),
    comment="where the rows of an index go",
)

reindex_jobs = Table(
    "outbox_reindex_jobs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("index_name", Text, nullable=False),
    Column("old_index", Text, nullable=False, comment="the physical index that was live when it began"),
    Column("new_index", Text, comment="the one it fills; NULL: it works in place"),
    Column("state", Text, nullable=False, server_default=JobState.RUNNING.value),
    Column("phase", Text, nullable=False, comment="the step it is at"),
    Column("tenant_id", Text, comment="only documents of this tenant"),
    Column("since", Text, comment="only rows that changed from then on"),
    Column("keep_old", Integer, nullable=False, server_default="0"),
    Column("adopt", Integer, nullable=False, server_default="0", comment="the old index has the name itself"),
    Column("watermark", _INSTANT, comment="version of its documents: every later claim has a higher one"),
    Column("position", Text, comment="JSON: entity and primary key that the scan has come to"),
    Column("documents", Integer, nullable=False, server_default="0", comment="written by the scan so far"),
    Column("refused", Integer, nullable=False, server_default="0", comment="that could not be made or written"),
    Column("removed", Integer, nullable=False, server_default="0", comment="by the sweep"),
    Column("total", Integer, nullable=False, server_default="0", comment="rows of its entities when it began"),
    Column("error", Text),
    Column("lease_token", Text, comment="fence: who lost it may not go on"),
    Column("lease_holder", Text),
    Column("lease_expires_at", _INSTANT),
    Column("created_at", _INSTANT, nullable=False, server_default=Now()),
    Column("updated_at", _INSTANT, nullable=False, server_default=Now()),
    Column("finished_at", _INSTANT),
    Column("last_id", _INSTANT, comment="up to it all rows were finished when the watermark was drawn"),
    Index("ix_outbox_reindex_jobs_open", "index_name", unique=True, **some_rows(OPEN_JOBS)),
    **NEVER_REUSED,
    comment="rebuilds of indexes",
)

relays = Table(
    "outbox_relays",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("version", Text, nullable=False),
    Column("started_at", _INSTANT, nullable=False),
    Column("heartbeat_at", _INSTANT, nullable=False),
    Column("breakers", Text, nullable=False, server_default="[]", comment="JSON: what is paused, why, since"),
    Column(
        "lock_waited_ms", _INSTANT, nullable=False, server_default="0", comment="for the write lock, since it started"
    ),
    Column("lock_held_ms", _INSTANT, nullable=False, server_default="0", comment="the write lock, since it started"),
    Column("lock_longest_ms", _INSTANT, nullable=False, server_default="0", comment="the longest of these"),
    **NEVER_REUSED,
    comment="running relays; one that ends takes its row away, one that was killed stops its heartbeat",
)

control = Table(
    "outbox_control",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", Integer, nullable=False, server_default="1", comment="the upper part of every version"),
    Column(
        "highest_pruned_version",
        _INSTANT,
        nullable=False,
        server_default="0",
        comment="the highest of a row that was removed before it was done",
    ),
    Column("paused_at", _INSTANT, comment="NULL: not paused"),
    Column("paused_by", Text),
    Column("pause_reason", Text),
    Column("last_token", _INSTANT, nullable=False, server_default="0", comment="the lower part of the last version"),
    Column("timeline", Text, comment="of the server as the epoch began: another may lack what was written last"),
    CheckConstraint("id = 1", name="ck_outbox_control_one_row"),
    comment="one row: what holds for all relays",
)

pauses = Table(
    "outbox_pauses",
    metadata,
    Column("index_name", Text, nullable=False, comment="empty: every index"),
    Column("tenant_id", Text, nullable=False, comment="in any spelling; empty: rows of every tenant"),
    Column("paused_at", _INSTANT, nullable=False),
    Column("paused_by", Text, nullable=False),
    Column("reason", Text, nullable=False),
    PrimaryKeyConstraint("index_name", "tenant_id"),
    comment="indexes and tenants whose rows no relay claims; outbox_control says whether all are paused",
)

audit = Table(
    "outbox_audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("began_at", _INSTANT, nullable=False),
    Column("ended_at", _INSTANT, comment="NULL: it goes on, or was killed"),
    Column("acted_by", Text, nullable=False),
    Column("action", Text, nullable=False, comment="as the command is called"),
    Column("about", Text, nullable=False, comment="what it was told: the selection, or the reason"),
    Column("affected", _INSTANT, comment="how many rows or documents; NULL: it is not about any"),
    Column("error", Text, comment="why it failed"),
    **NEVER_REUSED,
    comment="what operators did, by whom and when",
)

LATENCY_BOUNDS_MS: Final = (10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000)
"""Upper bounds of the latency histogram in `outbox_stats`; what is slower is only in `done`."""

COUNTERS: Final = ("done", "dead", "retried", "superseded", "lost_claims", "latency_sum_ms")

LATENCIES: Final = tuple(f"latency_le_{bound}ms" for bound in LATENCY_BOUNDS_MS)

STATISTICS: Final = (*COUNTERS, *LATENCIES)
"""The columns of `outbox_stats` that count."""

stats = Table(
    "outbox_stats",
    metadata,
    Column("minute", _INSTANT, nullable=False, comment="its beginning"),
    Column("index_name", Text, nullable=False),
    Column("entity", Text, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("action", Text, nullable=False),
    *(Column(name, _INSTANT, nullable=False, server_default="0") for name in STATISTICS),
    PrimaryKeyConstraint("minute", "index_name", "entity", "tenant_id", "action"),
    **KEPT_BY_KEY,
    comment="what became of the rows, by minute; kept when the rows are gone",
)

depths = Table(
    "outbox_depths",
    metadata,
    Column("minute", _INSTANT, primary_key=True, autoincrement=False, comment="its beginning"),
    Column("unfinished", _INSTANT, nullable=False, comment="the most rows that were seen pending or claimed in it"),
    Column("oldest_ms", _INSTANT, nullable=False, comment="the greatest age of such a row"),
    comment="how full the outbox was, by minute, as relays and the admin server saw it",
)

FOUND: Final = ("documents", "listed", *(kind.value for kind in DriftKind), "in_flight", "repaired")
"""What a verification counts, see `outbox.verify`."""

verifications = Table(
    "outbox_verifications",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("started_at", _INSTANT, nullable=False),
    Column("finished_at", _INSTANT, comment="NULL: it runs, or was killed"),
    Column("started_by", Text, nullable=False),
    Column("scheduled", Integer, nullable=False, server_default="0"),
    Column("entities", Text, nullable=False, comment="JSON list of names"),
    Column("tenant_id", Text, comment="NULL: all tenants"),
    Column("sample", Float, nullable=False, comment="part of the documents, 1: all"),
    *(Column(name, _INSTANT, nullable=False, server_default="0") for name in FOUND),
    Column("error", Text, comment="why it did not come to its end"),
    **NEVER_REUSED,
    comment="what comparisons of index and database have found, the newest hundred",
)


complete(metadata)


class Event(NamedTuple):
    """One row of `outbox_events` as the relay works with it."""

    id: int
    action: str
    index_name: str
    document_id: str
    tenant_id: str | None
    entity: str | None
    attempts: int
    deliveries: int
    created_at: int
    version: int | None = None


class Transition(NamedTuple):
    """The next state of one row. `available_at` only for pending, `result` only for done.

    `unsent`: nothing left this machine, so the delivery does not count. `error_field`: the one that the error names.
    `version`: the one that it was sent with, of a row that is finished.
    """

    event: Event
    state: State
    result: Result | None = None
    available_at: int | None = None
    attempts: int = 0
    error_type: str | None = None
    error: str | None = None
    unsent: bool = False
    error_field: str | None = None
    version: int | None = None

    @property
    def is_failure(self) -> bool:
        """Whether it counts against the row itself; what an outage or a blocked index gives back does not."""
        return self.state is State.DEAD or (self.state is State.PENDING and self.attempts > self.event.attempts)


UNANSWERED = "unanswered"
"""`error_type` of a row whose last delivery got no answer."""

RELAY_DIED = "relay_died"
"""`error_type` of a row whose relay was killed while it held the row."""

POISON = "poison"
ILLEGAL_TEXT = "illegal_text"
OVERTAKEN = "overtaken"
UNEXPLAINED = "unexplained_version"

KILLS_ITS_RELAY = (
    "sent alone, it ended with the death of its relay twice in a row; see what loading or sending it does to the "
    "process (memory?), then run 'outbox-relay dead retry' or 'outbox-relay dead discard' with its number"
)


def now_ms() -> int:
    """The clock of every instant in the tables: milliseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1_000_000
