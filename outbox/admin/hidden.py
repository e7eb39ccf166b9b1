"""What of documents and errors is shown to nobody: the values of the fields of `OUTBOX_ADMIN_HIDE`."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Final

from outbox.documents import read_exactly

HIDDEN: Final = "(hidden by OUTBOX_ADMIN_HIDE)"

# What is followed by a value, and by causes that quote it again.
_QUOTES: Final = re.compile(
    r"Preview of field's value:"  # Elasticsearch
    r"|failed to parse field \[.*?\] of type \[\w+\]:"  # the embedded destination
    r"|The prefix of the first immense term is:"  # Lucene, in numbers: the bytes of the text
)


def content(document: str | None, hide: Collection[str]) -> Any:
    """A document as it was written, without the fields to hide, at whatever depth; its numbers are `Numeral`.

    What another program wrote may be no JSON, and is shown as text, unless something is to be hidden.
    """
    try:
        return without(read_exactly(document or "null"), hide)
    except ValueError:
        return HIDDEN if hide else document


def without(value: Any, hide: Collection[str], within: str = ".") -> Any:
    """`hide`: names, or paths with dots, at whatever depth. `within`: the path that leads to `value`, with a dot at
    both ends, so that a name is found in it as a whole."""
    if isinstance(value, dict):
        paths = {name: f"{within}{name}." for name in value}
        return {
            name: HIDDEN if any(f".{field}." in paths[name] for field in hide) else without(each, hide, paths[name])
            for name, each in value.items()
        }
    return [without(each, hide, within) for each in value] if isinstance(value, list) else value


def without_value(error: str | None, hide: Collection[str]) -> str | None:
    quoting = _QUOTES.search(error) if error and hide else None
    return f"{quoting.string[: quoting.end()]} {HIDDEN}" if quoting else error
