"""The verifications that this process has begun: how far they are, and which documents they found to be wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

from outbox.verify import Checked, Drift, Verification

MOST_DOCUMENTS: Final = 100
MOST_VERIFICATIONS: Final = 20


@dataclass(slots=True)
class Followed:
    """One verification. `documents`: the first that are wrong; `compared` of them in `seconds` so far."""

    checked: Checked | None = None
    compared: int = 0
    documents: list[Drift] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    runs: bool = True
    cancelled: bool = False

    @property
    def rate(self) -> float | None:
        """Documents a second, on average since it began; None before the first."""
        seconds = time.monotonic() - self.began
        return self.compared / seconds if self.runs and self.compared and seconds else None

    @property
    def eta(self) -> float | None:
        """Seconds until the entity that is read is compared; None while it cannot be said."""
        at, rate = self.checked, self.rate
        return None if at is None or at.total is None or not rate else max(0, at.total - at.done) / rate


class FollowedVerifications:
    """The newest twenty, by their numbers in the tables. May be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._followed: dict[int, Followed] = {}

    def of(self, number: int) -> Followed | None:
        """None: another process has begun it, or this one did long ago."""
        with self._lock:
            return self._followed.get(number)

    def cancel(self, number: int) -> None:
        """Have one end where it is, if it runs here."""
        if (followed := self.of(number)) is not None:
            followed.cancelled = True

    def follow(self, verification: Verification, by: str, *, stopping: Callable[[], bool]) -> None:
        """Go through a verification until its end, or until it is cancelled or `stopping`. Raises as its `run` does."""
        followed = Followed()
        try:
            with closing(verification.recorded(by)) as steps:
                for step in steps:
                    self._note(verification, followed)
                    followed.compared = verification.totals.documents + verification.totals.listed
                    if isinstance(step, Drift):
                        if len(followed.documents) < MOST_DOCUMENTS:
                            followed.documents.append(step)
                    elif followed.cancelled or stopping():
                        return
                    else:
                        followed.checked = step
        finally:
            followed.runs = False

    def _note(self, verification: Verification, followed: Followed) -> None:
        with self._lock:
            if verification.number is not None and verification.number not in self._followed:
                self._followed[verification.number] = followed
                for number in sorted(self._followed)[:-MOST_VERIFICATIONS]:
                    del self._followed[number]
