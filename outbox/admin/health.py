"""/health…, for probes and balancers, and /metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from outbox.admin.desk import Desk
from outbox.admin.metrics import Metrics
from outbox.admin.overview import Overviews
from outbox.errors import OutboxError


def router(desk: Desk, overviews: Overviews, metrics: Metrics) -> APIRouter:
    routes = APIRouter(include_in_schema=False)

    @routes.get("/health/live")
    async def live() -> dict[str, str]:
        """This process answers. Nothing else is asked: restarting it mends nothing that is broken elsewhere.

        On no thread of its own: it answers while all of them wait for something.
        """
        return {"status": "ok"}

    @routes.get("/health/ready")
    def ready(response: Response) -> dict[str, str]:
        """The database answers and has its tables. A search engine that is away makes nobody unready."""
        try:
            with desk.figures() as figures:
                figures.control()
        except OutboxError:
            response.status_code = 503
            return {"status": "unready"}
        return {"status": "ok"}

    @routes.get("/health")
    def health() -> dict[str, Any]:
        """What calls for somebody, with the figures that say so."""
        seen = overviews.newest()
        shown = seen.model_dump(
            mode="json",
            by_alias=True,
            include={"as_of", "alerts", "queue", "paused", "destination", "verification"},
        )
        return {
            "status": "alert" if seen.alerts else "ok",
            "relays": sum(relay.running for relay in seen.relays),
            **shown,
        }

    @routes.get("/metrics")
    def prometheus() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes
