"""Pure: how many rows a second a relay may take, of one tenant and in all, so that it leaves the cluster to others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from outbox.documents import same_tenant, tenant_spellings


@dataclass(slots=True)
class TenantRates:
    """A bucket for each tenant: it holds a second's worth of rows, and fills at `rate` rows a second.

    All spellings of a tenant share one. Rows without a tenant are not limited. All instants in milliseconds; a clock
    that jumps back refills nothing.
    """

    rate: float
    _levels: dict[str, float] = field(default_factory=dict)  # of buckets that are not full
    _filled_at: int = 0

    @property
    def burst(self) -> int:
        """The most rows of one tenant to take at once."""
        return max(1, int(self.rate))

    def took(self, tenants: Iterable[str | None], now: int) -> None:
        """Note rows that were taken, by their tenants."""
        self._fill(now)
        for spelled, rows in Counter(tenants).items():
            if spelled is not None:
                tenant = same_tenant(spelled)
                self._levels[tenant] = self._levels.get(tenant, self.burst) - rows

    def exhausted(self, now: int) -> list[str]:
        """The tenants that have to wait, in all their spellings."""
        self._fill(now)
        return sorted(
            spelled for tenant, level in self._levels.items() if level < 1 for spelled in tenant_spellings(tenant)
        )

    def _fill(self, now: int) -> None:
        gained = self.rate * max(0, now - self._filled_at) / 1_000
        self._filled_at = now
        filled = {tenant: level + gained for tenant, level in self._levels.items()}
        self._levels = {tenant: level for tenant, level in filled.items() if level < self.burst}


PART_S: Final = 0.1


@dataclass(slots=True)
class Ceiling:
    """A bucket for all rows: it holds a second's worth, is full at first, and fills at `rate` rows a second.

    What is asked for while it is empty gets nothing until it holds a tenth of a second's worth, so that requests do not
    become small. All instants in milliseconds; a clock that jumps back refills nothing.
    """

    rate: float
    _spent: float = 0  # rows that are missing in the bucket
    _filled_at: int = 0

    def room(self, now: int) -> int:
        """How many rows may be taken now."""
        self._spent = max(0.0, self._spent - self.rate * max(0, now - self._filled_at) / 1_000)
        self._filled_at = now
        left = max(1.0, self.rate) - self._spent
        return int(left) if left >= max(1.0, self.rate * PART_S) else 0

    def took(self, rows: int) -> None:
        """Note rows that were taken."""
        self._spent += rows
