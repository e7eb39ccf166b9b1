"""/health…, for probes and balancers, and /metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from outbox.admin.context import Admin
from outbox.errors import OutboxError

routes = APIRouter(include_in_schema=False)


@routes.get("/health/live")
async def live() -> dict[str, str]:
    """This process answers. Nothing else is asked: restarting it mends nothing that is broken elsewhere.

    On no thread of its own: it answers while all of them wait for something.
    """
    return {"status": "ok"}


@routes.get("/health/ready")
def ready(request: Request, response: Response, admin: Admin) -> dict[str, str]:
    """The database answers and has its tables, and the relay of this process, if there is one, gets somewhere.

    A destination that is away makes no server unready. Who does not know the token is not told why.
    """
    try:
        with admin.database.store() as store:
            reason = admin.readiness.problem(store)
    except OutboxError:
        response.status_code = 503
        return {"status": "unready"}
    if reason is None:
        return {"status": "ok"}
    response.status_code = 503
    known = request.scope.get("outbox.operator") is not None or not admin.operators
    return {"status": "unready"} | ({"reason": reason} if known else {})


@routes.get("/health")
def health(admin: Admin) -> dict[str, Any]:
    """What an operator must be told of, with the figures that say so."""
    overview = admin.overviews.newest()
    shown = overview.model_dump(
        mode="json",
        by_alias=True,
        include={"as_of", "alerts", "queue", "paused", "destination", "verification"},
    )
    return {
        "status": "alert" if overview.alerts else "ok",
        "relays": sum(relay.running for relay in overview.relays),
        **shown,
    }


@routes.get("/metrics")
def prometheus(admin: Admin) -> Response:
    return Response(admin.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
