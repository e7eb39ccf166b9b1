"""The dashboard: pages that are rendered here and work without a script; a small one renews what they show.

What an operator does is a form that is posted here; the answer leads back to a page (303), with what was done in its
query, so that a reload does nothing again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import parse_qs, parse_qsl, urlencode

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, RedirectResponse, Response

from outbox import logs
from outbox.admin import charts, guard, words
from outbox.admin.api import who
from outbox.admin.desk import Desk, NotFound
from outbox.admin.overview import Overviews
from outbox.admin.shapes import Event, ReindexJob, content, moment
from outbox.errors import InvalidInput
from outbox.store import jobs
from outbox.store.figures import DAY_MS, Backlog, Outcomes
from outbox.store.models import State, now_ms

ROWS: Final = 50
JOBS: Final = 10

_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=words.visible,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters |= words.FILTERS


@dataclass(frozen=True, slots=True)
class _OfTenant:
    """What is shown of one tenant above its rows."""

    backlog: Backlog
    day: Outcomes


async def _form(request: Request) -> dict[str, str]:
    """The fields of a posted form. The guard has bounded its size."""
    try:
        fields = parse_qs((await request.body()).decode(), keep_blank_values=True, max_num_fields=100)
    except ValueError:
        raise InvalidInput("this is no form") from None
    return {name: values[-1].strip() for name, values in fields.items()}


Form = Annotated[dict[str, str], Depends(_form)]


def router(app: FastAPI, desk: Desk, overviews: Overviews) -> APIRouter:
    routes = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
    token = desk.settings.admin_token.get_secret_value() if desk.settings.admin_token else None

    def page(request: Request, template: str, status: int = 200, **shown: Any) -> HTMLResponse:
        return _page(request, template, status, with_token=token is not None, **shown)

    # -- looking --------------------------------------------------------------------------------------------------

    @routes.get("/")
    def overview(request: Request) -> Response:
        seen = overviews.newest()
        with desk.figures() as figures:
            newest = [ReindexJob.of(figures, each) for each in jobs.newest(figures, JOBS)]
        entities = [] if desk.registry is None else sorted(entity.name for entity in desk.registry)
        depth = charts.line([minute.unfinished for minute in seen.history])
        finished = charts.bars([(minute.done, minute.dead) for minute in seen.history])
        return page(request, "overview.html", seen=seen, jobs=newest, entities=entities, depth=depth, finished=finished)

    @routes.get("/events")
    def events(
        request: Request,
        state: str = "",
        index: str = "",
        tenant: str = "",
        document: str = "",
        error_type: Annotated[str, Query(alias="errorType")] = "",
        cursor: str = "",
    ) -> Response:
        asked = {"state": state, "index": index, "tenant": tenant, "document": document, "errorType": error_type}
        given = {name: value for name, value in asked.items() if value}
        if state and state not in list(State):
            raise InvalidInput(f"there is no state {state!r}; there are {', '.join(State)}")
        if cursor and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 14):
            raise InvalidInput("the page is unknown: begin with the first one")
        chosen = _chosen(given)
        now = now_ms()
        with desk.figures() as figures:
            found = figures.page(
                state=State(state) if state else None,
                before=int(cursor) if cursor else None,
                limit=ROWS,
                **chosen,
            )
            dead = figures.dead_number(**chosen) if state == State.DEAD else 0
            of_tenant = None
            if tenant:
                of_tenant = _OfTenant(
                    figures.tenant_backlog(tenant, now), figures.outcomes_of_tenant(tenant, now - DAY_MS)
                )
        return page(
            request,
            "events.html",
            rows=[Event.of(row) for row in found.rows],
            dead=dead,
            now=now,
            tenant=of_tenant,
            asked=asked,
            given=given,
            older=None if found.older is None else words.rows_page({**given, "cursor": found.older}),
            first=not cursor,
            states=State,
            retention_hours=desk.settings.retention_hours,
        )

    @routes.get("/events/{number}")
    def event(request: Request, number: int) -> Response:
        with desk.figures() as figures:
            row = figures.event(number) if 0 < number < 10**13 else None
            if row is None:
                raise NotFound(f"row {number} does not exist; finished rows are removed after a while")
            of_document = {"index": row["index_name"], "document": row["document_id"], "limit": ROWS}
            newest = figures.page(**of_document)
            history, all_of_it = newest.rows, newest.older is None
            if number not in [each["id"] for each in history]:  # so old that looking for it from the newest on ended
                history += figures.page(**of_document, before=number + 1).rows
        lease = row["lease_expires_at"]
        return page(
            request,
            "event.html",
            row=Event.of(row),
            claimed_by=row["claimed_by"],
            lease_expires_at=lease and moment(lease),
            document=content(row["document"]),
            history=[Event.of(each) for each in history],
            all_of_it=all_of_it,
        )

    @routes.get("/api/docs")
    def reference(request: Request) -> Response:
        return page(request, "reference.html", api=app.openapi())

    # -- acting ---------------------------------------------------------------------------------------------------

    def act(path: str, do: Callable[[dict[str, str], str], tuple[str, str]]) -> None:
        """A form at `path`. `do` gets its fields and who sent it, and returns what was done, and the page to show."""

        @routes.post(path)
        def posted(request: Request, form: Form) -> Response:
            done, back = do(form, who(request))
            overviews.outdated()
            return RedirectResponse(f"{back}{'&' if '?' in back else '?'}{urlencode({'done': done})}", 303)

    def pause(form: dict[str, str], by: str) -> tuple[str, str]:
        if not (reason := form.get("reason", "")):
            raise InvalidInput("say why: whoever looks next wants to know")
        desk.pause(reason[:500], by)
        return "Paused. Applications go on writing, nothing is lost.", "/"

    def resume(_form: dict[str, str], by: str) -> tuple[str, str]:
        return ("Resumed." if desk.resume(by) else "It was not paused."), "/"

    def retry(form: dict[str, str], by: str) -> tuple[str, str]:
        result = desk.retry(by, **_selected(form))
        return words.retried(result.pending, result.superseded, result.overtaken), _back(form)

    def discard(form: dict[str, str], by: str) -> tuple[str, str]:
        if form.get("sure") != "yes":
            raise InvalidInput("tick that the index may miss what is discarded")
        removed = desk.discard(by, **_selected(form))
        return f"{logs.rows(removed)} removed for good.", _back(form)

    def reindex(form: dict[str, str], by: str) -> tuple[str, str]:
        started = desk.reindex(
            by, form.get("entity", ""), tenant=form.get("tenant") or None, since=form.get("from_date") or None
        )
        return f"Reindex {started.job.id} of {started.job.index_name} has begun: {logs.rows(started.estimated)}.", "/"

    def cancel(form: dict[str, str], by: str) -> tuple[str, str]:
        job = desk.cancel(by, _number(form, "job"))
        return f"Reindex {job.id} of {job.index_name} is being cancelled.", "/"

    def verify(form: dict[str, str], by: str) -> tuple[str, str]:
        desk.verify(by, entity=form.get("entity") or None, repair=form.get("repair") == "yes")
        return "A verification has begun; what it finds is shown here when it is over.", "/"

    for path, do in (
        ("/pause", pause),
        ("/resume", resume),
        ("/dead/retry", retry),
        ("/dead/discard", discard),
        ("/reindex", reindex),
        ("/reindex/cancel", cancel),
        ("/verify", verify),
    ):
        act(path, do)

    # -- who may --------------------------------------------------------------------------------------------------

    @routes.get("/login")
    def login(request: Request, next: str = "/") -> Response:
        return page(request, "login.html", next=_local(next), wrong=False)

    @routes.post("/login")
    def give_token(request: Request, form: Form) -> Response:
        back = _local(form.get("next", "/"))
        if token is None:
            return RedirectResponse(back, 303)
        if not guard.same(form.get("token", "").encode(), token):
            guard.log_wrong_token(request.client.host if request.client else "?")
            return page(request, "login.html", HTTPStatus.UNAUTHORIZED, next=back, wrong=True)
        answer = RedirectResponse(back, 303)
        secure = desk.settings.admin_tls_certificate is not None
        answer.set_cookie(
            guard.COOKIE,
            guard.session(token),
            max_age=guard.SESSION_S,
            httponly=True,
            samesite="strict",
            secure=secure,
        )
        return answer

    @routes.post("/logout")
    def logout() -> Response:
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(guard.COOKIE)
        return answer

    return routes


def error(request: Request, status: int, detail: str) -> Response | None:
    """An error page for a browser; None for programs, which get JSON."""
    if request.url.path.startswith("/api/v1/") or "text/html" not in request.headers.get("accept", ""):
        return None
    return _page(request, "error.html", status, with_token=False, title=HTTPStatus(status).phrase, detail=detail)


def _page(request: Request, template: str, status: int, **shown: Any) -> HTMLResponse:
    done = request.query_params.get("done", "")[:500]
    made = _environment.get_template(template).render(path=request.url.path, done=done, **shown)
    return HTMLResponse(made, status)


def _selected(form: dict[str, str]) -> dict[str, Any]:
    """Which dead rows a form means: one by its id, or all that a filter showed when the form was made, and no other."""
    if "id" in form:
        return {"ids": [_number(form, "id")]}
    given = dict(parse_qsl(form.get("of", "")))
    if given.get("state") != State.DEAD:
        raise InvalidInput("say which rows: one, or those of a filter of dead ones")
    return {**_chosen(given), "died_by": _number(form, "seen")}


def _chosen(given: dict[str, str]) -> dict[str, str]:
    """A filter of the page of rows, but for the state, as the tables are asked."""
    names = {"index": "index", "tenant": "tenant", "document": "document", "errorType": "error_type"}
    return {name: given[field] for field, name in names.items() if field in given}


def _number(form: dict[str, str], field: str) -> int:
    text = form.get(field, "")
    if not (text.isascii() and text.isdigit() and len(text) < 14):
        raise InvalidInput(f"{field} must be a number")
    return int(text)


def _back(form: dict[str, str]) -> str:
    """The page that a form was on."""
    if "of" in form:
        return words.rows_page(dict(parse_qsl(form["of"])))
    return _local(form.get("back", "/events?state=dead"))


def _local(address: str) -> str:
    """An address of this server, whatever was given: no page leads elsewhere."""
    plain = address.startswith("/") and not address.startswith("//") and "\\" not in address
    return address if plain and address.isprintable() else "/"
