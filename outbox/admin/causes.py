"""What rows died of, counted once for all who look: it takes a while where many are dead."""

from __future__ import annotations

import threading
from typing import Final

from outbox.store import causes
from outbox.store.causes import Counted
from outbox.store.store import Store

KEPT_FOR_MS: Final = 10_000


class CausesCache:
    """Counts anew when there are more or fewer dead rows than before, and after ten seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: list[Counted] = []
        self._dead = 0
        self._counted_at = 0

    def read(self, store: Store, dead: int, now: int) -> list[Counted]:
        """As `causes.counted` has it. `dead`: how many there are by now. Raises `DatabaseUnavailable`."""
        with self._lock:
            if dead != self._dead or not 0 <= now - self._counted_at < KEPT_FOR_MS:
                self._found = causes.counted(store)
                self._dead, self._counted_at = dead, now
            return self._found
