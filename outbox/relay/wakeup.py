"""How a relay learns of a commit without waiting for the next poll."""

from __future__ import annotations

import queue
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from loguru import logger

from outbox.errors import DatabaseUnavailable
from outbox.store.dialect import Watch

T = TypeVar("T")

SHORTEST_LOOK_S: Final = 0.001
LONGEST_LOOK_S: Final = 0.020
CALM_AFTER_S: Final = 0.25
COMMIT_BECOMES_VISIBLE_S: Final = 0.0003
LOOKS_LAST_S: Final = 5.0


class Wakeup(Generic[T]):
    """Ends a wait at an answer, at a commit of another connection, or when somebody rings.

    `commits` is a number that changes with every such commit. Where the database can be watched, it is looked at
    after what the watch says: at once, and again after 1, 2, 4 … ms for some seconds, since a commit is written
    before it can be seen (and with `synchronous=FULL` it is on disk before). Without, every millisecond while rows
    flow and every 20 ms when idle.
    """

    def __init__(
        self, answers: queue.Queue[T], commits: Callable[[], int], watch: Callable[[], Watch | None] = lambda: None
    ) -> None:
        self._answers, self._commits, self._watch = answers, commits, _watching(watch)
        self._last: int | None = None
        with suppress(DatabaseUnavailable):  # a relay that has begun does not end by that: it waits
            self._last = commits()
        self.timed_out = False
        """Whether the last wait that returned None did so because its time was up."""
        self._last_change = time.monotonic()
        self._written_at = -LOOKS_LAST_S  # when the watch has last said something
        self._look_after = SHORTEST_LOOK_S
        self._rung, self._bell = socket.socketpair()
        for end in (self._rung, self._bell):
            end.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._rung, select.POLLIN)
        if self._watch is not None:
            self._poll.register(self._watch, select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rung.close()
        self._bell.close()
        if self._watch is not None:
            self._watch.close()

    @property
    def watches(self) -> bool:
        """Whether commits are watched; otherwise the relay polls for them."""
        return self._watch is not None

    def ring(self) -> None:
        """Have `wait` look at once. Safe in other threads and in signal handlers, and after the end."""
        with suppress(OSError):  # full of rings, or closed
            self._bell.send(b"!")

    def wait(self, timeout: float, stopped: Callable[[], bool]) -> T | None:
        """Return the next answer as soon as there is one; None on a commit, after `timeout` s, or when stopped."""
        deadline = time.monotonic() + timeout
        while True:
            with suppress(queue.Empty):
                return self._answers.get_nowait()
            left = deadline - time.monotonic()
            committed = self.committed()
            self.timed_out = left <= 0 and not committed
            if committed or stopped() or left <= 0:
                return None
            self._rest(min(left, self._until_the_next_look()))

    def committed(self) -> bool:
        """Whether another connection has committed since the last look."""
        commits = self._commits()
        if commits == self._last:
            return False
        self._last = commits
        self._last_change = time.monotonic()
        return True

    def _until_the_next_look(self) -> float:
        now = time.monotonic()
        if self._watch is None:
            return LONGEST_LOOK_S if now - self._last_change > CALM_AFTER_S else SHORTEST_LOOK_S
        if now - self._written_at > LOOKS_LAST_S:
            return float("inf")
        return self._look_after

    def _rest(self, seconds: float) -> None:
        ready = {end for end, _ in self._poll.poll(seconds * 1000)}
        if not ready:
            self._look_after *= 2
        if self._rung.fileno() in ready:
            self._rung.recv(4096)
        if self._watch is not None and self._watch.fileno() in ready and self._was_written(self._watch):
            self._written_at, self._look_after = time.monotonic(), SHORTEST_LOOK_S
            time.sleep(COMMIT_BECOMES_VISIBLE_S)

    def _was_written(self, watch: Watch) -> bool:
        try:
            return watch.read()
        except OSError as error:
            _log_unwatched(error)
        self._poll.unregister(watch)
        watch.close()
        self._watch = None
        return True


def _watching(watch: Callable[[], Watch | None]) -> Watch | None:
    try:
        return watch()
    except OSError as error:
        _log_unwatched(error)
        return None


def _log_unwatched(error: OSError) -> None:
    logger.warning(
        "commits cannot be watched: {error}; the relay looks for them every 20 ms instead, which takes a few percent "
        "of a core (Linux: raise fs.inotify.max_user_watches and max_user_instances, and restart it)",
        error=error.strerror or str(error),
    )
