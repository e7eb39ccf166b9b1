"""What the screens show, as JSON for programs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from outbox.admin.api import PROBLEMS, Limit
from outbox.admin.context import Admin
from outbox.admin.screens import indexes
from outbox.admin.screens.indexes import IndexDetails, IndexLine
from outbox.admin.shapes import Text

routes = APIRouter(prefix="/api/v1/admin", responses=PROBLEMS)


@routes.get("/indexes", tags=["indexes"], summary="All indexes, those that need somebody first")
def list_indexes(
    admin: Admin, name: Annotated[Text | None, Query(description="part of the name")] = None, limit: Limit = 200
) -> list[IndexLine]:
    return indexes.index_list(admin, name or "")[:limit]


@routes.get("/index", tags=["indexes"], summary="One index: its rows, what holds it up, how it is made")
def index(admin: Admin, index: Annotated[Text, Query()]) -> IndexDetails:
    return indexes.index_details(admin, index)
