"""Pure: what goes wrong with a request and what a cluster complains of, each in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from outbox.destinations.cluster.wire import FAILURES, Refused, Unanswered
from outbox.errors import DestinationError, DestinationUnanswered, shortened

TIMEOUT: Final = "timeout"
"""`Unanswered.kind` of a request whose answer did not come in time."""

_NOT_NOW: Final = frozenset({429, 502, 503, 504})

_NO_SHARD = frozenset({"search_phase_execution_exception", "no_shard_available_action_exception"})
"""With 503; with 400 a query is at fault."""

_DOCUMENT = re.compile(r"\s*at \[Source: .*; line: [-\d]+, column: [-\d]+\]", re.DOTALL)
"""Where a parser says what it was reading: with the document itself, wherever a cluster does not leave it out."""


@contextmanager
def failing_as(what: str) -> Iterator[None]:
    """Raise a failed request as `DestinationError`, `what` in front; as `DestinationUnanswered` if no answer came, or
    one that says "not now"."""
    try:
        yield
    except FAILURES as error:
        not_now = isinstance(error, Unanswered) or error.status in _NOT_NOW
        kind = DestinationUnanswered if not_now else DestinationError
        raise kind(f"{what}: {describe(error)}") from error


def describe(error: Exception) -> str:
    """What went wrong, without addresses' passwords and without pages of HTML."""
    if isinstance(error, Unanswered) and error.kind == TIMEOUT:
        return "Connection timeout"
    if isinstance(error, Refused):
        cause = cause_of(error)
        if error.status == 503 and cause and cause.get("type") in _NO_SHARD:
            return "none of its shards is ready: it is just being made, a node is starting, or it is red; try again"
        what = ": ".join(type_and_reason(cause)) if cause is not None else str(error)
        return f"HTTP {error.status}: {shortened(what, 200)}"
    text = str(error)
    if "Connection refused" in text:
        return "Connection refused"
    if text.startswith("("):  # the arguments of an exception of urllib3; the last words say what happened
        text = (re.findall(r"'([^']+)'", text) or [text])[-1]
    text = re.sub(r"^HTTPS?Connection\(.*?\): | \(_ssl\.c:\d+\)|(?<=//)[^@/\s]*@", "", text)
    return text if len(text) <= 200 else f"{text[:199]}…"


def cause_of(error: Refused) -> dict[str, Any] | None:
    """The cluster's own account of a refused request; None if the answer holds none."""
    cause = error.body.get("error") if isinstance(error.body, dict) else None
    return cause if isinstance(cause, dict) else None


def type_and_reason(error: dict[str, Any]) -> tuple[str, str]:
    """The type, and the reason with that of its causes: the outermost one alone often says only 'failed to parse'."""
    parts: list[str] = []
    cause: Any = error
    while isinstance(cause, dict) and len(parts) < 4:
        reason = _DOCUMENT.sub("", str(cause.get("reason") or ""))
        if reason and reason not in parts:
            parts.append(reason)
        cause = cause.get("caused_by")
    return _encodable(str(error.get("type"))), _encodable(": ".join(parts)) or "no reason given"


def _encodable(text: str) -> str:
    """Text that can be stored: JSON may hold half of a surrogate pair, where a preview of a document was cut."""
    return text.encode(errors="backslashreplace").decode()
