"""Dead rows by what they died of, with the remedy."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from outbox.admin.shapes import Event
from outbox.destinations.remedies import remedy_of
from outbox.store import causes
from outbox.store.causes import NONE, Cause, Counted
from outbox.store.models import State
from outbox.store.store import Store


class Group(NamedTuple):
    """Rows that died of the same, as the page shows them. `given`: the filter that finds them."""

    cause: Cause
    given: dict[str, str]
    remedy: str
    example: Event


def groups(store: Store, dead: Iterable[Counted], index: str | None, hide: Collection[str]) -> tuple[list[Group], int]:
    """The most frequent causes, and how many rows died of further ones."""
    found = causes.causes(store, dead, index)
    return [_group(each, index, hide) for each in found.causes], found.others


def _group(cause: Cause, index: str | None, hide: Collection[str]) -> Group:
    given = {"state": State.DEAD.value, "errorType": cause.error_type or NONE, "errorField": cause.error_field or NONE}
    if index is not None:
        given["index"] = index
    return Group(cause, given, remedy_of(cause.error_type), Event.of(cause.example, hide))
