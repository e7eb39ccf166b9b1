"""How long a text says: a number with its unit."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator

_UNITS_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

SPAN: Final = r"[0-9]{1,6}[smhd]"


def span_ms(text: str) -> int:
    """`90s`, `15m`, `36h`, `7d` in milliseconds. Raises `ValueError`."""
    if not re.fullmatch(SPAN, text):
        raise ValueError("not a number with its unit, one of s, m, h and d, e.g. 36h or 7d")
    return int(text[:-1]) * _UNITS_MS[text[-1]]


def _kept(value: str) -> str:
    if span_ms(value) == 0:
        raise ValueError("dead rows would be gone before anybody sees them; leave it out to keep them")
    return value


def _of_cluster(value: str) -> str:
    if not re.fullmatch(r"[0-9]+(ms|s|m|h|d)", value):
        raise ValueError("not a number with its unit, one of ms, s, m, h and d, e.g. 24h")
    return value


Retention = Annotated[str, AfterValidator(_kept)]
"""How long dead rows are kept."""

ClusterTime = Annotated[str, AfterValidator(_of_cluster)]
"""A time as Elasticsearch takes it."""
