"""What an operator does on the dashboard: forms that are posted here.

The answer leads back to a page (303), with what was done in its query, so that a reload does nothing again.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import parse_qs, parse_qsl, urlencode

from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from outbox import logs
from outbox.admin import formats
from outbox.admin.context import Admin, AdminContext, Caller
from outbox.admin.filter import as_text, parse
from outbox.admin.screens import reindexes, verifications
from outbox.errors import InvalidInput
from outbox.store.models import State

routes = APIRouter(include_in_schema=False)


async def _form(request: Request) -> dict[str, str]:
    """The fields of a posted form, as they are: ids and tenants may end in a blank. The guard has bounded its size."""
    try:
        fields = parse_qs((await request.body()).decode(), keep_blank_values=True, max_num_fields=100)
    except ValueError:
        raise InvalidInput("this is no form") from None
    return {name: values[-1] for name, values in fields.items()}


Form = Annotated[dict[str, str], Depends(_form)]


@routes.post("/pause")
def pause(form: Form, admin: Admin, caller: Caller) -> Response:
    if not (reason := form.get("reason", "").strip()):
        raise InvalidInput("say why: the next operator wants to know")
    paused = admin.service.pause(reason[:500], caller, **_part(form))
    what = "Paused" if paused.is_of_all else f"Paused: {paused.what}"
    return _done(admin, f"{what}. Applications go on writing, nothing is lost.", local(form.get("back", "/")))


@routes.post("/resume")
def resume(form: Form, admin: Admin, caller: Caller) -> Response:
    resumed = admin.service.resume(caller, **_part(form))
    return _done(admin, "Resumed." if resumed else "It was not paused.", local(form.get("back", "/")))


def _part(form: dict[str, str]) -> dict[str, str | None]:
    """The index and the tenant whose rows are meant; None: all."""
    return {"index": form.get("index") or None, "tenant": form.get("tenant") or None}


@routes.post("/dead/retry")
def retry(form: Form, admin: Admin, caller: Caller) -> Response:
    result = admin.service.retry(caller, **_selected(form, State.DEAD))
    return _done(admin, formats.retried(result.pending, result.superseded, result.overtaken), _back(form))


@routes.post("/dead/discard")
def discard(form: Form, admin: Admin, caller: Caller) -> Response:
    if form.get("sure") != "yes":
        raise InvalidInput("tick that the index may miss what is discarded")
    removed = admin.service.discard(caller, **_selected(form, State.DEAD))
    return _done(admin, f"{logs.rows(removed)} removed for good.", _back(form))


@routes.post("/purge")
def purge(form: Form, admin: Admin, caller: Caller) -> Response:
    if form.get("sure") != "yes":
        raise InvalidInput("tick that the index may miss what is purged")
    removed = admin.service.purge(caller, **_selected(form, State.PENDING))
    return _done(admin, f"{logs.rows(removed)} removed for good.", _back(form))


@routes.post("/document/deliver")
def deliver(form: Form, admin: Admin, caller: Caller) -> Response:
    index, document_id = form.get("index", ""), form.get("id", "")
    if not (index and document_id):
        raise InvalidInput("say which document: index and id")
    admin.service.deliver_again(caller, index, document_id)
    return _done(admin, "It is on its way again.", formats.document_page(index, document_id))


@routes.post("/reindex")
def reindex(form: Form, admin: Admin, caller: Caller) -> Response:
    started = admin.service.reindex(
        caller,
        form.get("entity", ""),
        tenant=form.get("tenant") or None,
        since=form.get("from_date") or None,
        keep_old=form.get("keep_old") == "yes",
    )
    job = started.job
    begun = f"Reindex {job.id} of {job.index_name} has begun: {logs.rows(started.estimated)}."
    return _done(admin, begun, "/reindexes")


@routes.post("/reindex/cancel")
def cancel(form: Form, admin: Admin, caller: Caller) -> Response:
    job = admin.service.cancel(caller, _number(form, "job"))
    return _done(admin, f"Reindex {job.id} of {job.index_name} is being cancelled.", local(form.get("back", "/")))


@routes.post("/reindex/rollback")
def roll_back(form: Form, admin: Admin, caller: Caller) -> Response:
    if form.get("sure") != "yes":
        raise InvalidInput("tick that readers get the kept index")
    found = reindexes.roll_back(admin, caller, form.get("index", ""))
    missing = f" It misses {found.refused:,} documents that it did not take: rebuild it." if found.refused else ""
    return _done(admin, f"Readers and rows of {found.index} have {found.live} again.{missing}", "/reindexes")


@routes.post("/verify")
def verify(form: Form, admin: Admin, caller: Caller) -> Response:
    entity, tenant = form.get("entity") or None, form.get("tenant") or None
    admin.service.verify(caller, entity=entity, tenant=tenant, repair=form.get("repair") == "yes")
    return _done(admin, "A verification has begun.", "/verifications")


@routes.post("/verify/cancel")
def cancel_verification(form: Form, admin: Admin, caller: Caller) -> Response:
    found = verifications.cancel(admin, caller, _number(form, "id"))
    return _done(admin, f"Verification {found.id} ends where it is.", "/verifications")


def _done(admin: AdminContext, what: str, back: str = "/") -> Response:
    """To the page `back`, which says what was done."""
    admin.overviews.invalidate()
    return RedirectResponse(f"{back}{'&' if '?' in back else '?'}{urlencode({'done': what})}", 303)


def local(address: str) -> str:
    """An address of this server, whatever was given: no page leads elsewhere."""
    plain = address.startswith("/") and not address.startswith("//") and "\\" not in address
    return address if plain and address.isprintable() else "/"


def _selected(form: dict[str, str], state: State) -> dict[str, Any]:
    """Which rows a form means: one by its id, or all that a filter showed when the form was made, and no other."""
    if "id" in form:
        return {"ids": [_number(form, "id")]}
    given = parse(as_text(dict(parse_qsl(form.get("of", "")))))
    if given.state is not state:
        raise InvalidInput(f"say which rows: one, or those of a filter with state:{state}")
    found = given.narrowing | {"died_by" if state is State.DEAD else "up_to": _number(form, "seen")}
    if given.id is not None:
        found["ids"] = [found.pop("id")]
    return found | ({} if given.tenant is None else {"tenant": given.tenant})


def _number(form: dict[str, str], field: str) -> int:
    text = form.get(field, "")
    if not (text.isascii() and text.isdigit() and len(text) < 14):
        raise InvalidInput(f"{field} must be a number")
    return int(text)


def _back(form: dict[str, str]) -> str:
    """The page that a form was on."""
    if "of" in form:
        return formats.rows_page(dict(parse_qsl(form["of"])))
    return local(form.get("back", "/events?state=dead"))
