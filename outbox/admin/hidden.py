"""What of documents and errors is shown to nobody: the values of the fields of `OUTBOX_ADMIN_HIDE`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from outbox.documents import read_exactly

HIDDEN: Final = "(hidden by OUTBOX_ADMIN_HIDE)"
_VALUE = "Preview of field's value:"  # what Elasticsearch writes into its errors, and a cause after it


def content(document: str | None, hide: Collection[str]) -> Any:
    """A document as it was written, without the fields to hide, at whatever depth; its numbers are `Numeral`.

    What another program wrote may be no JSON, and is shown as text, unless something is to be hidden.
    """
    try:
        return without(read_exactly(document or "null"), hide)
    except ValueError:
        return HIDDEN if hide else document


def without(value: Any, hide: Collection[str]) -> Any:
    if isinstance(value, dict):
        return {
            name: HIDDEN if any(part in hide for part in (name, *name.split("."))) else without(each, hide)
            for name, each in value.items()
        }
    return [without(each, hide) for each in value] if isinstance(value, list) else value


def without_value(error: str | None, hide: Collection[str]) -> str | None:
    if not error or not hide or _VALUE not in error:
        return error
    return f"{error.partition(_VALUE)[0]}{_VALUE} {HIDDEN}"
