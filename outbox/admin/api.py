"""/api/v1/admin: what operators see and do, as JSON for programs. Errors are problem details (RFC 9457)."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from outbox.admin import row
from outbox.admin.asked import (
    DeadSelection,
    DocumentChoice,
    PauseRequest,
    ReindexRequest,
    ResumeRequest,
    RowSelection,
    VerifyRequest,
)
from outbox.admin.chosen import NotFound
from outbox.admin.context import Admin, Caller
from outbox.admin.filter import as_text, parse
from outbox.admin.row import EventWithDocument
from outbox.admin.shapes import (
    Accepted,
    Document,
    Done,
    Event,
    Overview,
    Page,
    Paused,
    Problem,
    ReindexJob,
    ReindexStarted,
    Removed,
    Retried,
    Text,
)
from outbox.store import audit, filtered
from outbox.store import jobs as reindexes
from outbox.store.models import State

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
        502: "the destination does not answer",
        503: "the database does not answer, or has tables of another version",
    }.items()
}

Id = Annotated[int, Path(ge=1, le=10**12)]
Limit = Annotated[int, Query(ge=1, le=500)]

routes = APIRouter(prefix="/api/v1/admin", responses=PROBLEMS)


@routes.get("/status", tags=["look"], summary="How the relays and the index are")
def status(admin: Admin) -> Overview:
    return admin.overviews.newest()


@routes.get("/events", tags=["look"], summary="Rows of the outbox, newest first")
def events(
    admin: Admin,
    state: State | None = None,
    index: Annotated[Text | None, Query()] = None,
    tenant: Annotated[Text | None, Query()] = None,
    document: Annotated[Text | None, Query(description="document id; with index: its whole history")] = None,
    error_type: Annotated[Text | None, Query(alias="errorType")] = None,
    error_field: Annotated[Text | None, Query(alias="errorField", description="the field that the error names")] = None,
    q: Annotated[str, Query(max_length=4_000, description="the filter of the dashboard; a row must fit it too")] = "",
    cursor: Annotated[str | None, Query(pattern=r"^[0-9]{1,13}$")] = None,
    limit: Limit = 50,
) -> Page:
    named = {"index": index, "tenant": tenant, "errorType": error_type, "errorField": error_field}
    named |= {"document": document, "state": state}
    given = parse(f"{q} {as_text({name: value for name, value in named.items() if value})}")
    with admin.database.store() as store:
        found = filtered.page(
            store,
            state=given.state,
            before=None if cursor is None else int(cursor),
            limit=limit,
            tenants=admin.spellings(given.tenant),
            **given.narrowing,
        )
    return Page(
        items=[Event.of(row, admin.settings.admin_hide) for row in found.rows],
        next_cursor=None if found.older is None else str(found.older),
    )


@routes.get(
    "/events/{id}",
    tags=["look"],
    summary="One row, with its document and its history",
    response_model=EventWithDocument,
)
def event(id: Id, admin: Admin) -> Response:
    with admin.database.store() as store:
        found = row.found(store, id, admin.settings.admin_hide)
    return Response(found.as_json(), media_type="application/json")


@routes.get("/document", tags=["look"], summary="One document: what the database says, and what the index holds")
def document(admin: Admin, index: Annotated[Text, Query()], id: Annotated[Text, Query()]) -> Document:
    return Document.of(admin.service.look(index, id), admin.settings.admin_hide)


@routes.post("/document/deliver", tags=["look"], status_code=202, summary="Deliver one document again")
def deliver(asked: DocumentChoice, admin: Admin, caller: Caller) -> Accepted:
    admin.service.deliver_again(caller, asked.index, asked.document_id)
    admin.overviews.invalidate()
    return Accepted()


@routes.get("/audit", tags=["look"], summary="What operators did, newest first")
def actions(
    admin: Admin,
    by: Annotated[Text | None, Query()] = None,
    cursor: Annotated[int | None, Query(ge=1, le=10**12, description="the id of the last of the page before")] = None,
    limit: Limit = 50,
) -> list[Done]:
    with admin.database.store() as store:
        found = audit.newest(store, limit, before=cursor, by=by)
    return [Done.of(row, admin.settings.admin_hide) for row in found]


@routes.post("/dead/retry", tags=["dead rows"], summary="Try dead rows again")
def retry(selection: DeadSelection, admin: Admin, caller: Caller) -> Retried:
    if selection.dry_run:
        selected = admin.service.count(State.DEAD, **selection.words())
        return Retried(selected=selected, pending=0, superseded=0, overtaken={})
    result = admin.service.retry(caller, **selection.words())
    admin.overviews.invalidate()
    return Retried(
        selected=result.pending + result.superseded + len(result.overtaken),
        pending=result.pending,
        superseded=result.superseded,
        overtaken={str(row): later for row, later in result.overtaken.items()},
    )


@routes.post("/dead/discard", tags=["dead rows"], summary="Remove dead rows for good; the index misses them then")
def discard(selection: DeadSelection, admin: Admin, caller: Caller) -> Removed:
    if selection.dry_run:
        return Removed(selected=admin.service.count(State.DEAD, **selection.words()), removed=0)
    removed = admin.service.discard(caller, **selection.words())
    admin.overviews.invalidate()
    return Removed(selected=removed, removed=removed)


@routes.post("/purge", tags=["pending rows"], summary="Remove pending rows for good; the index misses them then")
def purge(selection: RowSelection, admin: Admin, caller: Caller) -> Removed:
    if selection.dry_run:
        return Removed(selected=admin.service.count(State.PENDING, **selection.words()), removed=0)
    removed = admin.service.purge(caller, **selection.words())
    admin.overviews.invalidate()
    return Removed(selected=removed, removed=removed)


@routes.post("/pause", tags=["relays"], summary="Keep relays from claiming rows; nothing is lost")
def pause(asked: PauseRequest, admin: Admin, caller: Caller) -> Paused:
    admin.service.pause(asked.reason, caller, index=asked.index, tenant=asked.tenant_id)
    admin.overviews.invalidate()
    return Paused(paused=True, changed=True)


@routes.post("/resume", tags=["relays"], summary="Let relays claim rows again")
def resume(admin: Admin, caller: Caller, asked: ResumeRequest | None = None) -> Paused:
    given = asked or ResumeRequest()
    changed = admin.service.resume(caller, index=given.index, tenant=given.tenant_id)
    admin.overviews.invalidate()
    return Paused(paused=False, changed=changed)


@routes.post("/reindex", tags=["reindex"], status_code=202, summary="Rebuild the index of an entity")
def reindex(asked: ReindexRequest, admin: Admin, caller: Caller) -> ReindexStarted:
    started = admin.service.reindex(
        caller, asked.entity, tenant=asked.tenant_id, since=asked.from_date, keep_old=asked.keep_old
    )
    admin.overviews.invalidate()
    return ReindexStarted(job_id=started.job.id, status=started.job.state, estimated_documents=started.estimated)


@routes.get("/reindex", tags=["reindex"], summary="Rebuilds of indexes, newest first")
def jobs(admin: Admin, limit: Limit = 50) -> list[ReindexJob]:
    with admin.database.store() as store:
        return [ReindexJob.of(store, each, admin.settings.admin_hide) for each in reindexes.newest(store, limit)]


@routes.get("/reindex/{id}", tags=["reindex"], summary="How far one is")
def job(id: Id, admin: Admin) -> ReindexJob:
    with admin.database.store() as store:
        found = reindexes.find(store, id)
        if found is None:
            raise NotFound(f"there is no reindex {id}")
        return ReindexJob.of(store, found, admin.settings.admin_hide)


@routes.post("/reindex/{id}/cancel", tags=["reindex"], status_code=202, summary="Stop one, and remove its index")
def cancel(id: Id, admin: Admin, caller: Caller) -> ReindexJob:
    cancelled = admin.service.cancel(caller, id)
    admin.overviews.invalidate()
    with admin.database.store() as store:
        return ReindexJob.of(store, cancelled, admin.settings.admin_hide)


@routes.post("/verify", tags=["verify"], status_code=202, summary="Compare entities with their indexes")
def verify(asked: VerifyRequest, admin: Admin, caller: Caller) -> Accepted:
    admin.service.verify(caller, entity=asked.entity, tenant=asked.tenant_id, sample=asked.sample, repair=asked.repair)
    return Accepted()
