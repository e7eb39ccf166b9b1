"""Work that goes on after its request was answered: rebuilding an index, comparing it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from loguru import logger

from outbox import logs
from outbox.errors import OutboxError
from outbox.reindex.work import LeftToRelays

LONGEST_END_S: Final = 20.0


class BackgroundTasks:
    """Threads that work for operators until they are done, or until `stop`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def raise_if_stopping(self) -> None:
        """For a reindex between two steps. Raises `LeftToRelays`."""
        if self.stopping:
            raise LeftToRelays

    def start(self, work: Callable[[], None], what: str) -> None:
        """Do `work` on a thread of its own; errors of the product are logged. `what`: its name in the log."""

        def run() -> None:
            try:
                work()
            except LeftToRelays:
                logger.warning("{task} is left to the next relay, or to the next request for it", task=logs.safe(what))
            except OutboxError as error:
                logger.error("{task}: {error}", task=logs.safe(what), error=logs.safe(str(error)))

        thread = threading.Thread(target=run, name=f"outbox-admin {what}", daemon=True)
        with self._lock:
            self._threads = [each for each in self._threads if each.is_alive()]
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Have all end where they are, within 20 s: a reindex can be resumed, a verification is given up."""
        self._stopping.set()
        until = time.monotonic() + LONGEST_END_S
        for thread in self._threads:
            thread.join(timeout=max(0.0, until - time.monotonic()))
