"""The pages of the dashboard: rendered here, and of use without a script; a small one renews what they show."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from outbox.admin import charts, formats, row
from outbox.admin.context import Admin, AdminContext, FilterText
from outbox.admin.dead import Group, groups
from outbox.admin.filter import RowFilter, parse
from outbox.admin.rendering import page
from outbox.admin.screens.needs import needs
from outbox.admin.shapes import Document, Done, Event, ReindexJob
from outbox.destinations.remedies import remedy_of
from outbox.entities.keys import Tenancy
from outbox.errors import InvalidInput
from outbox.store import audit, causes, figures, filtered, jobs
from outbox.store.figures import DAY_MS, Backlog, Outcomes
from outbox.store.models import State, now_ms
from outbox.store.store import Store

ROWS: Final = 50
JOBS: Final = 10

routes = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


@dataclass(frozen=True, slots=True)
class _OfTenant:
    """What is shown of one tenant above its rows."""

    is_active: bool  # rows of it wait, are dead, or have ended in a day
    backlog: Backlog
    day: Outcomes


@routes.get("/")
def overview(request: Request, admin: Admin) -> Response:
    newest = admin.overviews.newest()
    with admin.database.store() as store:
        targets = store.targets()
        reindexes = [ReindexJob.of(store, each, admin.settings.admin_hide) for each in jobs.newest(store, JOBS)]
    return page(
        request,
        "overview.html",
        overview=newest,
        needs=needs(newest),
        jobs=reindexes,
        sparks={each.entity: (charts.spark(each.hours), charts.spark(each.days)) for each in newest.entities},
        pages=_pages(admin, targets),
        depth=charts.line([minute.unfinished for minute in newest.history]),
        finished=charts.bars([(minute.done, minute.dead) for minute in newest.history]),
    )


def _pages(admin: AdminContext, targets: Collection[str]) -> dict[str, str]:
    """Where the name of an index or an entity leads to."""
    found = {index: formats.index_page(index) for index in targets}
    for entity in admin.registry or ():
        of_tenants = entity.tenancy is Tenancy.INDEX
        listed = f"/indexes?{urlencode({'name': entity.index})}"
        found[entity.name] = listed if of_tenants else formats.index_page(entity.index)
    return found


@routes.get("/events")
def events(request: Request, admin: Admin, text: FilterText, cursor: str = "") -> Response:
    if cursor and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 14):
        raise InvalidInput("the page is unknown: begin with the first one")
    try:
        given = parse(text)
    except InvalidInput as error:
        return page(request, "unread.html", HTTPStatus.UNPROCESSABLE_ENTITY, text=text, wrong=str(error))
    asked, tenants, now = given.parameters, admin.spellings(given.tenant), now_ms()
    only_dead, before = given.state is State.DEAD, int(cursor) if cursor else None
    with admin.database.store() as store:
        found = filtered.page(store, state=given.state, before=before, limit=ROWS, tenants=tenants, **given.narrowing)
        of_tenant = _of_tenant(store, tenants, now) if tenants else None
        by_cause: list[Group] = []
        others = dead = 0
        if only_dead and asked.keys() <= {"state", "index"} and not cursor:
            counted = admin.overviews.causes.read(store, causes.count(store), now)
            by_cause, others = groups(store, counted, given.index, admin.settings.admin_hide)
            dead = sum(each.cause.rows for each in by_cause) + others
        elif of_tenant is not None and asked.keys() == {"state", "tenant"} and only_dead:
            dead = of_tenant.backlog.dead
        elif only_dead and not cursor and found.older is None:
            dead = len(found.rows)
        elif only_dead:
            dead = filtered.count(store, State.DEAD, tenants=tenants, **given.narrowing)
    return page(
        request,
        "events.html",
        rows=[Event.of(row, admin.settings.admin_hide) for row in found.rows],
        dead=dead,
        groups=by_cause,
        others=others,
        remedy=remedy_of(given.error) if given.error and only_dead else None,
        tenant=of_tenant,
        text=text,
        asked=given,
        given=asked,
        older=None if found.older is None else formats.rows_page({**asked, "cursor": found.older}),
        first=not cursor,
        states=_by_state(given),
        retention_hours=admin.settings.retention_hours,
    )


def _by_state(given: RowFilter) -> list[tuple[str, str, bool]]:
    """The same filter with each state: what the link says, where it leads, and whether that is here."""
    others = {name: value for name, value in given.parameters.items() if name != "state"}
    found = [(each.value, formats.rows_page({"state": each.value, **others}), each is given.state) for each in State]
    return [("any state", formats.rows_page(others), given.state is None), *found]


def _of_tenant(store: Store, tenants: tuple[str, ...], now: int) -> _OfTenant:
    backlog, day = figures.tenant_backlog(store, tenants, now), figures.outcomes_of_tenant(store, tenants, now - DAY_MS)
    return _OfTenant(bool(backlog.unfinished or backlog.dead or day.finished), backlog, day)


@routes.get("/events/{number}")
def event(request: Request, admin: Admin, number: int) -> Response:
    with admin.database.store() as store:
        found = row.found(store, number, admin.settings.admin_hide)
        of_document = partial(figures.newest_rows, store, index=found.index, document=found.document_id, limit=ROWS)
        newest = of_document()
        history, all_of_it = newest.rows, newest.older is None
        if number not in [each["id"] for each in history]:  # so old that the look from the newest on ended before it
            history += of_document(before=number + 1).rows
    return page(
        request,
        "event.html",
        row=found,
        history=[Event.of(each, admin.settings.admin_hide) for each in history],
        all_of_it=all_of_it,
    )


@routes.get("/document")
def document(request: Request, admin: Admin, index: str = "", id: str = "") -> Response:
    if not (index and id):
        raise InvalidInput("say which document: index and id")
    found = Document.of(admin.service.look(index, id), admin.settings.admin_hide)
    with admin.database.store() as store:
        rows = figures.newest_rows(store, index=index, document=id, limit=ROWS).rows
    expected, held = found.expected or {}, found.held or {}
    return page(
        request,
        "document.html",
        found=found,
        names=[*expected, *(name for name in held if name not in expected)],
        differing={path.partition(".")[0] for path in found.differs} | {*found.differs},
        history=[Event.of(each, admin.settings.admin_hide) for each in rows],
    )


@routes.get("/audit")
def actions(request: Request, admin: Admin) -> Response:
    with admin.database.store() as store:
        done = [Done.of(row, admin.settings.admin_hide) for row in audit.newest(store, ROWS)]
    return page(request, "audit.html", actions=done)


@routes.get("/api/docs")
def reference(request: Request, admin: Admin) -> Response:
    return page(request, "reference.html", api=request.app.openapi(), root_path=admin.root_path)
