"""The comparisons of index and database: what runs, what was found, and which documents are wrong."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, Final, Literal

from loguru import logger
from pydantic import Field

from outbox import logs
from outbox.admin.chosen import NotFound
from outbox.admin.context import AdminContext
from outbox.admin.followed import Followed
from outbox.admin.hidden import without_value
from outbox.admin.shapes import Comparison, Model
from outbox.store import audit, verifications
from outbox.store.drift import DriftKind
from outbox.store.shown import moment
from outbox.verify import Drift

MOST: Final = 50


class DriftedDocument(Model):
    """One document that is not as the database says."""

    kind: Literal["missing", "different", "extra", "version", "failed"]
    entity: str
    index: str
    document_id: str
    tenant_id: str | None
    fields: list[str] = Field(description="some that differ")
    error: str | None

    @classmethod
    def of(cls, drift: Drift, hide: Collection[str]) -> DriftedDocument:
        return cls(
            kind=drift.kind.value,
            entity=drift.entity,
            index=drift.index,
            document_id=drift.document_id,
            tenant_id=drift.tenant_id,
            fields=list(drift.fields),
            error=without_value(drift.error, hide),
        )


class Progress(Model):
    """How far a verification is that runs in this server."""

    side: str = Field(description="database: it reads the rows of an entity; index: the documents of an index")
    name: str = Field(description="of that entity or index")
    done: int
    total: int | None
    rate: float | None = Field(description="documents a second, on average since it began")
    eta_seconds: float | None = Field(description="until that entity is compared; null: it cannot be said")


class VerificationRun(Comparison):
    """A comparison of index and database, also one that runs."""

    id: int
    status: Literal["running", "done", "failed", "unknown"] = Field(
        description="unknown: it has not ended, and does not run in this server: elsewhere, or it was killed"
    )
    started_at: datetime
    finished_at: datetime | None
    scheduled: bool
    listed: int = Field(description="documents of the index that were looked up in the database")
    progress: Progress | None
    wrong: list[DriftedDocument] | None = Field(
        description="the first hundred; null: not known, since this server has not begun it"
    )


def runs(admin: AdminContext, limit: int = MOST) -> list[VerificationRun]:
    """The newest; the newest hundred are kept."""
    with admin.database.store() as store:
        found = verifications.newest(store)[:limit]
    return [_run(row, admin.service.followed.of(row["id"]), admin.settings.admin_hide) for row in found]


def run(admin: AdminContext, number: int) -> VerificationRun:
    """Raises `NotFound`."""
    found = next((each for each in runs(admin, 100) if each.id == number), None)
    if found is None:
        raise NotFound(f"there is no verification {number}; the newest hundred are kept")
    return found


def cancel(admin: AdminContext, by: str, number: int) -> VerificationRun:
    """Have one that this server runs end where it is. Raises `NotFound` if it does not run here."""
    found = run(admin, number)
    if found.status != "running":
        raise NotFound(f"verification {number} does not run in this server: stop it where it was begun")
    with admin.database.store() as store, audit.noted(store, by, "verify", audit.described({"cancel": number})):
        admin.service.followed.cancel(number)
    logger.info("verification {number} cancelled by {by}", number=number, by=logs.safe(by))
    return found


def _run(row: dict[str, Any], followed: Followed | None, hide: Collection[str]) -> VerificationRun:
    ended = row["finished_at"] is not None
    same = {name: row[name] for name in VerificationRun.model_fields if name in row}
    instants = {name: row[name] and moment(row[name]) for name in ("started_at", "finished_at")}
    wrong = None if followed is None else [DriftedDocument.of(each, hide) for each in list(followed.documents)]
    counted = {} if followed is None or ended else {"documents": followed.compared}
    return VerificationRun(
        **(same | instants | counted),
        status=("failed" if row["error"] else "done") if ended else "running" if followed else "unknown",
        by=row["started_by"],
        drift=sum(row[kind] for kind in DriftKind) if ended else len(wrong or ()),
        progress=_progress(followed),
        wrong=wrong,
    )


def _progress(followed: Followed | None) -> Progress | None:
    at = followed.checked if followed is not None and followed.runs else None
    if followed is None or at is None:
        return None
    return Progress(
        side=at.side, name=at.name, done=at.done, total=at.total, rate=followed.rate, eta_seconds=followed.eta
    )
