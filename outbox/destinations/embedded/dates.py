"""Pure: dates as Elasticsearch reads them by default: strict_date_optional_time||epoch_millis."""

from __future__ import annotations

import re
from datetime import date
from typing import Final

_MILLIS: Final = re.compile(r"-?[0-9]+(\.[0-9]*)?")
_DATE: Final = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(?:(\d\d)(?::(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?)?(Z|[+-]\d\d(?::?\d\d)?)?)?)?)?)?",
    re.ASCII,
)
_DAYS_IN_400_YEARS: Final = 146_097
_EPOCH: Final = date(1970, 1, 1).toordinal()


def milliseconds(text: str) -> tuple[int, int] | None:
    """The first and the last millisecond since 1970 that a text may mean; None if it is no date.

    Without a time it may be any of the day; without a month or a day it is the first of them, as it is there.

    >>> milliseconds("1970-01-01")
    (0, 86399999)
    >>> milliseconds("1970-01-01T01:00:00+01:00")
    (0, 0)
    """
    if not (match := _DATE.fullmatch(text)):
        if not _MILLIS.fullmatch(text):
            return None
        at = int(text.partition(".")[0])
        return (at, at) if -(2**63) <= at < 2**63 else None
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    try:  # the calendar repeats itself; Python's begins with the year 1
        here = date(2000 + int(year) % 400, int(month or 1), int(day or 1))
    except ValueError:
        return None
    if int(hour or 0) > 23 or int(minute or 0) > 59 or int(second or 0) > 59:
        return None
    days = here.toordinal() - _EPOCH + (int(year) - here.year) // 400 * _DAYS_IN_400_YEARS
    begin = (days * 24 * 60 - _minutes(zone)) * 60_000
    parts = [(hour, 23, 3_600_000), (minute, 59, 60_000), (second, 59, 1_000)]
    parts.append((second and (fraction or "0").ljust(3, "0")[:3], 999, 1))
    first = begin + sum(int(given or 0) * each for given, _, each in parts)
    return first, begin + sum((int(given) if given else most) * each for given, most, each in parts)


def _minutes(zone: str | None) -> int:
    """How far a time zone is ahead of UTC."""
    if not zone or zone == "Z":
        return 0
    digits = zone[1:].replace(":", "").ljust(4, "0")
    return (int(digits[:2]) * 60 + int(digits[2:])) * (-1 if zone[0] == "-" else 1)
