"""Questions to the destination whose answer a page waits for, but never long."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from outbox.errors import DestinationUnanswered

LONGEST_ANSWER_S: Final = 1.0
MOST: Final = 4
"""Questions under way at a time: a destination that is away gathers no more threads than that."""

T = TypeVar("T")


class Questions:
    """Asks on threads of its own, so that no page waits for a destination that is away."""

    def __init__(self) -> None:
        self._free = threading.BoundedSemaphore(MOST)

    def ask(self, question: Callable[[], T]) -> T:
        """The answer. Raises `DestinationUnanswered` without one within a second, or while too many are waited for;
        else what the question raises."""
        unanswered = DestinationUnanswered(f"the destination has not answered within {LONGEST_ANSWER_S:g} s")
        if not self._free.acquire(blocking=False):
            raise unanswered
        answers: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

        def work() -> None:
            try:
                answers.put((question(), None))
            except Exception as error:  # it is the asker's
                answers.put((None, error))
            finally:
                self._free.release()

        threading.Thread(target=work, name="outbox-admin question", daemon=True).start()
        try:
            answer, error = answers.get(timeout=LONGEST_ANSWER_S)
        except queue.Empty:
            raise unanswered from None
        if error is not None:
            raise error
        return answer  # type: ignore[return-value]
