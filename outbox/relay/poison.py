"""Pure: when a row is to blame for getting no answer."""

from __future__ import annotations

from dataclasses import dataclass, field

LONE_FAILURES = 2


@dataclass(slots=True)
class PoisonDetector:
    """Which rows are poison: documents that make the destination hang, or cut the connection.

    Each delivery of such a row looks like an outage, and an outage must kill nothing. So a row that got no answer
    `lone_after` times is sent alone, and a failure counts against it only if all of this holds:

    * directly after it the destination answers a harmless operation on the same document. A hung data node behind a
      healthy master does not, an outage does not;
    * another row of its index was applied just before, and another one just after, with nothing unanswered in
      between. An outage that begins or ends at this moment does not have both.

    It is guilty after `LONE_FAILURES` of them. A row that takes the whole destination down with it looks like an
    outage: it stays, and is tried alone. Each relay judges by its own requests. All instants in milliseconds.
    """

    just_ms: int
    """What "just before" and "just after" mean: longer than a request takes to time out."""
    _applied: dict[str, int] = field(default_factory=dict)  # index → when one of its rows was last applied
    _unconfirmed: dict[int, tuple[str, int]] = field(default_factory=dict)  # lone failures that wait for a row after
    _failures: dict[int, int] = field(default_factory=dict)

    def applied(self, index: str, now: int) -> None:
        """Note that a row of the index was applied."""
        self._applied[index] = now
        for row, (its_index, failed_at) in list(self._unconfirmed.items()):
            if its_index == index:
                del self._unconfirmed[row]
                if now - failed_at <= self.just_ms:
                    self._failures[row] = self._failures.get(row, 0) + 1

    def failed_alone(self, row: int, index: str, now: int) -> None:
        """Note that a row got no answer when sent alone, while the destination answers for its document."""
        if now - self._applied.get(index, -self.just_ms) < self.just_ms:
            self._unconfirmed[row] = (index, now)

    def unanswered(self) -> None:
        """Note that the destination gave no answer: what failed around this moment proves nothing."""
        self._applied.clear()
        self._unconfirmed.clear()

    def guilty(self, row: int) -> bool:
        """Whether the row is poison, and not to be sent any more."""
        return self._failures.get(row, 0) >= LONE_FAILURES

    def forget(self, row: int) -> None:
        """The row has come to its end; a dead one that is retried gets a new trial."""
        self._failures.pop(row, None)
        self._unconfirmed.pop(row, None)
