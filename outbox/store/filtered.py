"""Rows that fit a filter: a page of them, and how many they are before something is done to all."""

from __future__ import annotations

from typing import Any

from outbox.store import causes, figures, models, operators, shown
from outbox.store.figures import Rows
from outbox.store.models import State
from outbox.store.store import Store, narrowed


def page(
    store: Store,
    *,
    id: int | None = None,
    state: State | None = None,
    before: int | None = None,
    limit: int = 50,
    **narrowing: Any,
) -> Rows:
    """As `figures.newest_rows`; the row with an id is looked up, and found if it fits all else that is given."""
    if id is None:
        return figures.newest_rows(store, state=state, before=before, limit=limit, **narrowing)
    return Rows(_named(store, id, state, **narrowing), None)


def count(store: Store, state: State, *, id: int | None = None, up_to: int | None = None, **narrowing: Any) -> int:
    """How many dead or pending rows fit; `up_to`: of those that were written by then, by the id of the last.

    Reads what the indexes of such rows hold, and nothing of finished ones.
    """
    if id is not None:
        return len(_named(store, id, state, up_to=up_to, **narrowing))
    if state is State.DEAD:
        return causes.count(store, **narrowing)
    condition, given = operators.selected(store, up_to=up_to, **narrowing)
    of_each = [
        f"(SELECT count(*) FROM outbox_events {store.dialect.indexed(name)} WHERE {kind} AND {condition})"
        for name, kind in (("fresh", models.fresh()), ("waiting", models.waiting()))
    ]
    pending: int = store.run(f"SELECT {' + '.join(of_each)}", given).scalar_one()
    return pending


def _named(store: Store, id: int, state: State | None, **selection: Any) -> list[dict[str, Any]]:
    condition, given = operators.selected(store, **selection)
    named, parameters = narrowed(id=id, state=state)
    fits = f"{named} AND {condition}"
    found = store.run(f"SELECT {shown.columns(store.dialect)} FROM outbox_events AS e WHERE {fits}", given | parameters)
    return shown.rows(found)
