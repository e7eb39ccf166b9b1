"""What dead rows died of: counted by type of error and by the field that it names, however many they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from outbox.store.store import Store, narrowed

MOST_CAUSES: Final = 20
MOST_INDEXES: Final = 50
"""Of a cause: those of most rows are asked when one of them died."""
NONE: Final = "(none)"
"""Asks for rows whose error has no type, or names no field."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Rows that died of the same. `index`: the one of most of them, of so many `indexes`.

    `first`, `last`: when one of them died. `example`: the one that died last, as `outbox_events` has it.
    """

    error_type: str | None
    error_field: str | None
    rows: int
    index: str
    indexes: int
    first: int | None
    last: int | None
    example: dict[str, Any]


class Causes(NamedTuple):
    """The most frequent causes, most rows first. `others`: how many rows died of further ones."""

    causes: list[Cause]
    others: int


def of_error(error_type: str | None, error_field: str | None) -> tuple[str, dict[str, str]]:
    """A condition that holds for rows with this error, and its parameters; `NONE`: with none; None: with any."""
    condition, given = "1 = 1", {}
    for column, value in (("error_type", error_type), ("error_field", error_field)):
        if value == NONE:
            condition += f" AND {column} IS NULL"
        elif value is not None:
            condition += f" AND {column} = :{column}"
            given[column] = value
    return condition, given


def causes(store: Store, *, index: str | None = None) -> Causes:
    """Of all dead rows, or those of an index. Reads one index of dead rows alone, and one row of each cause."""
    condition, given = narrowed(index_name=index)
    counted = store.run(
        "SELECT error_type, error_field, index_name, count(*) AS number"
        f" FROM outbox_events {store.dialect.indexed('causes')} WHERE state = 'dead' AND {condition}"
        " GROUP BY error_type, error_field, index_name ORDER BY number DESC, index_name",
        given,
    )
    found: dict[tuple[str | None, str | None], dict[str, int]] = {}
    for error_type, error_field, name, number in counted:
        found.setdefault((error_type, error_field), {})[name] = number
    ordered = sorted(found.items(), key=lambda each: -sum(each[1].values()))
    shown = [_cause(store, *error, indexes) for error, indexes in ordered[:MOST_CAUSES]]
    return Causes(
        [each for each in shown if each is not None], sum(sum(each.values()) for _, each in ordered[MOST_CAUSES:])
    )


def _cause(store: Store, error_type: str | None, error_field: str | None, indexes: dict[str, int]) -> Cause | None:
    """None if all of its rows were retried or removed meanwhile."""
    largest = list(indexes)[:MOST_INDEXES]
    ends = [_ends(store, error_type, error_field, name) for name in largest]
    first = min((at for at, _, _ in ends if at is not None), default=None)
    last, newest = max(((at, id_) for _, at, id_ in ends if at is not None), default=(None, ends[0][2]))
    example = store.run("SELECT * FROM outbox_events WHERE id = :id", id=newest).mappings().one_or_none()
    if example is None:
        return None
    rows = sum(indexes.values())
    return Cause(error_type, error_field, rows, largest[0], len(indexes), first, last, dict(example))


def _ends(
    store: Store, error_type: str | None, error_field: str | None, index: str
) -> tuple[int | None, int | None, int | None]:
    """When the first and the last of these rows died, and the id of that one."""
    condition, given = of_error(error_type or NONE, error_field or NONE)
    of_them = (
        f"SELECT finished_at, id FROM outbox_events {store.dialect.indexed('causes')} WHERE state = 'dead'"
        f" AND {condition} AND index_name = :index"
    )
    known = f"{of_them} AND finished_at IS NOT NULL ORDER BY finished_at"
    given["index"] = index
    first = store.run(f"{known} LIMIT 1", given).one_or_none()
    last = store.run(f"{known} DESC LIMIT 1" if first else f"{of_them} LIMIT 1", given).one_or_none()
    return (first[0] if first else None, *(last or (None, None)))
