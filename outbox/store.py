"""Every SQL statement of the relay and of its operators: one function each, named by what it means to the table."""

from __future__ import annotations

import json
import re
import secrets
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, CursorResult, Engine
from sqlalchemy.exc import DBAPIError, OperationalError

from outbox.errors import DatabaseUnavailable, SchemaError
from outbox.models import (
    EPOCH_STEP,
    FRESH,
    HELD,
    LATENCIES,
    LATENCY_BOUNDS_MS,
    TENANT,
    VERSION_TABLE,
    WAITING,
    Event,
    Role,
    State,
    version,
)
from outbox.transition import POISON, RELAY_DIED, UNANSWERED, Transition

_CLAIMED = ", ".join("c.deliveries + 1" if name == "deliveries" else f"c.{name}" for name in Event._fields)
MAX_ERROR_CHARS = 2_000

_COUNTED = {
    "fresh": FRESH,
    "waiting": WAITING,
    "leases": "state = 'claimed'",
    "done": "state = 'done'",
    "dead": "state = 'dead'",
}


@dataclass(frozen=True, slots=True)
class Claim:
    """Rows that are this relay's to deliver, until `lease_expires_at`, as long as they carry `token`."""

    token: str
    events: tuple[Event, ...]
    epoch: int
    targets: Mapping[str, str]
    lease_expires_at: int
    lone: bool = False  # one row, which got no answer time and again
    copies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # further physical indexes, of a reindex


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

    def close(self) -> None:
        self._connection.close()

    # -- claiming -----------------------------------------------------------------------------------------------

    def pin(self) -> None:
        """From now on `claim`, and a reindex, refuse tables of another revision than they have now.

        What a migration adds may change where rows go: a relay that does not know it must not deliver any.
        """
        self._pinned = (self._schema_version(), self._revision())

    def _require_pinned(self) -> None:
        """Raises `SchemaError` if the tables have come to another revision. Costs one look into the file's header."""
        if self._pinned is None or (schema_version := self._schema_version()) == self._pinned[0]:
            return
        at, revision = self._pinned[1], self._revision()  # any CREATE or ALTER of the application leads here, too
        if revision != at:
            raise SchemaError(
                f"database {self.path} came to revision {revision} while this process worked with {at}, and it "
                "ends: start outbox-relay of the version that knows it; until then rows wait"
            )
        self._pinned = (schema_version, at)

    def _schema_version(self) -> int:
        return int(self.run("PRAGMA schema_version").scalar_one())

    def _revision(self) -> str | None:
        """None where other migrations made the tables."""
        if not self.run("SELECT count(*) FROM sqlite_master WHERE name = ?", VERSION_TABLE).scalar_one():
            return None
        revision: str | None = self.run(f"SELECT version_num FROM {VERSION_TABLE}").scalar_one_or_none()
        return revision

    def commits_elsewhere(self) -> int:
        """A number that changes when another connection commits, and never by a commit of this one."""
        return int(self.run("PRAGMA data_version").scalar_one())

    def anything_due(self, now: int, longest_wait: int) -> bool:
        """A look that takes no lock."""
        return bool(
            self.run(
                f"SELECT EXISTS (SELECT 1 FROM outbox_events INDEXED BY ix_outbox_events_fresh WHERE {FRESH})"
                f" OR EXISTS (SELECT 1 FROM outbox_events INDEXED BY ix_outbox_events_waiting WHERE {WAITING}"
                " AND (available_at <= ? OR available_at > ?))",
                now,
                now + longest_wait,
            ).scalar_one()
        )

    def claim(
        self,
        *,
        relay: int,
        now: int,
        lease_ms: int,
        longest_wait: int,
        rows: int,
        bytes_: int,
        leave_out: Iterable[str] = (),
        only: str | None = None,
        tenants_out: Iterable[str] = (),
        tenant_rows: int | None = None,
        lone_after: int = 10,
        lone: bool = True,
    ) -> Claim | None:
        """Take up to `rows` due rows (about `bytes_` of documents), in order and without a gap for each document.

        Tenants and indexes share a batch evenly, so that a backlog of one does not starve the others. `leave_out` and
        `only` name indexes; `tenants_out` tenants, and `tenant_rows` is the most fresh rows of one. A row that was
        delivered `lone_after` times and got no answer is claimed alone, and before the others, the one that waits
        longest first; without `lone` it is passed over.
        None when nothing could be claimed, or the outbox is paused. Raises `SchemaError` as `pin` says.
        """
        self._require_pinned()
        if not self.anything_due(now, longest_wait):
            return None
        while True:
            lanes = self._lanes(leave_out, only, tenants_out)
            with self.write(durable=True):
                self._require_pinned()  # no migration can come between this and the claim
                control = self.control()
                if control.paused_at is not None:
                    return None
                candidates = self._due(lanes, now, longest_wait, rows, leave_out, only, tenants_out, tenant_rows)
                chosen, suspect, blocked = _choose(candidates, bytes_, lone_after)
                if blocked:
                    self._park(blocked, now, longest_wait)
                if suspect and lone:
                    return replace(self._take((suspect,), control.epoch, relay, now, lease_ms), lone=True)
                if chosen:
                    return self._take(chosen, control.epoch, relay, now, lease_ms)
            if not blocked:
                return None

    def _lanes(self, leave_out: Iterable[str], only: str | None, tenants_out: Iterable[str]) -> list[tuple[str, str]]:
        """Who has fresh rows: (index, tenant), whoever waits longest first. Takes no lock: two index seeks a lane."""
        after = f"SELECT n.id FROM outbox_events AS n INDEXED BY ix_outbox_events_fresh WHERE {_of('n', FRESH)}"
        order = f"ORDER BY n.index_name, {_of('n', TENANT)}, n.id LIMIT 1"
        lanes = self.run(
            f"""
            WITH RECURSIVE head (id) AS (  -- the oldest row of each lane, lane by lane as they stand in the index
                SELECT ({after} {order})
                UNION ALL
                SELECT coalesce(
                    ({after} AND n.index_name = h.index_name AND {_of("n", TENANT)} > {_of("h", TENANT)} {order}),
                    ({after} AND n.index_name > h.index_name {order}))
                FROM head JOIN outbox_events AS h ON h.id = head.id
            )
            SELECT h.index_name, {_of("h", TENANT)} FROM head JOIN outbox_events AS h ON h.id = head.id
            WHERE h.index_name NOT IN (SELECT value FROM json_each(:left_out))
            AND (:only IS NULL OR h.index_name = :only) ORDER BY h.id
            """,
            {"left_out": json.dumps(sorted(leave_out)), "only": only},
        )
        left_out = set(tenants_out)
        return [(index_name, tenant) for index_name, tenant in lanes if tenant not in left_out]

    def _fresh(self, lanes: Sequence[tuple[str, str]], rows: int, tenant_rows: int | None) -> list[int]:
        """Up to `rows` fresh rows: an even share for each lane; what some leave of theirs goes to the others."""
        most = rows if tenant_rows is None else tenant_rows
        share = min(most, max(1, rows // max(1, len(lanes))))
        found = self._heads(lanes[:rows], share)
        hungry = [lane for lane, ids in found.items() if len(ids) == share]
        left = rows - sum(map(len, found.values()))
        if left >= len(hungry) > 0:
            found |= self._heads(hungry, min(most, share + left // len(hungry)))
        return [id_ for ids in found.values() for id_ in ids]

    def _heads(self, lanes: Sequence[tuple[str, str]], share: int) -> dict[tuple[str, str], list[int]]:
        found: dict[tuple[str, str], list[int]] = {}
        for index_name, tenant, id_ in self.run(
            f"""
            SELECT f.index_name, {_of("f", TENANT)}, f.id
            FROM json_each(:lanes) AS lane JOIN outbox_events AS f ON f.id IN (
                SELECT id FROM outbox_events INDEXED BY ix_outbox_events_fresh WHERE {FRESH}
                AND index_name = json_extract(lane.value, '$[0]') AND {TENANT} = json_extract(lane.value, '$[1]')
                ORDER BY id LIMIT :share)
            """,
            {"lanes": json.dumps(lanes), "share": share},
        ).fetchall():
            found.setdefault((index_name, tenant), []).append(id_)
        return found

    def _due(
        self,
        lanes: Sequence[tuple[str, str]],
        now: int,
        longest_wait: int,
        rows: int,
        leave_out: Iterable[str],
        only: str | None,
        tenants_out: Iterable[str],
        tenant_rows: int | None,
    ) -> Sequence[Any]:
        """Candidates in the order of their ids: each as it is once claimed, with what `_choose` has to know of it.

        `behind` is the nearest earlier unfinished row of its document.
        """
        waiting = [
            row[0]
            for row in self.run(
                f"""
                SELECT id FROM outbox_events INDEXED BY ix_outbox_events_waiting
                WHERE {WAITING} AND (available_at <= :now OR available_at > :too_far)
                AND index_name NOT IN (SELECT value FROM json_each(:left_out))
                AND (:only IS NULL OR index_name = :only)
                AND {TENANT} NOT IN (SELECT value FROM json_each(:tenants_out))
                ORDER BY available_at, id LIMIT :rows
                """,
                {
                    "tenants_out": json.dumps(list(tenants_out)),
                    "now": now,
                    "too_far": now + longest_wait,
                    "left_out": json.dumps(sorted(leave_out)),
                    "only": only,
                    "rows": rows,
                },
            )
        ]
        fresh = self._fresh(lanes, max(rows - len(waiting), rows // 2), tenant_rows)
        return self.run(
            f"""
            SELECT {_CLAIMED}, c.error_type, c.available_at,
                   coalesce(c.document_bytes,
                            (SELECT length(CAST(d.document AS BLOB)) FROM outbox_documents d WHERE d.event_id = c.id),
                            0) AS bytes,
                   (SELECT max(h.id) FROM outbox_events AS h INDEXED BY ix_outbox_events_held
                    WHERE ({_of("h", HELD)})
                    AND h.index_name = c.index_name AND h.document_id = c.document_id AND h.id < c.id) AS behind
            FROM outbox_events AS c WHERE c.id IN (SELECT value FROM json_each(:ids)) ORDER BY c.id
            """,
            {"ids": json.dumps(fresh + waiting[: rows - len(fresh)])},
        ).fetchall()

    def _park(self, blocked: Sequence[int], now: int, longest_wait: int) -> None:
        """Rows behind an unfinished one take over its time: otherwise they fill every look and starve others."""
        self.run(
            f"""
            UPDATE outbox_events SET available_at = coalesce((
                SELECT max(:soonest, min(:latest, iif(h.state = 'claimed', h.lease_expires_at, h.available_at)))
                FROM outbox_events AS h INDEXED BY ix_outbox_events_held
                WHERE ({_of("h", HELD)}) AND h.index_name = outbox_events.index_name
                AND h.document_id = outbox_events.document_id AND h.id < outbox_events.id
                ORDER BY h.id LIMIT 1), :soonest)
            WHERE id IN (SELECT value FROM json_each(:ids))
            """,
            {"ids": json.dumps(blocked), "soonest": now + 1, "latest": now + longest_wait},
        )

    def _take(self, events: Sequence[Event], epoch: int, relay: int, now: int, lease_ms: int) -> Claim:
        token, expires = secrets.token_hex(8), now + lease_ms
        self.run(
            "UPDATE outbox_events SET state = 'claimed', claim_token = ?, claimed_by = ?, lease_expires_at = ?,"
            " deliveries = deliveries + 1 WHERE id IN (SELECT value FROM json_each(?))",
            token,
            relay,
            expires,
            json.dumps([event.id for event in events]),
        )
        return Claim(token, tuple(events), epoch, self.targets(), expires, copies=self.copies())

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

    def load(self, claim: Claim) -> dict[int, bytes]:
        """The documents of a claim by event id: UTF-8 text as it was stored. Takes no lock."""
        ids = json.dumps([event.id for event in claim.events])
        return {
            row[0]: row[1]
            for row in self.run(
                "SELECT event_id, CAST(document AS BLOB) FROM outbox_documents"
                " WHERE event_id IN (SELECT value FROM json_each(?))",
                ids,
            ).fetchall()
        }

    def renew(self, claim: Claim, ids: Sequence[int], expires: int) -> Claim | None:
        """Extend the lease of the rows. None if one of them is no longer this claim's: nothing may be sent then."""
        with self.write(durable=False):
            renewed = self.run(
                "UPDATE outbox_events SET lease_expires_at = ?"
                " WHERE id IN (SELECT value FROM json_each(?)) AND claim_token = ?",
                expires,
                json.dumps(list(ids)),
                claim.token,
            ).rowcount
        return replace(claim, lease_expires_at=expires) if renewed == len(ids) else None

    # -- recording ----------------------------------------------------------------------------------------------

    def record(self, claim: Claim, transitions: Sequence[Transition], now: int) -> list[Transition]:
        """Write what became of rows of a claim, but only where the claim still holds.

        A row whose `claim_token` changed meanwhile (its lease expired and another relay took it) is left alone and
        counted in `lost_claims`: whoever holds it now decides. Returns the transitions of such rows.
        """
        same: dict[tuple[Any, ...], list[Transition]] = defaultdict(list)
        for transition in transitions:
            same[transition[1:]].append(transition)
        with self.write(durable=False):
            lost = self._lost(claim.token, [transition.event.id for transition in transitions])
            for group in same.values():
                self._move(claim.token, group, now)
            self._release_followers(transitions, now)
            self._count(transitions, lost, now)
        return [transition for transition in transitions if transition.event.id in lost] if lost else []

    def _lost(self, token: str, ids: Sequence[int]) -> set[int]:
        """Those of the rows that are no longer this claim's."""
        found = self.run(
            "SELECT value FROM json_each(?) WHERE (SELECT claim_token FROM outbox_events WHERE id = value) IS NOT ?",
            json.dumps(ids),
            token,
        )
        return {row[0] for row in found}

    def _move(self, token: str, group: Sequence[Transition], now: int) -> None:
        to = group[0]
        finished = to.state in (State.DONE, State.DEAD)
        parameters = {
            "state": to.state.value,
            "outcome": to.result.value if to.result else None,
            "attempts": to.attempts,
            "available_at": None if finished else to.available_at,
            "finished_at": now if finished else None,
            "error_type": to.error_type,
            "error": printable(to.error),
            "unsent": int(to.unsent),
            "ids": json.dumps([transition.event.id for transition in group]),
            "token": token,
        }
        self.run(
            """
            UPDATE outbox_events SET state = :state, outcome = :outcome, attempts = :attempts,
                   available_at = :available_at, finished_at = :finished_at, claim_token = NULL, claimed_by = NULL,
                   lease_expires_at = NULL, error_type = coalesce(:error_type, error_type),
                   error = coalesce(:error, error), deliveries = deliveries - :unsent
            WHERE id IN (SELECT value FROM json_each(:ids)) AND claim_token = :token
            """,
            parameters,
        )

    def _release_followers(self, transitions: Sequence[Transition], now: int) -> None:
        """Wake the rows that were parked behind documents that are now settled: the next batch of each."""
        if not self.run(
            f"SELECT EXISTS (SELECT 1 FROM outbox_events INDEXED BY ix_outbox_events_waiting WHERE {WAITING}"
            " AND available_at > ?)",
            now,
        ).scalar_one():
            return
        waiting = {_document(transition) for transition in transitions if transition.state is State.PENDING}
        settled = {_document(transition) for transition in transitions} - waiting
        for index_name, document_id in settled:
            self.run(
                f"""
                UPDATE outbox_events SET available_at = :now WHERE id IN (
                    SELECT w.id FROM outbox_events AS w INDEXED BY ix_outbox_events_held
                    WHERE ({_of("w", HELD)}) AND w.index_name = :index AND w.document_id = :document
                    AND w.state = 'pending' ORDER BY w.id LIMIT 1000)
                """,
                {"now": now, "index": index_name, "document": document_id},
            )

    def _count(self, transitions: Sequence[Transition], lost: Container[int], now: int) -> None:
        counts: dict[tuple[str, str, str, str], dict[str, int]] = {}
        for transition in transitions:
            event, state = transition.event, transition.state
            key = (event.index_name, event.entity or "", event.tenant_id or "", event.action)
            count = counts.setdefault(key, defaultdict(int))
            if event.id in lost:
                count["lost_claims"] += 1
            elif state is State.DONE:
                latency = max(0, now - event.created_at)
                count["done"] += 1
                count["latency_sum_ms"] += latency
                if transition.result == "superseded":
                    count["superseded"] += 1
                if latency <= LATENCY_BOUNDS_MS[-1]:
                    count[LATENCIES[bisect_left(LATENCY_BOUNDS_MS, latency)]] += 1
            elif state is State.DEAD:
                count["dead"] += 1
            elif transition.attempts > event.attempts:
                count["retried"] += 1
        minute = now - now % 60_000
        for key, count in counts.items():
            if count:
                columns = list(count)
                added = ", ".join(f"{column} = {column} + excluded.{column}" for column in columns)
                self.run(
                    f"INSERT INTO outbox_stats (minute, index_name, entity, tenant_id, action, {', '.join(columns)})"
                    f" VALUES ({', '.join('?' * (5 + len(columns)))}) ON CONFLICT DO UPDATE SET {added}",
                    minute,
                    *key,
                    *count.values(),
                )

    def release(self, claim: Claim, ids: Sequence[int], now: int, *, undelivered: bool) -> int:
        """Give rows back at once, attempts unchanged. `undelivered`: nothing was sent, the delivery does not count."""
        with self.write(durable=False):
            return int(
                self.run(
                    "UPDATE outbox_events SET state = 'pending', available_at = ?, claim_token = NULL,"
                    " claimed_by = NULL, lease_expires_at = NULL, deliveries = deliveries - ?"
                    " WHERE id IN (SELECT value FROM json_each(?)) AND claim_token = ?",
                    now,
                    int(undelivered),
                    json.dumps(list(ids)),
                    claim.token,
                ).rowcount
            )

    def explained(self, event: Event, reported: int | None, epoch: int) -> bool:
        """Whether a delivery of this outbox accounts for the version that a conflict reports.

        True for a version of a row of the same document that was delivered (`event` itself: at least twice), for
        versions up to the highest that was pruned, and for the one that a reindex of the index gave its documents.
        """
        if reported is None:
            return False
        if reported <= self.control().highest_pruned_version:
            return True
        reported_epoch, id_ = divmod(reported, EPOCH_STEP)
        if reported_epoch > epoch:
            return False
        delivered: int | None = event.deliveries
        if id_ != event.id:
            delivered = self.run(
                "SELECT deliveries FROM outbox_events WHERE id = ? AND index_name = ? AND document_id = ?",
                id_,
                event.index_name,
                event.document_id,
            ).scalar_one_or_none()
        if delivered is not None and delivered >= (2 if id_ == event.id else 1):
            return True
        return self.is_of_reindex(event.index_name, reported)

    def is_of_reindex(self, index: str, reported: int) -> bool:
        """Whether a version is the one that a reindex of the index gave its documents."""
        return bool(
            self.run(
                "SELECT EXISTS (SELECT 1 FROM outbox_reindex_jobs WHERE index_name = ? AND watermark = ?)",
                index,
                reported,
            ).scalar_one()
        )

    def refused(self, index: str, target: str, documents: int, error: str, *, blocked: bool, now: int) -> bool:
        """Note that a further physical index did not take what the live one took. Whether the rows must wait.

        A reindex fails by it, and its index gets no rows any more; an old index that takes nothing at all gets none
        either. The rows must wait if the index has become the live one meanwhile, or is about to.
        """
        with self.write(durable=True):
            self.run(
                "UPDATE outbox_reindex_jobs SET state = 'failing', error = ?, updated_at = ?"
                " WHERE new_index = ? AND state = 'running' AND phase NOT IN ('swap', 'drop')",
                printable(error),
                now,
                target,
            )
            self.run(
                "DELETE FROM outbox_indexes WHERE index_name = :index AND physical_index = :target"
                " AND (role = 'old' AND :blocked OR role = 'new' AND EXISTS (SELECT 1 FROM outbox_reindex_jobs"
                "      WHERE new_index = :target AND state = 'failing'))",
                {"index": index, "target": target, "blocked": blocked},
            )
            self.run(
                "UPDATE outbox_indexes SET refused = refused + ?"
                " WHERE index_name = ? AND physical_index = ? AND role = 'old'",
                documents,
                index,
                target,
            )
            role = self.run(
                "SELECT role FROM outbox_indexes WHERE index_name = ? AND physical_index = ?", index, target
            ).scalar_one_or_none()
        return role in (Role.LIVE, Role.NEW)

    def is_update(self, event: Event, reported: int | None) -> bool:
        """Whether a version is that of a partial update of the event's document."""
        return bool(
            self.run(
                "SELECT EXISTS (SELECT 1 FROM outbox_events WHERE id = ? AND action = 'update'"
                " AND index_name = ? AND document_id = ?)",
                (reported or 0) % EPOCH_STEP,
                event.index_name,
                event.document_id,
            ).scalar_one()
        )

    def removed_since(self, event: Event) -> bool:
        """Whether a later row that removes the document, or may, was delivered and has not come to its end."""
        return bool(
            self.run(
                "SELECT EXISTS (SELECT 1 FROM outbox_events INDEXED BY ix_outbox_events_held"
                f" WHERE ({HELD}) AND index_name = ? AND document_id = ? AND id > ?"
                " AND action IN ('delete', 'refresh') AND deliveries > 0)",
                event.index_name,
                event.document_id,
                event.id,
            ).scalar_one()
        )

    # -- maintenance --------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The file of the database."""
        return Path(str(self._connection.engine.url.database))

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

    # -- relays -------------------------------------------------------------------------------------------------

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

    # -- what operators ask and do ------------------------------------------------------------------------------

    def control(self) -> Control:
        """What holds for all relays; the defaults when the row is missing (tables created without a migration)."""
        row = self.run(
            "SELECT epoch, highest_pruned_version, paused_at, paused_by, pause_reason FROM outbox_control"
        ).one_or_none()
        return Control(*tuple(row)) if row else Control(1, 0, None, None, None)

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

    def event(self, event_id: int) -> dict[str, Any] | None:
        """One row with its document, or None."""
        row = (
            self.run(
                "SELECT e.*, d.document FROM outbox_events AS e LEFT JOIN outbox_documents AS d ON d.event_id = e.id"
                " WHERE e.id = ?",
                event_id,
            )
            .mappings()
            .one_or_none()
        )
        return dict(row) if row else None

    def events(self, *, index: str | None = None, document_id: str | None = None) -> list[dict[str, Any]]:
        """All rows with their documents in the order of their ids, narrowed by what is given."""
        rows = self.run(
            "SELECT e.*, d.document FROM outbox_events AS e LEFT JOIN outbox_documents AS d ON d.event_id = e.id"
            " WHERE (:index IS NULL OR index_name = :index) AND (:document IS NULL OR document_id = :document)"
            " ORDER BY e.id",
            {"index": index, "document": document_id},
        )
        return [dict(row) for row in rows.mappings()]

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

    # -- verification -------------------------------------------------------------------------------------------

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

    # -- the connection -----------------------------------------------------------------------------------------

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


def _of(alias: str, condition: str) -> str:
    """A condition of `models` on the columns of `alias`."""
    return re.sub(r"\b(state|available_at|tenant_id)\b", rf"{alias}.\1", condition)


def _choose(candidates: Sequence[Any], bytes_: int, lone_after: int) -> tuple[list[Event], Event | None, list[int]]:
    """Of candidates, in the order of their ids: those to claim together, the one to claim alone instead, and those
    that wait behind another row."""
    chosen: list[Event] = []
    suspects: list[tuple[int, Event]] = []
    taken: set[int] = set()
    blocked: list[int] = []
    blocked_documents: set[tuple[str, str]] = set()
    size, width = 0, len(Event._fields)
    for row in candidates:
        event = Event._make(row[:width])
        error_type, available_at, row_bytes, behind = row[width:]
        document = (event.index_name, event.document_id)
        if document in blocked_documents or (behind is not None and behind not in taken):
            blocked_documents.add(document)
            blocked.append(event.id)
            continue
        if event.deliveries > lone_after and error_type in (UNANSWERED, RELAY_DIED, POISON):
            suspects.append((available_at, event))
            continue
        if chosen and size + row_bytes > bytes_:
            break
        chosen.append(event)
        taken.add(event.id)
        size += row_bytes
    return chosen, min(suspects)[1] if suspects else None, blocked


def _document(transition: Transition) -> tuple[str, str]:
    return transition.event.index_name, transition.event.document_id


def printable(error: str | None) -> str | None:
    """At most 2,000 characters, control characters escaped, so that no error can forge a line."""
    if error is None or error.isprintable():
        return error and error[:MAX_ERROR_CHARS]
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in error[:MAX_ERROR_CHARS])
    return escaped[:MAX_ERROR_CHARS]
