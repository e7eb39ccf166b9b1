"""Every statement about the jobs of a reindex, and about what a reindex asks of rows and claims."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import IntegrityError

from outbox.errors import ReindexFailed
from outbox.store import versions
from outbox.store.models import OPEN_JOBS, OPEN_STATES, JobState, unfinished
from outbox.store.store import Store, printable


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
    last_id: int | None

    @property
    def is_open(self) -> bool:
        return self.state in OPEN_STATES

    @property
    def target(self) -> str:
        """The physical index that it writes to."""
        return self.new_index or self.old_index

    def __str__(self) -> str:
        what = f"into {self.new_index}" if self.new_index else "in place"
        part = (f", tenant {self.tenant_id}" if self.tenant_id else "") + (
            f", since {self.since}" if self.since else ""
        )
        return f"reindex {self.id} of {self.index_name} ({what}{part})"


class JobLost(Exception):
    """The job is no longer this process's: it was cancelled, has failed, or another process holds its lease."""


# -- looking --------------------------------------------------------------------------------------------------------


def find(store: Store, number: int) -> Job | None:
    """The job of that number, or None."""
    return next(iter(_select(store, "WHERE id = :id", id=number)), None)


def every(store: Store) -> list[Job]:
    """All jobs, open and ended, in the order in which they began."""
    return _select(store)


def newest(store: Store, limit: int) -> list[Job]:
    """So many jobs, newest first."""
    return _select(store, "WHERE id > (SELECT max(id) FROM outbox_reindex_jobs) - :limit", limit=limit)[::-1]


def newest_of(store: Store, index: str, limit: int) -> list[Job]:
    """So many jobs of an index, newest first."""
    return _select(store, "WHERE index_name = :index", index=index)[::-1][:limit]


def open_jobs(store: Store) -> list[Job]:
    """Jobs that have not ended."""
    return _select(store, f"WHERE {OPEN_JOBS}")


def open_job(store: Store, index: str) -> Job | None:
    """The one job of an index that has not ended, or None."""
    return next(iter(_select(store, f"WHERE index_name = :index AND ({OPEN_JOBS})", index=index)), None)


def _select(store: Store, condition: str = "", **parameters: Any) -> list[Job]:
    rows = store.run(f"SELECT * FROM outbox_reindex_jobs {condition} ORDER BY id", parameters)
    return [Job(**row) for row in rows.mappings()]


def reread(store: Store, job: Job) -> Job:
    """A job as its row is now."""
    return _get(store, job.id)


def _get(store: Store, number: int) -> Job:
    (found,) = _select(store, "WHERE id = :id", id=number)
    return found


def is_abandoned(store: Store, job: Job, now: int) -> bool:
    """Whether no process works on an open job."""
    if job.lease_token is None or (job.lease_expires_at or 0) <= now:
        return True
    return bool(store.presence.dead("reindex", [job.lease_token]))


def orphans(store: Store, now: int) -> list[Job]:
    """Open jobs that a relay resumes by itself: see `is_orphan`."""
    return [job for job in open_jobs(store) if is_orphan(store, job, now)]


def is_orphan(store: Store, job: Job, now: int) -> bool:
    """Whether the process of an open job was killed, or was a relay that has ended. A job that was interrupted at a
    terminal is none: it waits for `--resume`."""
    return job.is_open and job.lease_token is not None and is_abandoned(store, job, now)


def kept_index(store: Store, index: str) -> tuple[str, int] | None:
    """The old physical index that rows still go to, and how many documents it refused."""
    row = store.run(
        "SELECT physical_index, refused FROM outbox_indexes WHERE index_name = :index AND role = 'old'", index=index
    ).one_or_none()
    return (row[0], row[1]) if row else None


def names_used(store: Store, index: str) -> set[str]:
    """All physical names that an index is known to have had."""
    rows = store.run(
        "SELECT physical_index FROM outbox_indexes WHERE index_name = :index UNION"
        " SELECT old_index FROM outbox_reindex_jobs WHERE index_name = :index UNION"
        " SELECT new_index FROM outbox_reindex_jobs WHERE index_name = :index AND new_index IS NOT NULL",
        index=index,
    )
    return {row[0] for row in rows}


def unsettled(store: Store, index: str, document_ids: Sequence[str]) -> set[str]:
    """Those documents that have a row which is not done: the index may hold an older state of them."""
    rows = store.run(
        "SELECT document_id FROM outbox_events WHERE state <> 'done' AND index_name = :index"
        f" AND document_id {store.dialect.among('ids')}",
        index=index,
        ids=list(document_ids),
    )
    return {row[0] for row in rows}


def claims_on(store: Store, index: str, now: int) -> set[str]:
    """The tokens of the claims that hold rows of the index."""
    rows = store.run(
        f"SELECT DISTINCT claim_token FROM outbox_events {store.dialect.indexed('leases')}"
        " WHERE state = 'claimed' AND index_name = :index AND lease_expires_at > :now",
        index=index,
        now=now,
    )
    return {row[0] for row in rows}


# -- the life of a job ----------------------------------------------------------------------------------------------


def begin(
    store: Store,
    index: str,
    old: str,
    new: str | None,
    *,
    tenant: str | None,
    since: str | None,
    keep_old: bool,
    adopt: bool,
    total: int,
    holder: str,
    now: int,
    lease_ms: int,
) -> Job:
    """Enter a new job with its lease taken, so that nobody finds it abandoned meanwhile.

    Raises `ReindexFailed` when the index has an open one.
    """
    try:
        with store.write(durable=True):
            number = store.run(
                "INSERT INTO outbox_reindex_jobs"
                " (index_name, old_index, new_index, phase, tenant_id, since, keep_old, adopt, total,"
                " lease_token, lease_holder, lease_expires_at)"
                " VALUES (:index, :old, :new, 'create', :tenant, :since, :keep_old, :adopt, :total,"
                " :token, :holder, :until) RETURNING id",
                index=index,
                old=old,
                new=new,
                tenant=tenant,
                since=since,
                keep_old=int(keep_old),
                adopt=int(adopt),
                total=total,
                token=_new_token(),
                holder=holder,
                until=now + lease_ms,
            ).scalar_one()
    except IntegrityError:
        raise ReindexFailed(f"{open_job(store, index) or f'another reindex of {index}'} has just begun") from None
    return _get(store, number)


def take(store: Store, job: Job, holder: str, now: int, lease_ms: int) -> Job | None:
    """Take the lease of a job that was found abandoned. None if another process was faster."""
    token = _new_token()
    with store.write(durable=True):
        taken = store.run(
            "UPDATE outbox_reindex_jobs SET lease_token = :token, lease_holder = :holder, lease_expires_at = :until"
            f" WHERE id = :job AND coalesce(lease_token, '') = coalesce(:before, '') AND ({OPEN_JOBS})",
            token=token,
            holder=holder,
            until=now + lease_ms,
            job=job.id,
            before=job.lease_token,
        ).rowcount
        if taken and job.lease_token:  # nobody would know of its file if this process were killed after the commit
            store.presence.remove_locks("reindex", [job.lease_token])
    return reread(store, job) if taken else None


def _new_token() -> str:
    return secrets.token_hex(8)


def release(store: Store, job: Job, now: int, *, to_relays: bool = False) -> None:
    """Let the lease go. `to_relays`: as if its process had been killed, so that the next relay resumes it."""
    token = "" if to_relays else "lease_token = NULL, "
    with store.write(durable=False):
        store.run(
            f"UPDATE outbox_reindex_jobs SET {token}lease_expires_at = :now WHERE id = :job AND lease_token = :token",
            now=now,
            job=job.id,
            token=job.lease_token,
        )


def update(store: Store, job: Job, now: int, lease_ms: int, *, durable: bool = False, **columns: Any) -> Job:
    """Write columns of a running job and renew its lease. Raises `JobLost`, and `SchemaError` as `Store.pin` says."""
    with store.write(durable=durable):
        _update(store, job, now, lease_ms, **columns)
    return reread(store, job)


def _update(store: Store, job: Job, now: int, lease_ms: int, **columns: Any) -> None:
    store.require_pinned()
    columns |= {"updated_at": now, "lease_expires_at": now + lease_ms}
    updated = store.run(
        f"UPDATE outbox_reindex_jobs SET {', '.join(f'{name} = :{name}' for name in columns)}"
        " WHERE id = :job AND lease_token = :token AND state = 'running'",
        {**columns, "job": job.id, "token": job.lease_token},
    ).rowcount
    if not updated:
        raise JobLost


def send_rows_to_both(store: Store, job: Job, now: int, lease_ms: int, *, entity: str) -> Job:
    """From the next claim on, rows go to the new index too; and the watermark is drawn, in the same transaction.

    Rows that were claimed before go to the old index only: what they say is in the database, and so in the scan. Those
    of later claims go to both, with a version above the watermark.
    """
    last_id = _last_finished(store, job)
    with store.write(durable=True, alone=True):
        store.run(
            "INSERT INTO outbox_indexes (index_name, physical_index, role) SELECT :index, :new, 'new' WHERE NOT EXISTS"
            " (SELECT 1 FROM outbox_indexes WHERE index_name = :index AND physical_index = :new)",
            index=job.index_name,
            new=job.new_index,
        )
        _draw_watermark(store, job, now, lease_ms, last_id, entity)
    return reread(store, job)


def draw_watermark(store: Store, job: Job, now: int, lease_ms: int, *, above: int, entity: str) -> Job:
    """Give the documents of the job a version below that of any claim to come. `above`: a token."""
    last_id = _last_finished(store, job)
    with store.write(durable=True, alone=True):
        store.dialect.raise_tokens(store.run, above)
        _draw_watermark(store, job, now, lease_ms, last_id, entity)
    return reread(store, job)


def _draw_watermark(store: Store, job: Job, now: int, lease_ms: int, last_id: int, entity: str) -> None:
    _update(store, job, now, lease_ms, watermark=versions.draw(store), last_id=last_id, phase="scan")
    # What waits with a content of its own, written without the entities, may be delivered after the scan and is older
    # than what that has read: after it, these documents are loaded again.
    store.run(
        "INSERT INTO outbox_events (action, index_name, document_id, tenant_id, entity, document_bytes, created_at)"
        " SELECT 'refresh', index_name, document_id, max(tenant_id), :entity, 0, :now"
        f" FROM outbox_events {store.dialect.indexed('held')}"
        f" WHERE ({unfinished()}) AND index_name = :index AND action <> 'refresh' GROUP BY index_name, document_id",
        index=job.index_name,
        entity=entity,
        now=now,
    )


def _last_finished(store: Store, job: Job) -> int:
    """An id up to which every row of the index is finished."""
    highest = store.highest_id()
    first = store.run(
        f"SELECT min(id) FROM outbox_events {store.dialect.indexed('held')}"
        f" WHERE ({unfinished()}) AND index_name = :index",
        index=job.index_name,
    ).scalar_one()
    return highest if first is None else min(highest, first - 1)


def send_rows_to_new(store: Store, job: Job, now: int, lease_ms: int, *, phase: str, keep_old: bool) -> Job:
    """The new index becomes the live one; the old one gets no more rows, unless it is kept."""
    with store.write(durable=True, alone=True):
        _update(store, job, now, lease_ms, phase=phase)
        if keep_old:
            _set_role(store, job.index_name, job.old_index, "old")
        else:
            _remove_target(store, job.index_name, job.old_index)
        _set_role(store, job.index_name, str(job.new_index), "live")
    return reread(store, job)


def stop(store: Store, job: Job, state: JobState, error: str, now: int, *, own: bool) -> bool:
    """Fail or cancel a running job: its new index gets no more rows. False if it is too late for that.

    Once it is about to swap, only the process that holds its lease (`own`) knows whether that has happened.
    """
    unless_swapped = "lease_token = :token" if own else "phase <> 'swap'"
    with store.write(durable=True):
        stopped = store.run(
            "UPDATE outbox_reindex_jobs SET state = :state, error = :error, updated_at = :now"
            f" WHERE id = :job AND state = 'running' AND phase <> 'drop' AND {unless_swapped}",
            state=state.value,
            error=printable(error),
            now=now,
            job=job.id,
            token=job.lease_token,
        ).rowcount
        if stopped and job.new_index:
            _remove_target(store, job.index_name, job.new_index, role="new")
    return bool(stopped)


def finish(store: Store, job: Job, state: JobState, now: int) -> Job:
    """The end of a job. Raises `JobLost`."""
    with store.write(durable=True):
        finished = store.run(
            "UPDATE outbox_reindex_jobs SET state = :state, updated_at = :now, finished_at = :now, lease_token = NULL,"
            f" lease_expires_at = NULL WHERE id = :job AND lease_token = :token AND ({OPEN_JOBS})",
            state=state.value,
            now=now,
            job=job.id,
            token=job.lease_token,
        ).rowcount
    if not finished:
        raise JobLost
    return reread(store, job)


# -- where rows go, after a job -------------------------------------------------------------------------------------


def exchange(store: Store, index: str, live: str, old: str) -> None:
    """After a rollback: the old index decides again, and the one that was live is kept."""
    with store.write(durable=True):
        _set_role(store, index, live, "old")
        _set_role(store, index, old, "live")


def drop_kept(store: Store, index: str, old: str) -> None:
    """The kept old index gets no more rows."""
    with store.write(durable=True):
        _remove_target(store, index, old, role="old")


def _set_role(store: Store, index: str, target: str, role: str) -> None:
    """Inside `write`. What an old index refuses is counted from here on."""
    store.run(
        "UPDATE outbox_indexes SET role = :role, refused = 0 WHERE index_name = :index AND physical_index = :target",
        role=role,
        index=index,
        target=target,
    )


def _remove_target(store: Store, index: str, target: str, role: str | None = None) -> None:
    """Inside `write`. `role`: only if it has that one."""
    store.run(
        "DELETE FROM outbox_indexes WHERE index_name = :index AND physical_index = :target"
        " AND role = coalesce(:role, role)",
        role=role,
        index=index,
        target=target,
    )
