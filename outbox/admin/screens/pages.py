"""The pages of the screens."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from outbox.admin import charts
from outbox.admin.context import Admin
from outbox.admin.rendering import page
from outbox.admin.screens import indexes
from outbox.admin.screens.indexes import Finished
from outbox.errors import InvalidInput

MOST_INDEXES: Final = 200

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


def _bars(finished: list[Finished]) -> charts.Bars:
    return charts.bars([(each.done, each.dead) for each in finished])
