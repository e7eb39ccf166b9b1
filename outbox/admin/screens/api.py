"""What the screens show, as JSON for programs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from outbox.admin.api import PROBLEMS, Id, Limit
from outbox.admin.context import Admin, Caller
from outbox.admin.screens import indexes, reindexes, verifications
from outbox.admin.screens import relays as processes
from outbox.admin.screens.indexes import IndexDetails, IndexLine
from outbox.admin.screens.needs import Need, needs
from outbox.admin.screens.reindexes import KeptIndex, RollbackRequest, RolledBack
from outbox.admin.screens.relays import RelayNow
from outbox.admin.screens.verifications import VerificationRun
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


@routes.get("/kept", tags=["reindex"], summary="Old indexes that a rebuild has kept for a rollback")
def kept(admin: Admin) -> list[KeptIndex]:
    return reindexes.kept(admin)


@routes.post("/reindex/rollback", tags=["reindex"], summary="Give readers the index back that a rebuild has kept")
def roll_back(asked: RollbackRequest, admin: Admin, caller: Caller) -> RolledBack:
    return reindexes.roll_back(admin, caller, asked.index)


@routes.get("/verify", tags=["verify"], summary="Comparisons of index and database, newest first")
def runs(admin: Admin, limit: Limit = 50) -> list[VerificationRun]:
    return verifications.runs(admin, limit)


@routes.get("/verify/{id}", tags=["verify"], summary="One comparison, with the documents that are wrong")
def run(id: Id, admin: Admin) -> VerificationRun:
    return verifications.run(admin, id)


@routes.post("/verify/{id}/cancel", tags=["verify"], status_code=202, summary="Stop one that this server runs")
def cancel_verification(id: Id, admin: Admin, caller: Caller) -> VerificationRun:
    return verifications.cancel(admin, caller, id)


@routes.get("/relays", tags=["relays"], summary="What each relay does now, lost ones first")
def relays(admin: Admin) -> list[RelayNow]:
    return processes.relays(admin)


@routes.get("/needs", tags=["look"], summary="What needs a person, what is urgent first")
def list_needs(admin: Admin) -> list[Need]:
    return needs(admin.overviews.newest())
