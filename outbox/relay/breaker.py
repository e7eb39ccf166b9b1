"""Pure: when to stop asking something that does not answer, and when to ask again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Breaker:
    """Closed while things work; open after a failure, with growing, jittered pauses between probes.

    All instants and pauses are in milliseconds. A pause starts again at `first_pause_ms` once it has closed, unless
    it opens anew before the previous pause has passed a second time: something that answers now and then keeps
    its long pauses.
    """

    first_pause_ms: int = 1_000
    longest_pause_ms: int = 30_000
    jitter: Callable[[], float] = field(default=random.random, repr=False)
    reason: str | None = None
    opened_at: int | None = None
    retry_at: int = 0
    _pause_ms: int = 0
    _closed_at: int = 0

    @property
    def is_open(self) -> bool:
        return self.opened_at is not None

    def failed(self, reason: str, now: int) -> bool:
        """Note a failure. Returns True if this one opened the breaker."""
        opens = self.opened_at is None
        self.reason = reason
        if opens:
            self.opened_at = now
            if now - self._closed_at > 2 * self._pause_ms:
                self._pause_ms = 0
        elif not self.probe_due(now):
            return False  # an answer to a request that was in flight before, or to a trial
        self.tried(now)
        return opens

    def tried(self, now: int) -> None:
        """Note that it is tried now: not again before its next pause is over, whenever the answer comes."""
        self._pause_ms = min(self.longest_pause_ms, 2 * self._pause_ms or self.first_pause_ms)
        self.retry_at = now + int(self._pause_ms * (0.75 + 0.5 * self.jitter()))

    def proved_nothing(self, now: int) -> None:
        """Note an answer that says neither: it may be tried again at once, and its pause has not grown."""
        self._pause_ms //= 2
        self.retry_at = now

    def succeeded(self, now: int) -> int | None:
        """Note a success. Returns for how long it had been open, in milliseconds, if this one closed it."""
        if self.opened_at is None:
            return None
        open_for = max(0, now - self.opened_at)
        self.opened_at, self.reason, self._closed_at = None, None, now
        return open_for

    def probe_due(self, now: int) -> bool:
        """Whether it is open and should be tried. A clock that jumped back does not strand it."""
        return self.is_open and (now >= self.retry_at or self.retry_at - now > 2 * self.longest_pause_ms)
