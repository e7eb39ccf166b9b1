"""The question before something is done to all rows that fit a filter: how many they are, and what becomes of them."""

from __future__ import annotations

from typing import Final, NamedTuple

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from outbox.admin.context import Admin, FilterText
from outbox.admin.filter import parse
from outbox.admin.rendering import page
from outbox.errors import InvalidInput
from outbox.settings.tokens import Role
from outbox.store import filtered
from outbox.store.models import State, now_ms

routes = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


class Act(NamedTuple):
    """What can be done to all rows of a state: where it is posted, who may, and what becomes of them.

    `others`: which rows it leaves alone.
    """

    path: str
    state: State
    role: Role
    title: str
    text: str
    others: str
    tick: str


_DIE_LATER: Final = "Rows that die from now on are left alone."

ACTS: Final = {
    "retry": Act(
        "/dead/retry",
        State.DEAD,
        Role.OPERATE,
        "Retry",
        "Remove the cause first. Each row goes back to its old place in the order; one whose document has moved on is "
        "done as superseded, or stays dead as overtaken.",
        _DIE_LATER,
        "",
    ),
    "discard": Act(
        "/dead/discard",
        State.DEAD,
        Role.ADMINISTER,
        "Discard",
        "What is discarded is gone for good. The index misses these changes then.",
        _DIE_LATER,
        "The index may miss them",
    ),
    "purge": Act(
        "/purge",
        State.PENDING,
        Role.ADMINISTER,
        "Purge",
        "What is purged is gone for good, and never delivered. The index misses these changes then.",
        "Rows that are written from now on are left alone, and so are those that a relay claims first.",
        "The index may miss them",
    ),
}


@routes.get("/confirm")
def confirm(request: Request, admin: Admin, text: FilterText, do: str = "") -> Response:
    """How many rows it would be, and the button that does it: to those alone that are there by now."""
    if do not in ACTS:
        raise InvalidInput(f"there is no action {do!r}; there are {', '.join(ACTS)}")
    act, given = ACTS[do], parse(text)
    if given.state is not act.state:
        raise InvalidInput(f"only {act.state} rows can be chosen for that: ask for state:{act.state}")
    with admin.database.store() as store:
        last = None if act.state is State.DEAD else store.watermark()
        seen = now_ms() if last is None else last
        tenants = admin.spellings(given.tenant)
        number = filtered.count(store, act.state, up_to=last, tenants=tenants, **given.narrowing)
    return page(request, "confirm.html", act=act, number=number, given=given.parameters, words=given.words, seen=seen)
