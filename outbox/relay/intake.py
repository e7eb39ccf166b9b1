"""Pure: how much an index takes at a time, and how soon, seen from what became of the requests before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

SMALL_BYTES: Final = 100_000
"""A request of this size says nothing of its size when it is refused: the destination has no time at all."""

HEAVY_BYTES: Final = 1_000_000
"""What others should not have to wait behind: such requests carry one index, and never occupy all workers."""

QUICK_MS: Final = 250
SLOW_MS: Final = 500
FORGIVEN_MS: Final = 60_000


@dataclass(slots=True)
class Intake:
    """The bytes that a request to one index may carry: less after an overload, or where large requests take long.

    An overload halves them and makes the index pause, longer and longer if nothing is taken in between. What is taken
    quickly lets them grow again. All instants and spans in milliseconds.
    """

    full: int
    first_pause_ms: int
    longest_pause_ms: int
    bytes_: int = 0
    retry_at: int = 0
    refusals: int = 0  # in a row
    overloaded_at: int | None = None
    document_bytes: int = 0  # of one that the relay makes: what to expect of the next

    def __post_init__(self) -> None:
        self.bytes_ = self.bytes_ or self.full

    def refused(self, rows: int, size: int, now: int) -> bool:
        """Note an overload by so many rows of this size. Returns True if it is the first for a while."""
        first = self.overloaded_at is None
        self.overloaded_at = now
        if now < self.retry_at:
            return first  # what was in flight beside it says the same
        self.bytes_ = max(SMALL_BYTES, min(self.bytes_, size // 2))
        self.refusals = self.refusals + 1 if rows == 1 or size <= SMALL_BYTES else 1
        self.retry_at = now + min(self.longest_pause_ms, self.first_pause_ms << min(self.refusals - 1, 20))
        return first

    def taken(self, size: int, took_ms: int, now: int) -> bool:
        """Note that a request of this size was taken. Returns True if the index is as it was before an overload."""
        self.refusals = 0
        if took_ms > SLOW_MS and size >= HEAVY_BYTES:
            self.bytes_ = max(HEAVY_BYTES // 2, min(self.bytes_, size * SLOW_MS // min(took_ms, 4 * SLOW_MS)))
        elif took_ms < QUICK_MS and 2 * size >= self.bytes_:
            # Slowly towards a size that was refused: each time it is, the index pauses.
            self.bytes_ = min(self.full, self.bytes_ + self.full // (20 if self.overloaded_at is None else 100))
        recovered = self.overloaded_at is not None and now - self.overloaded_at > FORGIVEN_MS
        if recovered:
            self.overloaded_at = None
        return recovered

    def made(self, documents: int, size: int) -> None:
        """Note the size of documents that were made."""
        average = size // documents
        self.document_bytes = (self.document_bytes + average) // 2 if self.document_bytes else average

    def pauses(self, now: int) -> bool:
        """Whether nothing is to be sent yet. A clock that jumped back does not strand it."""
        return now < self.retry_at <= now + self.longest_pause_ms


@dataclass(slots=True)
class Intakes:
    """That of each index."""

    full: int
    first_pause_ms: int
    longest_pause_ms: int
    longest_making_s: float  # for so long documents are made for one request: the lease of its rows goes on meanwhile
    _known: dict[str, Intake] = field(default_factory=dict)

    def of(self, index: str) -> Intake:
        """What is known of an index; noted from now on."""
        found = self._known.get(index)
        if found is None:
            found = self._known[index] = Intake(self.full, self.first_pause_ms, self.longest_pause_ms)
        return found

    def most(self) -> Mapping[str, int]:
        """The bytes that one request may carry, of indexes that take less than others."""
        return {name: each.bytes_ for name, each in self._known.items() if each.bytes_ < self.full}

    def expected(self) -> Mapping[str, int]:
        """The bytes to expect of a document that the relay makes, by index."""
        return {name: each.document_bytes for name, each in self._known.items() if each.document_bytes}

    def paused(self, now: int) -> list[str]:
        """The indexes that pause after an overload."""
        return [name for name, each in self._known.items() if each.pauses(now)]
