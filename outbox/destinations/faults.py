"""Pure: which field of a document the reason of a refusal names, as Elasticsearch and OpenSearch word it."""

from __future__ import annotations

import re
from typing import Final

LONGEST_FIELD: Final = 200
"""What is longer is no path that anybody would look for."""

# From the first word on: after it come values of the document, which may say anything.
_AT = r"(?:\[[\d:-]+\] )?"  # where a parser was
_NAMED: Final = tuple(
    re.compile(_AT + pattern)
    for pattern in (
        r"(?:failed to parse: )?failed to parse field \[([^\]]+)\]",
        r"(?:failed to parse: )?The \[\w+\] field \[([^\]]+)\]",
        r"object mapping for \[([^\]]+)\]",
        r"mapper \[([^\]]+)\]",
        r'Document contains at least one immense term in field="([^"]+)"',
        r"mapping set to strict, dynamic introduction of \[([^\]]+)\](?: within \[([^\]]+)\])?",
    )
)
_WHOLE_DOCUMENT = "_doc"


def named_field(reason: str | None) -> str | None:
    """The path of the field that a reason names; None if it names none.

    >>> named_field("[1:8] failed to parse field [address.zip] of type [long] in document with id '1'. Preview …")
    'address.zip'
    >>> named_field("[1:9] mapping set to strict, dynamic introduction of [zip] within [address] is not allowed")
    'address.zip'
    """
    found = next((match for pattern in _NAMED if (match := pattern.match(reason or ""))), None)
    if found is None:
        return None
    field, *within = (part for part in found.groups() if part is not None)
    path = ".".join([*(part for part in within if part != _WHOLE_DOCUMENT), field])
    return path if len(path) <= LONGEST_FIELD else None
