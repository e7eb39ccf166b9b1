"""What dead rows died of: counted by type of error and by the field that it names, however many they are; and dead rows
that fit a filter, counted and listed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypedDict, Unpack

from outbox.store.store import Store, narrowed, of_tenants

MOST_CAUSES: Final = 20
MOST_DEAD: Final = 10_000
"""Dead rows that are read in one go to narrow them by what no index of them holds."""
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


class Narrowing(TypedDict, total=False):
    """Which rows are meant: those that fit all that is given."""

    index: str | None
    document: str | None
    tenants: tuple[str, ...]  # all spellings of one
    error_type: str | None  # and the field: as `of_error` has them
    error_field: str | None


def fitting(**narrowing: Unpack[Narrowing]) -> tuple[str, dict[str, Any]]:
    """A condition that holds for such rows, and its parameters."""
    condition, given = narrowed(index_name=narrowing.get("index"), document_id=narrowing.get("document"))
    mine, spelled = of_tenants(narrowing.get("tenants", ()))
    error, of_errors = of_error(narrowing.get("error_type"), narrowing.get("error_field"))
    return f"{condition} AND {mine} AND {error}", {**given, **spelled, **of_errors}


def index_of_dead(narrowing: Narrowing) -> str:
    """By which of their indexes to look for such dead rows: the one that leaves fewest to read."""
    if narrowing.get("document") is not None:
        return "dead"
    if narrowing.get("tenants"):
        return "dead_of_tenant"
    of_any_error = narrowing.get("error_type") is None and narrowing.get("error_field") is None
    return "dead" if narrowing.get("index") is not None and of_any_error else "causes"


class Counted(NamedTuple):
    """Rows of one index that died of the same. `first`, `last`: when one of them died."""

    error_type: str | None
    error_field: str | None
    index_name: str
    rows: int
    first: int | None
    last: int | None


def counted(store: Store) -> list[Counted]:
    """All dead rows, most first. Reads one index of them, once: some 50 ms for 200,000."""
    indexed, same = store.dialect.indexed("causes"), store.dialect.same
    of_them = (
        f"FROM outbox_events AS e {indexed} WHERE e.state = 'dead' AND {same('e.error_type', 'n.error_type')}"
        f" AND {same('e.error_field', 'n.error_field')} AND e.index_name = n.index_name"
    )
    found = store.run(
        f"SELECT n.*, (SELECT min(e.finished_at) {of_them}), (SELECT max(e.finished_at) {of_them}) FROM ("
        f"SELECT error_type, error_field, index_name, count(*) AS number FROM outbox_events {indexed}"
        " WHERE state = 'dead' GROUP BY error_type, error_field, index_name) AS n ORDER BY number DESC, index_name"
    )
    return [Counted(*row) for row in found]


def causes(store: Store, dead: Iterable[Counted], index: str | None = None) -> Causes:
    """Of rows as they were counted, or those of an index, each with an example as it is now."""
    found: dict[tuple[str | None, str | None], list[Counted]] = {}
    for each in dead:
        if index in (None, each.index_name):
            found.setdefault((each.error_type, each.error_field), []).append(each)
    ordered = sorted(found.values(), key=lambda parts: -_rows(parts))
    shown = [_cause(store, parts) for parts in ordered[:MOST_CAUSES]]
    return Causes([each for each in shown if each is not None], sum(_rows(parts) for parts in ordered[MOST_CAUSES:]))


def _rows(parts: list[Counted]) -> int:
    return sum(each.rows for each in parts)


def _cause(store: Store, parts: list[Counted]) -> Cause | None:
    """None if they were retried or removed meanwhile. `parts`: the largest first."""
    first = min((each.first for each in parts if each.first is not None), default=None)
    newest = max(parts, key=lambda each: -1 if each.last is None else each.last)
    condition, given = of_error(newest.error_type or NONE, newest.error_field or NONE)
    example = store.run(
        f"SELECT * FROM outbox_events {store.dialect.indexed('causes')} WHERE state = 'dead' AND {condition}"
        " AND index_name = :index ORDER BY finished_at DESC LIMIT 1",
        {**given, "index": newest.index_name},
    )
    if not example:
        return None
    (row,) = example.mappings()
    return Cause(
        error_type=newest.error_type,
        error_field=newest.error_field,
        rows=_rows(parts),
        index=parts[0].index_name,
        indexes=len(parts),
        first=first,
        last=newest.last,
        example=dict(row),
    )


def by_type(dead: Iterable[Counted]) -> list[tuple[str, str, int]]:
    """(index, type of error, number), the 20 with most rows."""
    sums: dict[tuple[str, str], int] = {}
    for each in dead:
        key = each.index_name, each.error_type or ""
        sums[key] = sums.get(key, 0) + each.rows
    return [(*key, rows) for key, rows in sorted(sums.items(), key=lambda each: (-each[1], each[0]))[:MOST_CAUSES]]


# -- those that fit a filter ------------------------------------------------------------------------------------------


def count(store: Store, **narrowing: Unpack[Narrowing]) -> int:
    """How many such rows are dead."""
    condition, given = fitting(**narrowing)
    indexed = store.dialect.indexed(index_of_dead(narrowing))
    dead: int = store.run(
        f"SELECT count(*) FROM outbox_events {indexed} WHERE state = 'dead' AND {condition}", given
    ).scalar_one()
    return dead


def newest(store: Store, before: int, limit: int, **narrowing: Unpack[Narrowing]) -> tuple[list[int], int]:
    """The newest such dead rows by what an index of them holds, and the last id of them if there are more."""
    (condition, given), most = fitting(**narrowing), limit + 1
    document = narrowing.get("document")
    if document is not None:  # its index knows neither tenant nor error; but one document has few dead rows
        (condition, given), most = narrowed(index_name=narrowing.get("index"), document_id=document), MOST_DEAD
    found = store.run(
        f"SELECT id FROM outbox_events {store.dialect.indexed(index_of_dead(narrowing))} WHERE state = 'dead'"
        f" AND {condition} AND id < :before ORDER BY id DESC LIMIT :most",
        {**given, "before": before, "most": most},
    )
    ids = [row[0] for row in found]
    return ids, ids[-1] if len(ids) == MOST_DEAD else 0
