"""The parts put together: one ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from loguru import logger
from sqlalchemy import Engine
from starlette.exceptions import HTTPException
from starlette.responses import Response

from outbox import __version__, logs
from outbox.admin import api, confirm, forms, health, login, pages
from outbox.admin.chosen import NotFound
from outbox.admin.context import AdminContext
from outbox.admin.database import Database
from outbox.admin.guard import PROBLEM, App, Guard, problem
from outbox.admin.metrics import Metrics
from outbox.admin.overview import OverviewCache
from outbox.admin.poller import Poller
from outbox.admin.proxies import believing
from outbox.admin.questions import Questions
from outbox.admin.readiness import Readiness, RunningRelay
from outbox.admin.rendering import error_page
from outbox.admin.screens import api as screens_api
from outbox.admin.screens import pages as screens
from outbox.admin.service import AdminService
from outbox.destinations.base import Destination
from outbox.entities.registry import EntityRegistry
from outbox.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    DestinationError,
    InvalidInput,
    OutboxError,
    ReindexFailed,
    SchemaError,
)
from outbox.mappings import DriftWatch
from outbox.settings import Settings

STATUS: Final[dict[type[OutboxError], HTTPStatus]] = {
    NotFound: HTTPStatus.NOT_FOUND,
    ReindexFailed: HTTPStatus.CONFLICT,
    InvalidInput: HTTPStatus.UNPROCESSABLE_ENTITY,
    SchemaError: HTTPStatus.SERVICE_UNAVAILABLE,
    ConfigurationError: HTTPStatus.UNPROCESSABLE_ENTITY,
    DatabaseUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    DestinationError: HTTPStatus.BAD_GATEWAY,
}
"""What the errors of the product are in HTTP; the first that fits counts."""

ROOMS: Final = (api, screens_api, health, pages, confirm, screens, forms, login)
"""The modules with the routes."""


def create_app(
    engine: Engine,
    settings: Settings,
    destination: Destination,
    registry: EntityRegistry | None,
    relay: RunningRelay | None = None,
) -> App:
    """The admin server as an ASGI application, for a server such as uvicorn. It must run the lifespan.

    `engine`: prepared, of a database at the revision that this version needs. `registry`: without one, reindex and
    verify answer that they need it. `relay`: the one of this process, if there is one. Closes none of what it is given.
    Raises `ConfigurationError` for a root path that cannot be told from the server's own.
    """
    _check_root_path(settings.admin_root_path or "")
    database = Database(engine)
    service = AdminService(database, settings, destination, registry)
    poller = Poller(database, destination)
    drift = DriftWatch(destination, registry or EntityRegistry())

    def look_for_drift() -> None:
        with database.store() as store:
            drift.look(store)

    indexes = {entity.name: entity.index for entity in registry or ()}
    overviews = OverviewCache(
        database,
        lambda: poller.destination,
        lambda: drift.found,
        indexes,
        silent_ms=settings.silent_ms,
        hide=settings.admin_hide,
    )
    poller.add(overviews.read_statistics)
    poller.add(look_for_drift)
    metrics = Metrics(overviews, set(indexes.values()))
    readiness = Readiness(relay, lambda: poller.destination, settings)
    context = AdminContext(
        settings, registry, database, destination, Questions(), service, overviews, metrics, readiness
    )

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        poller.start()
        yield
        poller.stop()
        service.stop()

    app = FastAPI(
        title="outbox-relay",
        version=__version__,
        summary="How the outbox and its relays are, and what operators can do about it",
        lifespan=life,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.state.context = context
    for room in ROOMS:
        app.include_router(room.routes)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
    app.openapi = partial(_described, app)  # type: ignore[method-assign]
    app.add_exception_handler(OutboxError, _failed)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _crashed)
    secure = settings.admin_tls_certificate is not None
    guarded = Guard(app, operators=context.operators, secure=secure, root_path=context.root_path)
    return believing(guarded, settings.admin_proxies) if settings.admin_proxies else guarded


def _check_root_path(root_path: str) -> None:
    """A proxy may leave the root path out: a path must not look as if it did."""
    own = {"static", *(route.path.split("/")[1] for room in ROOMS for route in room.routes.routes)}
    if root_path and root_path.split("/")[1] in own:
        raise ConfigurationError(
            f"OUTBOX_ADMIN_ROOT_PATH: {root_path} begins as paths of the admin server itself do; choose another, "
            "e.g. /outbox"
        )


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document; FastAPI writes there that a problem is plain JSON."""
    document = FastAPI.openapi(app)
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if status >= "4" and "application/json" in answer["content"]:
                    answer["content"] = {PROBLEM: answer["content"].pop("application/json")}
    return document


async def _failed(request: Request, error: Exception) -> Response:
    status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), None)
    if status is None:
        return await _crashed(request, error)
    return error_page(request, status, str(error)) or _problem(status, str(error))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # Without what was given: it may be a secret, and need not be JSON.
    errors = [{"at": ".".join(map(str, each["loc"])), "message": each["msg"]} for each in error.errors()]
    malformed = any(each["type"] == "json_invalid" for each in error.errors())
    status = HTTPStatus.BAD_REQUEST if malformed else HTTPStatus.UNPROCESSABLE_ENTITY
    detail = "; ".join(f"{each['at']}: {each['message']}" for each in errors)
    return error_page(request, status, detail) or _problem(status, detail, errors=errors)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    detail = status.description or status.phrase
    return error_page(request, status, detail) or _problem(status, detail, headers=error.headers)


async def _crashed(request: Request, error: Exception) -> Response:
    logger.opt(exception=error).error(
        "admin: {method} {path} failed: {error}",
        method=logs.safe(request.method),
        path=logs.safe(request.url.path),
        error=logs.safe(repr(error)),
    )
    status, detail = HTTPStatus.INTERNAL_SERVER_ERROR, "a defect of the admin server: its log says more"
    return error_page(request, status, detail) or _problem(status, detail)


def _problem(status: HTTPStatus, detail: str, headers: Any = None, **more: Any) -> Response:
    body = {**problem(status, detail), **more}
    return JSONResponse(body, status, headers=headers, media_type=PROBLEM)
