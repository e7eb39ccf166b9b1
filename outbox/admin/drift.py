"""Whether the indexes are as registered, looked at now and then beside the polls of the destination."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from outbox import mappings
from outbox.admin.database import Database
from outbox.destinations.base import Destination
from outbox.entities.registry import EntityRegistry
from outbox.errors import DestinationError
from outbox.mappings import IndexDrift

EVERY_S: Final = 60.0
LONGEST_PART: Final = 100
"""Of the time, a hundredth is spent on it at most: each tenant may have indexes of its own."""


class DriftWatch:
    """The indexes that differ from what is registered, as of the last look."""

    def __init__(self, database: Database, destination: Destination, registry: EntityRegistry | None) -> None:
        self._database, self._destination, self._registry = database, destination, registry
        self._next = 0.0
        self.found: Sequence[IndexDrift] = ()

    def look(self) -> None:
        """Look again if it is time. Raises `DatabaseUnavailable`; without an answer what was found stays."""
        began = time.monotonic()
        if self._registry is None or began < self._next:
            return
        try:
            with self._database.store() as store:
                found = mappings.drift(store, self._destination, self._registry)
        except DestinationError:
            return
        self.found = [each for each in found if each.differences]
        now = time.monotonic()
        self._next = now + max(EVERY_S, (now - began) * LONGEST_PART)
