"""A thread that asks the destination how it is, so that no page waits for it, and notes how full the outbox is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from loguru import logger

from outbox.admin.desk import Desk
from outbox.destinations.base import Destination
from outbox.errors import OutboxError
from outbox.store import upkeep
from outbox.store.models import now_ms

LOOK_EVERY_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What the destination said last, and when. `unreachable`: why it said nothing."""

    at: int
    product: str = ""
    version: str = ""
    status: str = ""
    unreachable: str | None = None


class Watch:
    """Looks every five seconds from `start` to `stop`, whatever it meets."""

    def __init__(self, desk: Desk, destination: Destination) -> None:
        self._desk, self._destination = desk, destination
        self._also: list[Callable[[], None]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outbox-admin-watch", daemon=True)
        self._noted = True
        self.seen: Seen | None = None
        """None until the first look."""

    def also(self, look: Callable[[], None]) -> None:
        """Have it do that each time, too; what raises `OutboxError` is tried again."""
        self._also.append(look)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(timeout=LOOK_EVERY_S)

    def _run(self) -> None:
        while not self._stopped.is_set():
            self.seen = self._look()
            self._note_depth()
            self._stopped.wait(LOOK_EVERY_S)

    def _look(self) -> Seen:
        try:
            health = self._destination.health()
        except OutboxError as error:
            return Seen(now_ms(), unreachable=str(error))
        except Exception as error:  # of whatever answers in its place: the next look may be at it again
            return Seen(now_ms(), unreachable=f"what answered cannot be understood: {error!r}")
        return Seen(now_ms(), health.product, health.version, health.status)

    def _note_depth(self) -> None:
        try:
            with self._desk.figures() as figures:
                upkeep.note_depth(figures, now_ms())
            for look in self._also:
                look()
        except OutboxError as error:
            if self._noted:
                logger.warning(f"how full the outbox is cannot be noted until it works again: {error}")
            self._noted = False
        else:
            self._noted = True
