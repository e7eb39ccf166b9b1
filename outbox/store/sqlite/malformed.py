"""Rows of other programs whose values no relay can work with: SQLite takes what it is given, whatever the column is."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType
from typing import Any

from sqlalchemy import CursorResult
from sqlalchemy.exc import OperationalError

from outbox.errors import is_no_text
from outbox.store.models import ILLEGAL_TEXT
from outbox.store.store import Store

TEXT = {str}
TEXT_OR_NULL = {str, NoneType}
NUMBER = {int}

_TEXTS = ("index_name", "document_id", "tenant_id", "entity", "error_type")


class IllegalRows(Exception):
    """There are such rows; `end` has them out of the way."""


def legal(rows: CursorResult[*tuple[Any, ...]], types: Sequence[set[Any]]) -> Sequence[Any]:
    """All of the rows. Raises `IllegalRows` if a value is of none of the `types` of its column, the first ones."""
    try:
        found = rows.fetchall()
    except OperationalError as error:
        if is_no_text(error.orig):
            raise IllegalRows from error
        raise
    columns = zip(*found, strict=True)
    if not all(allowed.issuperset(map(type, column)) for allowed, column in zip(types, columns, strict=False)):
        raise IllegalRows
    return found


def end(store: Store, now: int) -> int:
    """End pending rows that name their index, document, tenant or entity by no UTF-8 text. Returns their number.

    What stands there, a BLOB or the bytes of a program that writes no UTF-8, becomes text that can be shown. Numbers of
    pending rows become whole ones; those whose time of creation is no number were created now. After it `legal` takes
    whatever is pending.
    """
    columns = ", ".join(f"typeof({name}) = 'blob', CAST({name} AS BLOB)" for name in _TEXTS)
    found = [
        (id_, texts)
        for id_, *values in store.run(f"SELECT id, {columns} FROM outbox_events WHERE state = 'pending'")
        if (texts := _shown(values))
    ]
    with store.write(durable=True):
        store.run(
            "UPDATE outbox_events SET attempts = CAST(attempts AS INTEGER), deliveries = CAST(deliveries AS INTEGER),"
            " created_at = iif(typeof(created_at) IN ('integer', 'real'), CAST(created_at AS INTEGER), :now)"
            " WHERE state = 'pending' AND (typeof(attempts) <> 'integer' OR typeof(deliveries) <> 'integer'"
            " OR typeof(created_at) <> 'integer')",
            {"now": now},
        )
        for id_, texts in found:
            named = ", ".join(f"{name} = :{name}" for name in texts)
            store.run(
                f"UPDATE outbox_events SET state = 'dead', available_at = NULL, finished_at = :now,"
                f" error_type = :error_type, error = :error, {named} WHERE id = :id AND state = 'pending'",
                {
                    **texts,
                    "now": now,
                    "error_type": ILLEGAL_TEXT,
                    "error": f"no UTF-8 text: {', '.join(texts)}; write the row anew and discard this one",
                    "id": id_,
                },
            )
    return len(found)


def _shown(values: Sequence[Any]) -> dict[str, str]:
    """Those of `_TEXTS` that are no text, as text. `values`: for each, whether it is a BLOB, and its bytes."""
    found: dict[str, str] = {}
    for name, is_blob, data in zip(_TEXTS, values[::2], values[1::2], strict=True):
        if data is not None:
            shown = data.decode(errors="backslashreplace")
            if is_blob or shown.encode() != data:
                found[name] = shown
    return found
