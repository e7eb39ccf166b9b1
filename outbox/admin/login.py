"""Where a browser gives the token, and gets a cookie in its place."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request
from loguru import logger
from starlette.responses import HTMLResponse, RedirectResponse, Response

from outbox import logs
from outbox.admin import sessions
from outbox.admin.context import Admin
from outbox.admin.forms import Form, local
from outbox.admin.rendering import page
from outbox.admin.roles import with_token

routes = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


@routes.get("/login")
def login(request: Request, next: str = "/") -> Response:
    return page(request, "login.html", next=local(next), wrong=False)


@routes.post("/login")
def give_token(request: Request, form: Form, admin: Admin) -> Response:
    back, operators = local(form.get("next", "/")), admin.operators
    if not operators:
        return RedirectResponse(back, 303)
    operator = with_token(operators, form.get("token", "").strip().encode())
    if operator is None:
        client = request.client.host if request.client else "?"
        logger.warning("admin: a wrong token was given at the login by {client}", client=logs.safe(client))
        return page(request, "login.html", HTTPStatus.UNAUTHORIZED, next=back, wrong=True)
    answer = RedirectResponse(back, 303)
    answer.set_cookie(
        sessions.COOKIE,
        sessions.session(operator.token),
        max_age=sessions.SESSION_S,
        httponly=True,
        samesite="strict",
        path=admin.root_path or "/",
        secure=request.url.scheme == "https",
    )
    return answer


@routes.post("/logout")
def logout(admin: Admin) -> Response:
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(sessions.COOKIE, path=admin.root_path or "/")
    return answer
