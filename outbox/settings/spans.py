"""How long a text says: a number with its unit."""

from __future__ import annotations

import re
from typing import Final

_UNITS_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

SPAN: Final = r"[0-9]{1,6}[smhd]"


def span_ms(text: str) -> int:
    """`90s`, `15m`, `36h`, `7d` in milliseconds. Raises `ValueError`."""
    if not re.fullmatch(SPAN, text):
        raise ValueError("not a number with its unit, one of s, m, h and d, e.g. 36h or 7d")
    return int(text[:-1]) * _UNITS_MS[text[-1]]
