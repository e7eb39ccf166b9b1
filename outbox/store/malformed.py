"""Rows of other programs that name their index or document by no text, or count by no number: found, and ended."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType
from typing import Any, Final

from sqlalchemy.exc import OperationalError

from outbox.store import failures, upkeep
from outbox.store.models import ILLEGAL_TEXT, State
from outbox.store.store import Store

TEXT: Final = {str}
TEXT_OR_NULL: Final = {str, NoneType}
NUMBER: Final = {int}
NUMBER_OR_NULL: Final = {int, type(None)}


class MalformedRows(Exception):
    """There are such rows; `end` has them out of the way."""


def well_formed(store: Store, types: Sequence[set[Any]], sql: str, **given: Any) -> Sequence[Any]:
    """What a SELECT finds. Raises `MalformedRows` if a value is of none of the `types` of its column, the first
    ones."""
    try:
        found = store.run(sql, given)
    except OperationalError as error:
        raise MalformedRows from error
    columns = zip(*found, strict=True)
    if not all(allowed.issuperset(map(type, column)) for allowed, column in zip(types, columns, strict=False)):
        raise MalformedRows
    return found


def end(store: Store, now: int) -> int:
    """End pending rows that name their index, document, tenant or entity by no UTF-8 text. Returns their number.

    What is there becomes text that can be shown. Numbers of pending rows become whole ones; those whose time of
    creation is no number were created now. After it `well_formed` takes whatever is pending.
    """
    found, dead = store.dialect.malformed(store.run), list[int]()
    with store.write(durable=True):
        store.dialect.mend_numbers(store.run, now)
        for id_, texts in found:
            said = f"no UTF-8 text: {', '.join(texts)}; write the row anew and discard this one"
            changed = {**texts, "error_type": ILLEGAL_TEXT, "error": said}
            failures.record(
                store,
                "e.id = :id AND e.state = 'pending'",
                {"id": id_},
                became=State.DEAD,
                error_type=ILLEGAL_TEXT,
                error=said,
                now=now,
            )
            ended = store.run(
                "UPDATE outbox_events SET state = 'dead', available_at = NULL, finished_at = :now, error_field = NULL,"
                f" {', '.join(f'{name} = :{name}' for name in changed)} WHERE id = :id AND state = 'pending'"
                " RETURNING id",
                {**changed, "now": now, "id": id_},
            )
            dead += [row[0] for row in ended]
        upkeep.count_dead(store, f"e.id {store.dialect.among('dead')}", {"dead": dead}, now)  # by their texts
    return len(dead)
