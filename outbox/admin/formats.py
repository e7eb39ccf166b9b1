"""Numbers, spans and instants as people read them: with units, and no more digits than help."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode

from markupsafe import Markup, escape

from outbox import logs
from outbox.admin.shapes import Event
from outbox.documents import as_json
from outbox.store.shown import moment

NONE: Final = "–"
LONGEST_QUERY: Final = 6_000
"""Bytes of an address that every browser and proxy takes, and the guard too."""


def visible(value: Any) -> Any:
    """What a template shows, whatever it is: what cannot be seen, or turns the text around, is escaped.

    Text that is HTML already is left alone.
    """
    return logs.safe(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def exact(text: str) -> Markup:
    """What a form sends back: nothing but HTML's own characters is escaped."""
    return escape(text)


def number(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def unit_of_rows(value: int) -> str:
    """Where the number is written apart from it."""
    return "row" if value == 1 else "rows"


def percent(part: float | None) -> str:
    """Small parts keep a digit that is not 0: 0.03 % dead is not 0 % dead."""
    if part is None:
        return NONE
    return f"{part * 100:.{0 if part in (0, 1) else 2 if part < 0.001 or part > 0.999 else 1}f} %"


def span(seconds: float | None) -> str:
    """`340 ms`, `12.5 s`, `4 min 10 s`, `3 h 20 min`, `2 d 4 h`."""
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for large, unit, small, below in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min")):
        if whole >= large:
            return f"{whole // large:,} {unit} {whole % large // small} {below}"
    return f"{whole // 60} min {whole % 60} s"


def milliseconds(value: float | None) -> str:
    """A latency; what took a minute or longer is counted together."""
    if value is None:
        return NONE
    return "≥ 60 s" if value >= 60_000 else span(value / 1000)


def size(number_of_bytes: float) -> str:
    if number_of_bytes < 1_000:
        return f"{number_of_bytes:.0f} bytes"
    units = iter(("KB", "MB", "GB", "TB"))
    while (number_of_bytes := number_of_bytes / 1_000) >= 999.5:
        next(units)
    return f"{number_of_bytes:,.{0 if number_of_bytes >= 9.95 else 1}f} {next(units)}"


def instant(at: datetime | None) -> str:
    """In UTC, as the log and the tables have it."""
    return NONE if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def exact_instant(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC"


def time(at: datetime | None) -> str:
    """For a column that says UTC itself."""
    return NONE if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def clock(at: datetime) -> str:
    return f"{at.astimezone(UTC):%H:%M}"


def day(at: datetime) -> str:
    return f"{at.astimezone(UTC):%m-%d}"


def took(row: Event) -> str:
    """From the commit of a row to its end."""
    return span(None if row.finished_at is None else max(0.0, (row.finished_at - row.created_at).total_seconds()))


def pretty(document: Any) -> Markup:
    """A document to be read, as `json_lines`; what is no JSON stays the text it is."""
    return _lines(document) if isinstance(document, str) else json_lines(document)


def json_lines(value: Any) -> Markup:
    """JSON that can be copied, in lines, each digit as it was written. A text stands in quotes: it is no number."""
    return _lines(as_json(value, below="\n"))


def _lines(text: str) -> Markup:
    return Markup("\n").join(visible(line) for line in text.split("\n"))


def rows_page(given: Mapping[str, Any]) -> str:
    """The address of the rows that fit what is given."""
    return f"/events?{urlencode(given)}" if given else "/events"


def confirm_page(given: Mapping[str, Any], act: str) -> str:
    """The address of the question before that is done to all rows that fit what is given."""
    return f"/confirm?{urlencode({'do': act, **given})}"


def document_page(index: str, document_id: str) -> str:
    """The address of one document as database and index have it."""
    return f"/document?{urlencode({'index': index, 'id': document_id})}"


def index_page(index: str) -> str:
    """The address of one index; of a name too long for an address, that of the list."""
    address = f"/index?{urlencode({'index': index})}"
    return address if len(address) < LONGEST_QUERY else "/indexes"


def history(row: Event) -> str:
    """The address of all rows of the document of a row; an id too long for an address is found by the row."""
    address = rows_page({"index": row.index, "document": row.document_id})
    return address if len(address) < LONGEST_QUERY else f"/events/{row.id}#history"


def retried(pending: int, superseded: int, overtaken: Mapping[int, int]) -> str:
    """What became of rows that were retried."""
    text = f"{logs.rows(pending, 'is', 'are')} tried again."
    if superseded:
        text += f" {logs.rows(superseded)} had been replaced by later ones: done."
    for row, later in list(overtaken.items())[:5]:
        text += f" Row {row} stays dead: row {later} of the same document was delivered meanwhile; write it anew."
    return text


FILTERS: Final[dict[str, Callable[..., str]]] = {
    "number": number,
    "rows": logs.rows,
    "unit_of_rows": unit_of_rows,
    "percent": percent,
    "span": span,
    "milliseconds": milliseconds,
    "size": size,
    "instant": instant,
    "exact_instant": exact_instant,
    "time": time,
    "took": took,
    "exact": exact,
    "history": history,
    "rows_page": rows_page,
    "confirm_page": confirm_page,
    "at": lambda milliseconds: instant(moment(milliseconds)),
    "document_page": lambda row: document_page(row.index, row.document_id),
    "index_page": index_page,
    "clock": clock,
    "day": day,
    "json_lines": json_lines,
    "pretty": pretty,
}
