"""A record of each attempt that failed, kept as long as its row. A row that succeeds at once leaves none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outbox.store.models import State
from outbox.store.store import Store, printable


def record(
    store: Store,
    condition: str,
    given: Mapping[str, Any],
    *,
    became: State,
    error_type: str | None,
    error: str | None,
    error_field: str | None = None,
    now: int,
) -> None:
    """Note that an attempt of the rows `e` for which the condition holds has failed, and what becomes of them by it.

    Inside `write`, while they are still claimed by the relay that failed.
    """
    store.run(
        "INSERT INTO outbox_failures"
        " (event_id, attempt, failed_at, relay, host, pid, state, error_type, error_field, error)"
        " SELECT e.id,"
        " 1 + coalesce((SELECT max(f.attempt) FROM outbox_failures AS f WHERE f.event_id = e.id), 0),"
        " :failed_at, e.claimed_by, r.host, r.pid, :became, :error_type, :error_field, :error"
        f" FROM outbox_events AS e LEFT JOIN outbox_relays AS r ON r.id = e.claimed_by WHERE {condition}",
        {
            **given,
            "failed_at": now,
            "became": became.value,
            "error_type": error_type,
            "error_field": error_field,
            "error": printable(error),
        },
    )


def of_row(store: Store, event_id: int) -> list[dict[str, Any]]:
    """What is noted of a row, the first attempt first."""
    found = store.run("SELECT * FROM outbox_failures WHERE event_id = :id ORDER BY attempt", id=event_id)
    return found.mappings()
