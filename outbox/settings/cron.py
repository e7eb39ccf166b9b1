"""When something is due: a line as crontab(5) has it, for APScheduler."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

from pydantic import AfterValidator

_WEEKDAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def cron_fields(expression: str) -> list[dict[str, str]]:
    """What a line of cron means to APScheduler's `CronTrigger`: it is due when one of these is.

    As crontab(5) has it: 0 and 7 are Sunday (APScheduler's 0 is Monday), and where both the day of the month and the
    weekday are given, either will do (APScheduler wants both). Raises `ValueError`.
    """
    names = ("minute", "hour", "day", "month", "day_of_week")
    values = expression.split()
    if len(values) != len(names):
        raise ValueError(f"{len(values)} fields instead of {len(names)}")
    fields = dict(zip(names, values, strict=True)) | {"day_of_week": _weekdays(values[4])}
    if values[2].startswith("*") or values[4].startswith("*"):
        return [fields]
    return [fields | {"day_of_week": "*"}, fields | {"day": "*"}]


def _checked(expression: str) -> str:
    from apscheduler.triggers.cron import CronTrigger  # not above: loaded only where there is a schedule

    try:
        triggers = [CronTrigger(**fields, timezone=UTC) for fields in cron_fields(expression)]
    except ValueError as error:
        raise ValueError(f"not in the form of cron, minute hour day month weekday: {error}") from None
    if not any(each.get_next_fire_time(None, datetime.now(UTC)) for each in triggers):
        raise ValueError(f"{expression!r} is never due: no such month has such a day")
    return expression


def _weekdays(field: str) -> str:
    days: set[int] = set()
    for part in field.lower().split(","):
        span, _, step = part.partition("/")
        first, dash, last = ("0", "-", "6") if span == "*" else span.partition("-")
        begin = _weekday(first)
        end = _weekday(last) if dash else 6 if step else begin
        if dash and end == 0 and begin > 0:  # 5-0 ends with Sunday
            end = 7
        if begin == 7 and end < 7:  # 7-3 begins with it
            begin = 0
        if end < begin or not (step or "1").isdigit() or step == "0":
            raise ValueError(f"weekday {part!r} is no day, span or step of days")
        days |= {day % 7 for day in range(begin, end + 1, int(step or 1))}
    return "*" if len(days) == 7 else ",".join(_WEEKDAYS[day] for day in sorted(days))


def _weekday(text: str) -> int:
    if text in _WEEKDAYS:
        return _WEEKDAYS.index(text)
    if text.isdigit() and int(text) <= 7:
        return int(text)
    raise ValueError(f"{text!r} is no weekday: 0 to 7 (0 and 7 are Sunday) or sun, mon, …")


Schedule = Annotated[str, AfterValidator(_checked)]
"""A line of cron."""
