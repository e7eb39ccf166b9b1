"""Rows and instants for people, who see whatever another program wrote where a text or a number should be."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Text

from outbox.store.dialect import Dialect
from outbox.store.found import Found
from outbox.store.models import events

_FIRST_MS: Final = -62_135_596_800_000  # 0001-01-01, the first day that a datetime can have
_LAST_MS: Final = 253_402_300_799_999  # the end of 9999-12-31, the last one


def columns(dialect: Dialect) -> str:
    """All of `outbox_events AS e`, for `rows`: texts as their bytes, numbers as whole ones."""
    return ", ".join(
        f"{dialect.as_bytes(f'e.{each.name}') if isinstance(each.type, Text) else f'CAST(e.{each.name} AS BIGINT)'}"
        f" AS {each.name}"
        for each in events.columns
    )


def rows(found: Found) -> list[dict[str, Any]]:
    """Each row by the names of its columns."""
    return [
        {name: text(value) if isinstance(value, bytes) else value for name, value in row.items()}
        for row in found.mappings()
    ]


def text(value: bytes) -> str:
    r"""A text of its bytes, of which those that are no UTF-8 are shown as `\xff`."""
    return value.decode(errors="backslashreplace")


def moment(milliseconds: int) -> datetime:
    """An instant of the tables; one beyond all calendars, as of a program that counts nanoseconds, is their last."""
    return datetime.fromtimestamp(min(max(milliseconds, _FIRST_MS), _LAST_MS) / 1000, UTC)
