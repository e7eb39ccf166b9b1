"""Numbers, spans and instants as people read them: with units, and no more digits than help."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

NONE: Final = "–"


def number(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def rows(value: int) -> str:
    return f"{value:,} {'row' if value == 1 else 'rows'}"


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


def clock(at: datetime) -> str:
    return f"{at.astimezone(UTC):%H:%M}"


def pretty(document: Any) -> str:
    """A document to be read; what is no JSON stays the text it is."""
    return document if isinstance(document, str) else json.dumps(document, indent=2, ensure_ascii=False)


def retried(pending: int, superseded: int, overtaken: Mapping[int, int]) -> str:
    """What became of rows that were retried."""
    text = f"{rows(pending)} {'is' if pending == 1 else 'are'} tried again."
    if superseded:
        text += f" {rows(superseded)} had been replaced by later ones: done."
    for row, later in list(overtaken.items())[:5]:
        text += f" Row {row} stays dead: row {later} of the same document was delivered meanwhile; write it anew."
    return text


FILTERS: Final[dict[str, Callable[..., str]]] = {
    "number": number,
    "rows": rows,
    "percent": percent,
    "span": span,
    "milliseconds": milliseconds,
    "size": size,
    "instant": instant,
    "clock": clock,
    "pretty": pretty,
}
