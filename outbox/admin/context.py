"""What the routes of the admin server work with, and how each of them gets it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Query, Request

from outbox.admin.chosen import spellings
from outbox.admin.database import Database
from outbox.admin.filter import as_text
from outbox.admin.metrics import Metrics
from outbox.admin.overview import OverviewCache
from outbox.admin.questions import Questions
from outbox.admin.readiness import Readiness
from outbox.admin.roles import Operator, operators_of
from outbox.admin.service import AdminService
from outbox.admin.statistics import IndexStatistics
from outbox.destinations.base import Destination
from outbox.entities.registry import EntityRegistry
from outbox.settings import Settings


@dataclass(frozen=True, slots=True)
class AdminContext:
    """The parts of one admin server."""

    settings: Settings
    registry: EntityRegistry | None
    database: Database
    destination: Destination
    questions: Questions
    service: AdminService
    overviews: OverviewCache
    metrics: Metrics
    readiness: Readiness
    of_indexes: IndexStatistics = field(default_factory=IndexStatistics)

    def spellings(self, tenant: str | None) -> tuple[str, ...]:
        """All spellings of a tenant that is asked for; none if none is."""
        return spellings(self.registry, tenant or None)

    @property
    def root_path(self) -> str:
        """What a proxy has before all paths."""
        return self.settings.admin_root_path or ""

    @property
    def operators(self) -> tuple[Operator, ...]:
        """Who has a token; none: only this machine is answered, without one."""
        return operators_of(self.settings)


# All are coroutines, so that none takes one of the threads that requests are answered on.


async def _context(request: Request) -> AdminContext:
    context: AdminContext = request.app.state.context
    return context


async def _caller(request: Request) -> str:
    operator: Operator | None = request.scope.get("outbox.operator")
    return f"{operator.name if operator else 'admin'} at {request.client.host if request.client else '?'}"


async def _filter_text(
    q: str = "",
    id: str = "",
    state: str = "",
    index: str = "",
    tenant: str = "",
    document: str = "",
    error_type: Annotated[str, Query(alias="errorType")] = "",
    error_field: Annotated[str, Query(alias="errorField")] = "",
) -> str:
    given = {"index": index, "tenant": tenant, "errorType": error_type, "errorField": error_field}
    return f"{q.strip()} {as_text({**given, 'id': id, 'document': document, 'state': state})}".strip()


Admin = Annotated[AdminContext, Depends(_context)]
Caller = Annotated[str, Depends(_caller)]
"""Who asks, for the log and the tables."""
FilterText = Annotated[str, Depends(_filter_text)]
"""Which rows a page is about, as its address says: in one line (`q`), by a parameter for each qualifier, or by both."""
