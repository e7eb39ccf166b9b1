"""Pure: what can grow unnoticed, at which size that is a warning, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from outbox import logs
from outbox.settings import Settings

BACK: Final = 0.9
"""Below this part of its limit a value is fine again: one that stays near the limit makes no noise."""


class Limits(NamedTuple):
    """At which size to warn; 0: never."""

    oldest_s: float
    rows: int
    wal_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(settings.warn_oldest, settings.warn_rows, settings.warn_wal_bytes)


DEFAULT: Final = Limits.of(Settings.model_construct())


class Measured(NamedTuple):
    """Age of the oldest unfinished row, rows in `outbox_events`, size of the write-ahead log."""

    oldest_s: float
    rows: int
    wal_bytes: int


class Growth(NamedTuple):
    """One thing that can grow, how large it is, and what to do if that is too large."""

    name: str
    value: float
    limit: float
    found: str
    remedy: str

    @property
    def over(self) -> bool:
        return 0 < self.limit <= self.value


def growth(measured: Measured, limits: Limits) -> list[Growth]:
    """Each thing that can grow, as it is now."""
    return [
        Growth(
            "oldest row",
            measured.oldest_s,
            limits.oldest_s,
            f"the oldest row waits for {measured.oldest_s:,.0f} s",
            "see 'outbox-relay status' for what it waits for",
        ),
        Growth(
            "rows",
            measured.rows,
            limits.rows,
            f"{logs.rows(measured.rows)} in outbox_events",
            "a lower OUTBOX_RETENTION_HOURS removes finished ones sooner; dead ones stay until you decide",
        ),
        Growth(
            "write-ahead log",
            measured.wal_bytes,
            limits.wal_bytes,
            f"the write-ahead log has {measured.wal_bytes / 1e6:,.0f} MB",
            "a connection that reads in one transaction for long keeps it from being emptied: end that transaction",
        ),
    ]


class LimitWatch:
    """Tells once that something has grown too large, and once that it has shrunk again."""

    def __init__(self) -> None:
        self._over: set[str] = set()

    def changes(self, found: Iterable[Growth]) -> Iterator[Growth]:
        """What has crossed its limit since the last call, in either direction."""
        for each in found:
            if each.over and each.name not in self._over:
                self._over.add(each.name)
                yield each
            elif each.name in self._over and each.value < each.limit * BACK:
                self._over.remove(each.name)
                yield each
