"""A thread that asks the destination how it is, so that no page waits for it, and records the depth of the queue."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from loguru import logger

from outbox import logs
from outbox.admin.database import Database
from outbox.destinations.base import Destination
from outbox.errors import OutboxError
from outbox.store import upkeep
from outbox.store.models import now_ms

POLL_EVERY_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class DestinationStatus:
    """The last answer of the destination, and when. `unreachable`: why there was none."""

    at: int
    product: str = ""
    version: str = ""
    status: str = ""
    unreachable: str | None = None


class Poller:
    """Polls every five seconds from `start` to `stop`; no failure ends it."""

    def __init__(self, database: Database, destination: Destination) -> None:
        self._database, self._destination = database, destination
        self._tasks: list[Callable[[], None]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outbox-admin-poller", daemon=True)
        self._recorded = True
        self.destination: DestinationStatus | None = None
        """None until the first poll."""

    def add(self, task: Callable[[], None]) -> None:
        """Have it do that each time, too; what raises `OutboxError` is tried again."""
        self._tasks.append(task)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(timeout=POLL_EVERY_S)

    def _run(self) -> None:
        while not self._stopped.is_set():
            self.destination = self._ask()
            self._record_depth()
            self._stopped.wait(POLL_EVERY_S)

    def _ask(self) -> DestinationStatus:
        try:
            health = self._destination.health()
        except OutboxError as error:
            return DestinationStatus(now_ms(), unreachable=str(error))
        except Exception as error:  # of what answers in its place: the next poll may reach the destination again
            return DestinationStatus(now_ms(), unreachable=f"its answer cannot be understood: {error!r}")
        return DestinationStatus(now_ms(), health.product, health.version, health.status)

    def _record_depth(self) -> None:
        try:
            with self._database.store() as store:
                upkeep.note_depth(store, now_ms())
            for task in self._tasks:
                task()
        except OutboxError as error:
            if self._recorded:
                logger.warning(
                    "depth of the queue not recorded until the database answers: {error}", error=logs.safe(str(error))
                )
            self._recorded = False
        except Exception:  # of what answers in the destination's place, say
            if self._recorded:
                logger.opt(exception=True).error("a look failed unexpectedly, and is repeated")
            self._recorded = False
        else:
            if not self._recorded:
                logger.info("depth of the queue recorded again")
            self._recorded = True
