"""Where a look for fresh rows begins, while an open transaction keeps what was fresh before in its way.

PostgreSQL keeps dead versions of rows as long as a transaction could still see them, and the index of fresh rows leads
to each. So a look takes longer and longer; one that begins at the lowest id which the last full one found passes them
by.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

SLOW_LOOK_S: Final = 0.05
FULL_LOOKS: Final = 20
"""Where full looks are slow, one twentieth of the time is theirs at most. A row with a lower id, committed late, waits
for the next one."""


class Floor:
    """Of one relay. `clock`: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lowest, self._began, self._full_at = 0, 0.0, 0.0
        self.is_full = True

    def begin(self) -> int:
        """The id to begin a look at; 0: at the first."""
        self._began = self._clock()
        self.is_full = self._began >= self._full_at
        return 0 if self.is_full else self._lowest

    def end(self, found: Sequence[int]) -> None:
        """The look has found these ids of fresh rows."""
        if not self.is_full or not found:
            return
        self._lowest, now = min(found), self._clock()
        if (took := now - self._began) > SLOW_LOOK_S:
            self._full_at = now + FULL_LOOKS * took
