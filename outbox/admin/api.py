"""/api/v1/admin: what operators see and do, as JSON for programs. Errors are problem details (RFC 9457)."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request

from outbox.admin.desk import Desk, NotFound
from outbox.admin.overview import Overviews
from outbox.admin.shapes import (
    Accepted,
    DeadSelection,
    Discarded,
    Event,
    EventWithDocument,
    Overview,
    Page,
    Paused,
    PauseRequest,
    Problem,
    ReindexJob,
    ReindexRequest,
    ReindexStarted,
    Retried,
    Text,
    VerifyRequest,
    content,
)
from outbox.store.jobs import find, newest
from outbox.store.models import State

# -- the routes -------------------------------------------------------------------------------------------------------

PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem, "description": what}
    for code, what in {
        400: "the body is no JSON",
        401: "no token, or a wrong one",
        403: "sent by a page of another site",
        404: "it does not exist",
        409: "not now: the state does not allow it",
        413: "the body is too large",
        422: "what was asked for makes no sense",
        502: "the search engine does not answer",
        503: "the database does not answer, or has tables of another version",
    }.items()
}


def who(request: Request) -> str:
    """Who asks, for the log and the table."""
    return f"admin at {request.client.host if request.client else '?'}"


def router(desk: Desk, overviews: Overviews) -> APIRouter:
    routes = APIRouter(prefix="/api/v1/admin", responses=PROBLEMS)

    @routes.get("/status", tags=["look"], summary="How the relays and the index are")
    def status() -> Overview:
        return overviews.newest()

    @routes.get("/events", tags=["look"], summary="Rows of the outbox, newest first")
    def events(
        state: State | None = None,
        index: Annotated[Text | None, Query()] = None,
        tenant: Annotated[Text | None, Query()] = None,
        document: Annotated[Text | None, Query(description="document id; with index: its whole history")] = None,
        error_type: Annotated[Text | None, Query(alias="errorType")] = None,
        cursor: Annotated[str | None, Query(pattern=r"^[0-9]{1,13}$")] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> Page:
        with desk.figures() as figures:
            found = figures.page(
                state=state,
                index=index,
                tenant=tenant,
                document=document,
                error_type=error_type,
                before=None if cursor is None else int(cursor),
                limit=limit,
            )
        return Page(
            items=[Event.of(row) for row in found.rows],
            next_cursor=None if found.older is None else str(found.older),
        )

    @routes.get("/events/{id}", tags=["look"], summary="One row, with its document")
    def event(id: Annotated[int, Path(ge=1, le=10**12)]) -> EventWithDocument:
        with desk.figures() as figures:
            row = figures.event(id)
        if row is None:
            raise NotFound(f"row {id} does not exist; finished rows are removed after OUTBOX_RETENTION_HOURS")
        return EventWithDocument(**Event.columns(row), document=content(row["document"]))

    @routes.post("/dead/retry", tags=["dead rows"], summary="Try dead rows again")
    def retry(selection: DeadSelection, request: Request) -> Retried:
        result = desk.retry(who(request), **selection.words())
        overviews.outdated()
        return Retried(
            pending=result.pending,
            superseded=result.superseded,
            overtaken={str(row): later for row, later in result.overtaken.items()},
        )

    @routes.post("/dead/discard", tags=["dead rows"], summary="Remove dead rows for good; the index misses them then")
    def discard(selection: DeadSelection, request: Request) -> Discarded:
        removed = desk.discard(who(request), **selection.words())
        overviews.outdated()
        return Discarded(removed=removed)

    @routes.post("/pause", tags=["relays"], summary="Keep all relays from claiming rows; nothing is lost")
    def pause(asked: PauseRequest, request: Request) -> Paused:
        desk.pause(asked.reason, who(request))
        overviews.outdated()
        return Paused(paused=True, changed=True)

    @routes.post("/resume", tags=["relays"], summary="Let relays claim rows again")
    def resume(request: Request) -> Paused:
        changed = desk.resume(who(request))
        overviews.outdated()
        return Paused(paused=False, changed=changed)

    @routes.post("/reindex", tags=["reindex"], status_code=202, summary="Rebuild the index of an entity")
    def reindex(asked: ReindexRequest, request: Request) -> ReindexStarted:
        started = desk.reindex(who(request), asked.entity, tenant=asked.tenant_id, since=asked.from_date)
        overviews.outdated()
        return ReindexStarted(job_id=started.job.id, status=started.job.state, estimated_documents=started.estimated)

    @routes.get("/reindex", tags=["reindex"], summary="Rebuilds of indexes, newest first")
    def jobs(limit: Annotated[int, Query(ge=1, le=500)] = 50) -> list[ReindexJob]:
        with desk.figures() as figures:
            return [ReindexJob.of(figures, each) for each in newest(figures, limit)]

    @routes.get("/reindex/{id}", tags=["reindex"], summary="How far one is")
    def job(id: Annotated[int, Path(ge=1, le=10**12)]) -> ReindexJob:
        with desk.figures() as figures:
            found = find(figures, id)
            if found is None:
                raise NotFound(f"there is no reindex {id}")
            return ReindexJob.of(figures, found)

    @routes.post("/reindex/{id}/cancel", tags=["reindex"], status_code=202, summary="Stop one, and remove its index")
    def cancel(id: Annotated[int, Path(ge=1, le=10**12)], request: Request) -> ReindexJob:
        cancelled = desk.cancel(who(request), id)
        overviews.outdated()
        with desk.figures() as figures:
            return ReindexJob.of(figures, cancelled)

    @routes.post("/verify", tags=["verify"], status_code=202, summary="Compare entities with their indexes")
    def verify(asked: VerifyRequest, request: Request) -> Accepted:
        desk.verify(who(request), entity=asked.entity, tenant=asked.tenant_id, sample=asked.sample, repair=asked.repair)
        return Accepted()

    return routes
