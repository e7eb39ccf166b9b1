"""What a reindex asks of the outbox tables, and what it notes of its jobs."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import IntegrityError

from outbox.errors import ReindexFailed
from outbox.store.models import EPOCH_STEP, FRESH, HELD, OPEN_JOBS, JobState, version
from outbox.store.sqlite import presence
from outbox.store.store import Store, printable

BEGUN_MS = 10_000
"""Whoever notes a new job takes its lease right after; unless it was killed in between."""


@dataclass(frozen=True, slots=True)
class Job:
    """One row of `outbox_reindex_jobs`."""

    id: int
    index_name: str
    old_index: str
    new_index: str | None
    state: str
    phase: str
    tenant_id: str | None
    since: str | None
    keep_old: int
    adopt: int
    watermark: int | None
    position: str | None
    documents: int
    refused: int
    removed: int
    total: int
    error: str | None
    lease_token: str | None
    lease_holder: str | None
    lease_expires_at: int | None
    created_at: int
    updated_at: int
    finished_at: int | None

    @property
    def is_open(self) -> bool:
        return self.state in (JobState.RUNNING, JobState.FAILING, JobState.CANCELLING)

    @property
    def target(self) -> str:
        """The physical index that it writes to."""
        return self.new_index or self.old_index

    @property
    def last_id(self) -> int:
        """The last row whose content the scan has seen for sure."""
        return (self.watermark or 0) % EPOCH_STEP

    def __str__(self) -> str:
        what = f"into {self.new_index}" if self.new_index else "in place"
        part = (f", tenant {self.tenant_id}" if self.tenant_id else "") + (
            f", since {self.since}" if self.since else ""
        )
        return f"reindex {self.id} of {self.index_name} ({what}{part})"


class JobLost(Exception):
    """The job is not this process's to go on with: it was cancelled, has failed, or somebody else has its lease."""


class Jobs(Store):
    """The outbox tables with what a reindex asks of them. For one thread at a time, as the store."""

    # -- looking ------------------------------------------------------------------------------------------------

    def job(self, number: int) -> Job | None:
        return next(iter(self.jobs("id = ?", number)), None)

    def open_jobs(self) -> list[Job]:
        return self.jobs(OPEN_JOBS)

    def open_job(self, index: str) -> Job | None:
        return next(iter(self.jobs(f"index_name = ? AND ({OPEN_JOBS})", index)), None)

    def jobs(self, condition: str = "1", *parameters: Any) -> list[Job]:
        """Jobs in the order in which they began."""
        rows = self.run(f"SELECT * FROM outbox_reindex_jobs WHERE {condition} ORDER BY id", *parameters)
        return [Job(**row) for row in rows.mappings()]

    def abandoned(self, job: Job, now: int) -> bool:
        """Whether nobody works on an open job."""
        if job.lease_token is None or (job.lease_expires_at or 0) <= now:
            return True
        return presence.reindex_is_gone(self.path, job.lease_token)

    def orphans(self, now: int) -> list[Job]:
        """Open jobs whose worker was killed, or was a relay that has ended; none that somebody gave up on purpose."""
        return [job for job in self.open_jobs() if self.orphaned(job, now)]

    def orphaned(self, job: Job, now: int) -> bool:
        """Whether a job is one of them."""
        begun = job.lease_token is not None or (job.lease_holder is None and now - job.created_at > BEGUN_MS)
        return job.is_open and begun and self.abandoned(job, now)

    def kept(self, index: str) -> tuple[str, int] | None:
        """The old physical index that rows still go to, and how many documents it refused."""
        row = self.run(
            "SELECT physical_index, refused FROM outbox_indexes WHERE index_name = ? AND role = 'old'", index
        ).one_or_none()
        return (row[0], row[1]) if row else None

    def unfinished_up_to(self, index: str, last: int) -> int:
        """How many rows of the index, up to that id, are pending or claimed."""
        return int(
            self.run(
                "SELECT (SELECT count(*) FROM outbox_events INDEXED BY ix_outbox_events_fresh"
                f" WHERE {FRESH} AND index_name = :index AND id <= :last)"
                " + (SELECT count(*) FROM outbox_events INDEXED BY ix_outbox_events_held"
                f" WHERE ({HELD}) AND index_name = :index AND id <= :last)",
                {"index": index, "last": last},
            ).scalar_one()
        )

    def unsettled(self, index: str, document_ids: Sequence[str]) -> set[str]:
        """Those documents that have a row which is not done: what stands in the index may be older."""
        rows = self.run(
            "SELECT document_id FROM outbox_events WHERE state <> 'done' AND index_name = ?"
            " AND document_id IN (SELECT value FROM json_each(?))",
            index,
            json.dumps(list(document_ids)),
        )
        return {row[0] for row in rows}

    def claims(self, index: str, now: int) -> set[str]:
        """The claims that hold rows of the index."""
        rows = self.run(
            "SELECT DISTINCT claim_token FROM outbox_events INDEXED BY ix_outbox_events_held"
            f" WHERE ({HELD}) AND state = 'claimed' AND index_name = ? AND lease_expires_at > ?",
            index,
            now,
        )
        return {row[0] for row in rows}

    # -- the life of a job --------------------------------------------------------------------------------------

    def begin(
        self,
        index: str,
        old: str,
        new: str | None,
        *,
        tenant: str | None,
        since: str | None,
        keep_old: bool,
        adopt: bool,
        total: int,
    ) -> Job:
        """Note a new job. Raises `ReindexFailed` when the index has an open one."""
        try:
            with self.write(durable=True):
                number = self.run(
                    "INSERT INTO outbox_reindex_jobs"
                    " (index_name, old_index, new_index, phase, tenant_id, since, keep_old, adopt, total)"
                    " VALUES (?, ?, ?, 'create', ?, ?, ?, ?, ?)",
                    *(index, old, new, tenant, since, int(keep_old), int(adopt), total),
                ).lastrowid
        except IntegrityError:
            raise ReindexFailed(f"{self.open_job(index) or f'another reindex of {index}'} has just begun") from None
        return self._known(int(number))

    def take(self, job: Job, holder: str, now: int, lease_ms: int) -> Job | None:
        """Take the lease of a job that was seen to be abandoned. None if somebody else was faster."""
        token = secrets.token_hex(8)
        with self.write(durable=True):
            taken = self.run(
                "UPDATE outbox_reindex_jobs SET lease_token = ?, lease_holder = ?, lease_expires_at = ?"
                f" WHERE id = ? AND lease_token IS ? AND ({OPEN_JOBS})",
                *(token, holder, now + lease_ms, job.id, job.lease_token),
            ).rowcount
        if not taken:
            return None
        if job.lease_token:
            presence.forget_reindex(self.path, job.lease_token)
        return self._known(job.id)

    def give_back(self, job: Job, now: int, *, to_relays: bool = False) -> None:
        """Let the lease go. `to_relays`: as if its worker had been killed, so that the next relay goes on with it."""
        with self.write(durable=False):
            self.run(
                "UPDATE outbox_reindex_jobs SET lease_token = iif(:keep, lease_token, NULL), lease_expires_at = :now"
                " WHERE id = :id AND lease_token = :token",
                {"keep": to_relays, "now": now, "id": job.id, "token": job.lease_token},
            )

    def note(self, job: Job, now: int, lease_ms: int, *, durable: bool = False, **columns: Any) -> Job:
        """Write down how far the job is, and renew its lease. Raises `JobLost`, and `SchemaError` as `pin` says."""
        with self.write(durable=durable):
            self._note(job, now, lease_ms, **columns)
        return self._known(job.id)

    def _note(self, job: Job, now: int, lease_ms: int, **columns: Any) -> None:
        self.require_pinned()
        columns |= {"updated_at": now, "lease_expires_at": now + lease_ms}
        noted = self.run(
            f"UPDATE outbox_reindex_jobs SET {', '.join(f'{name} = ?' for name in columns)}"
            " WHERE id = ? AND lease_token = ? AND state = 'running'",
            *(*columns.values(), job.id, job.lease_token),
        ).rowcount
        if not noted:
            raise JobLost

    def rows_go_to_both(self, job: Job, now: int, lease_ms: int) -> Job:
        """From the next claim on, rows go to the new index too; and the watermark is fixed, in the same step.

        Rows that were claimed before know the old index only; their ids are not above the watermark, for they were
        committed before this transaction, beside which nobody writes: so the job waits for them before it swaps. What
        commits after it has a higher id, and goes to both.
        """
        with self.write(durable=True):
            self.run(
                "INSERT OR IGNORE INTO outbox_indexes (index_name, physical_index, role) VALUES (?, ?, 'new')",
                job.index_name,
                job.new_index,
            )
            self._fix_watermark(job, now, lease_ms)
        return self._known(job.id)

    def fix_watermark(self, job: Job, now: int, lease_ms: int, *, at_least: int) -> Job:
        """Give the documents of the job a version: below that of any row to come. `at_least`: an id."""
        with self.write(durable=True):
            self._fix_watermark(job, now, lease_ms, at_least)
        return self._known(job.id)

    def _fix_watermark(self, job: Job, now: int, lease_ms: int, at_least: int = 0) -> None:
        last = max(self.highest_id(), at_least)
        self.raise_ids(last)
        self._note(job, now, lease_ms, watermark=version(self.control().epoch, last), phase="scan")

    def rows_go_to_new(self, job: Job, now: int, lease_ms: int) -> Job:
        """The new index is the live one; the old one gets rows no more, or as long as it is kept."""
        with self.write(durable=True):
            self._note(job, now, lease_ms, phase="drop")
            if job.keep_old:
                self.run(
                    "UPDATE outbox_indexes SET role = 'old', refused = 0 WHERE index_name = ? AND physical_index = ?",
                    job.index_name,
                    job.old_index,
                )
            else:
                self.run(
                    "DELETE FROM outbox_indexes WHERE index_name = ? AND physical_index = ?",
                    job.index_name,
                    job.old_index,
                )
            self.run(
                "UPDATE outbox_indexes SET role = 'live' WHERE index_name = ? AND physical_index = ?",
                job.index_name,
                job.new_index,
            )
        return self._known(job.id)

    def stop(self, job: Job, state: JobState, error: str, now: int, *, own: bool) -> bool:
        """Fail or cancel a running job: rows go to its new index no more. False if it is too late for that.

        Once it is about to swap, only whoever holds its lease (`own`) knows whether that has happened.
        """
        with self.write(durable=True):
            stopped = self.run(
                "UPDATE outbox_reindex_jobs SET state = :state, error = :error, updated_at = :now"
                " WHERE id = :id AND state = 'running'"
                " AND phase <> 'drop' AND iif(:own, lease_token = :token, phase <> 'swap')",
                {
                    "state": state.value,
                    "error": printable(error),
                    "now": now,
                    "id": job.id,
                    "own": own,
                    "token": job.lease_token,
                },
            ).rowcount
            if stopped:
                self.run(
                    "DELETE FROM outbox_indexes WHERE index_name = ? AND physical_index = ? AND role = 'new'",
                    job.index_name,
                    job.new_index,
                )
        return bool(stopped)

    def finish(self, job: Job, state: JobState, now: int) -> Job:
        """The end of a job. Raises `JobLost`."""
        with self.write(durable=True):
            finished = self.run(
                "UPDATE outbox_reindex_jobs SET state = ?, updated_at = ?, finished_at = ?, lease_token = NULL,"
                f" lease_expires_at = NULL WHERE id = ? AND lease_token = ? AND ({OPEN_JOBS})",
                *(state.value, now, now, job.id, job.lease_token),
            ).rowcount
        if not finished:
            raise JobLost
        return self._known(job.id)

    def exchange(self, index: str, live: str, old: str) -> None:
        """After a rollback: the old index decides again, and the one that was live is kept."""
        with self.write(durable=True):
            for target, role in ((live, "old"), (old, "live")):
                self.run(
                    "UPDATE outbox_indexes SET role = ?, refused = 0 WHERE index_name = ? AND physical_index = ?",
                    *(role, index, target),
                )

    def forget(self, index: str, target: str) -> None:
        """Rows go to an old index no more."""
        with self.write(durable=True):
            self.run(
                "DELETE FROM outbox_indexes WHERE index_name = ? AND physical_index = ? AND role = 'old'",
                index,
                target,
            )

    def names_used(self, index: str) -> set[str]:
        """All physical names that an index had, as far as is known here."""
        rows = self.run(
            "SELECT physical_index FROM outbox_indexes WHERE index_name = :index UNION"
            " SELECT old_index FROM outbox_reindex_jobs WHERE index_name = :index UNION"
            " SELECT new_index FROM outbox_reindex_jobs WHERE index_name = :index AND new_index IS NOT NULL",
            {"index": index},
        )
        return {row[0] for row in rows}

    def _known(self, number: int) -> Job:
        found: Iterable[Job] = self.jobs("id = ?", number)
        return next(iter(found))
