"""What the routes of the admin server work with, and how each of them gets it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from outbox.admin.database import Database
from outbox.admin.metrics import Metrics
from outbox.admin.overview import OverviewCache
from outbox.admin.service import AdminService
from outbox.entities.registry import EntityRegistry
from outbox.entities.spelling import tenant_texts
from outbox.settings import Settings


@dataclass(frozen=True, slots=True)
class AdminContext:
    """The parts of one admin server."""

    settings: Settings
    registry: EntityRegistry | None
    database: Database
    service: AdminService
    overviews: OverviewCache
    metrics: Metrics

    def spellings(self, tenant: str | None) -> tuple[str, ...]:
        """All spellings of a tenant that is asked for; none if none is."""
        return tenant_texts(tenant, self.registry or ()) if tenant else ()

    @property
    def token(self) -> str | None:
        """What callers must know; None: only this machine is answered, without a token."""
        return self.settings.admin_token.get_secret_value() if self.settings.admin_token else None


# Both are coroutines, so that neither takes one of the threads that requests are answered on.


async def _context(request: Request) -> AdminContext:
    context: AdminContext = request.app.state.context
    return context


async def _caller(request: Request) -> str:
    return f"admin at {request.client.host if request.client else '?'}"


Admin = Annotated[AdminContext, Depends(_context)]
Caller = Annotated[str, Depends(_caller)]
"""Who asks, for the log and the tables."""
