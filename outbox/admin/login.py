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

routes = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


@routes.get("/login")
def login(request: Request, admin: Admin, next: str = "/") -> Response:
    return page(request, admin, "login.html", next=local(next), wrong=False)


@routes.post("/login")
def give_token(request: Request, form: Form, admin: Admin) -> Response:
    back, token = local(form.get("next", "/")), admin.token
    if token is None:
        return RedirectResponse(back, 303)
    if not sessions.same(form.get("token", "").encode(), token):
        client = request.client.host if request.client else "?"
        logger.warning("admin: a wrong token was given at the login by {client}", client=logs.safe(client))
        return page(request, admin, "login.html", HTTPStatus.UNAUTHORIZED, next=back, wrong=True)
    answer = RedirectResponse(back, 303)
    answer.set_cookie(
        sessions.COOKIE,
        sessions.session(token),
        max_age=sessions.SESSION_S,
        httponly=True,
        samesite="strict",
        secure=admin.settings.admin_tls_certificate is not None,
    )
    return answer


@routes.post("/logout")
def logout() -> Response:
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(sessions.COOKIE)
    return answer
