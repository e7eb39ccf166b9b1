"""Rows of other programs whose values no relay can work with: SQLite takes what it is given, whatever the column is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from outbox.store.dialect import Run

MOST_AT_ONCE: Final = 10_000
_TEXTS = ("index_name", "document_id", "tenant_id", "entity", "error_type")


def rows(run: Run) -> list[tuple[int, dict[str, str]]]:
    """Pending rows with a BLOB, or the bytes of a program that writes no UTF-8, where a text should be."""
    columns = ", ".join(f"typeof({name}) = 'blob', CAST({name} AS BLOB)" for name in _TEXTS)
    page = f"SELECT id, {columns} FROM outbox_events WHERE state = 'pending' AND id > :after ORDER BY id LIMIT :most"
    found: list[tuple[int, dict[str, str]]] = []
    after: int | None = 0
    while after is not None:  # after a long outage millions are pending
        some = run(page, after=after, most=MOST_AT_ONCE)
        found += [(id_, texts) for id_, *values in some if (texts := _shown(values))]
        after = some[-1][0] if some else None
    return found


def mend_numbers(run: Run, now: int) -> None:
    """Those whose time of creation is no number were created now."""
    run(
        "UPDATE outbox_events SET attempts = CAST(attempts AS INTEGER), deliveries = CAST(deliveries AS INTEGER),"
        " created_at = iif(typeof(created_at) IN ('integer', 'real'), CAST(created_at AS INTEGER), :now)"
        " WHERE state = 'pending' AND (typeof(attempts) <> 'integer' OR typeof(deliveries) <> 'integer'"
        " OR typeof(created_at) <> 'integer')",
        now=now,
    )


def _shown(values: Sequence[Any]) -> dict[str, str]:
    """Those of `_TEXTS` that are no text, as text. `values`: for each, whether it is a BLOB, and its bytes."""
    found: dict[str, str] = {}
    for name, is_blob, data in zip(_TEXTS, values[::2], values[1::2], strict=True):
        if data is not None:
            shown = data.decode(errors="backslashreplace")
            if is_blob or shown.encode() != data:
                found[name] = shown
    return found
