"""Dead rows by what they died of, with the remedy; and the question before something is done to all that match."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Final, NamedTuple

from fastapi import APIRouter, Query, Request
from starlette.responses import HTMLResponse, Response

from outbox.admin.context import Admin
from outbox.admin.forms import narrowed
from outbox.admin.rendering import page
from outbox.admin.shapes import Event
from outbox.destinations.remedies import remedy_of
from outbox.errors import InvalidInput
from outbox.settings.tokens import Role
from outbox.store import causes, figures
from outbox.store.causes import NONE, Cause
from outbox.store.models import State, now_ms
from outbox.store.store import Store

routes = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


class _Act(NamedTuple):
    """What can be done to all dead rows that match: where it is posted, and who may."""

    path: str
    role: Role
    title: str
    text: str
    tick: str


ACTS: Final = {
    "retry": _Act(
        "/dead/retry",
        Role.OPERATE,
        "Retry",
        "Remove the cause first. Each row goes back to its old place in the order; one whose document has moved on is "
        "done as superseded, or stays dead as overtaken.",
        "",
    ),
    "discard": _Act(
        "/dead/discard",
        Role.ADMINISTER,
        "Discard",
        "For good. The index misses these changes then.",
        "The index may miss them",
    ),
}


class Group(NamedTuple):
    """Rows that died of the same, as the page shows them. `given`: the filter that finds them."""

    cause: Cause
    given: dict[str, str]
    remedy: str
    example: Event


def groups(store: Store, index: str | None, hide: Collection[str]) -> tuple[list[Group], int]:
    """The most frequent causes, and how many rows died of further ones."""
    found = causes.causes(store, index=index)
    return [_group(each, index, hide) for each in found.causes], found.others


def _group(cause: Cause, index: str | None, hide: Collection[str]) -> Group:
    given = {"state": State.DEAD.value, "errorType": cause.error_type or NONE, "errorField": cause.error_field or NONE}
    if index is not None:
        given["index"] = index
    return Group(cause, given, remedy_of(cause.error_type), Event.of(cause.example, hide))


@routes.get("/dead/confirm")
def confirm(
    request: Request,
    admin: Admin,
    do: str = "",
    state: str = "",
    index: str = "",
    tenant: str = "",
    document: str = "",
    error_type: Annotated[str, Query(alias="errorType")] = "",
    error_field: Annotated[str, Query(alias="errorField")] = "",
) -> Response:
    """How many rows it would be, and the button that does it: to those alone that are dead by now."""
    if do not in ACTS:
        raise InvalidInput(f"there is no action {do!r}; there are {', '.join(ACTS)}")
    if state != State.DEAD:
        raise InvalidInput("only dead rows can be retried or discarded: ask for state=dead")
    asked = {
        "state": state,
        "index": index,
        "tenant": tenant,
        "document": document,
        "errorType": error_type,
        "errorField": error_field,
    }
    given = {name: value for name, value in asked.items() if value}
    chosen: dict[str, Any] = narrowed(given)
    chosen.pop("tenant", None)
    now = now_ms()
    with admin.database.store() as store:
        number = figures.count_dead(store, tenants=admin.spellings(tenant), **chosen)
    return page(request, "confirm.html", act=ACTS[do], number=number, given=given, now=now)
