"""The pages of the screens."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from outbox.admin import charts
from outbox.admin.context import Admin
from outbox.admin.rendering import page
from outbox.admin.screens import indexes, reindexes, verifications
from outbox.admin.screens import relays as processes
from outbox.admin.screens.indexes import Finished
from outbox.errors import InvalidInput

MOST_INDEXES: Final = 200
MOST_JOBS: Final = 50

routes = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


@routes.get("/indexes")
def list_indexes(request: Request, admin: Admin, name: str = "") -> Response:
    found = indexes.index_list(admin, name)
    return page(request, "indexes.html", indexes=found[:MOST_INDEXES], more=len(found) - MOST_INDEXES, name=name)


@routes.get("/index")
def index(request: Request, admin: Admin, index: str = "") -> Response:
    if not index:
        raise InvalidInput("say which index")
    found = indexes.index_details(admin, index)
    return page(request, "index.html", found=found, hours=_bars(found.hours), days=_bars(found.days))


@routes.get("/reindexes")
def list_reindexes(
    request: Request, admin: Admin, entity: str = "", tenant: str = "", from_date: str = "", keep_old: str = ""
) -> Response:
    """With an entity: what a reindex of it would do, to be confirmed."""
    asked = {"entity": entity, "tenant": tenant, "from_date": from_date.strip(), "keep_old": keep_old}
    planned = (
        reindexes.planned(admin, entity, asked["tenant"] or None, asked["from_date"] or None, keep_old=bool(keep_old))
        if entity
        else None
    )
    return page(
        request,
        "reindexes.html",
        jobs=reindexes.reindexes(admin, MOST_JOBS),
        kept=reindexes.kept(admin),
        asked=asked,
        planned=planned,
        entities=_entities(admin),
    )


@routes.get("/verifications")
def list_verifications(request: Request, admin: Admin) -> Response:
    return page(request, "verifications.html", runs=verifications.runs(admin), entities=_entities(admin))


@routes.get("/verifications/{number}")
def verification(request: Request, admin: Admin, number: int) -> Response:
    return page(request, "verification.html", run=verifications.run(admin, number))


@routes.get("/relays")
def relays(request: Request, admin: Admin) -> Response:
    return page(request, "relays.html", overview=admin.overviews.newest(), relays=processes.relays(admin))


def _entities(admin: Admin) -> list[str]:
    return [] if admin.registry is None else sorted(entity.name for entity in admin.registry)


def _bars(finished: list[Finished]) -> charts.Bars:
    return charts.bars([(each.done, each.dead) for each in finished])
