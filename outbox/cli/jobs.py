"""A job of a reindex, as status and reindex show it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from outbox import logs
from outbox.store import jobs
from outbox.store.jobs import Job
from outbox.store.models import now_ms
from outbox.store.store import Store


def job_facts(store: Store, job: Job) -> dict[str, Any]:
    """A job for other programs."""
    shown = {name: value for name, value in asdict(job).items() if name != "lease_token"}
    return {**shown, "abandoned": job.is_open and jobs.is_abandoned(store, job, now_ms())}


def job_line(store: Store, job: Job) -> str:
    """A job for people."""
    where = f"{job}: {job.state}"
    if job.is_open:
        where += f" at step '{job.phase}', {job.documents:,} of {logs.rows(job.total)}"
        if jobs.is_abandoned(store, job, now_ms()):
            return logs.safe(f"{where}, ABANDONED  → outbox-relay reindex --resume, or --cancel {job.id}")
        return logs.safe(f"{where}, by {job.lease_holder}")
    return logs.safe(where + (f": {job.error}" if job.error else f", {job.documents:,} documents"))
