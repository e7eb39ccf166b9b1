"""Pure: which figures an operator must be told of. The documentation lists the limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from outbox.store.figures import Backlog, Outcomes
from outbox.store.pauses import Pause

LEAST_COMPLETION: Final = 0.99
MOST_FAILURES: Final = 0.01
MOST_DEPTH: Final = 1_000
MOST_AVERAGE_MS: Final = 500
OVERDUE_MS: Final = 60_000
"""What waits no longer than that is on its way, not missing."""

WINDOW_MS: Final = 15 * 60_000
"""Completion, failures and average are of the last quarter of an hour."""


ALERTS: Final = ("cluster_unreachable", "no_relay", "paused", "queue_depth", "completion", "failures", "latency")
"""The names of all, the causes before their effects."""


@dataclass(frozen=True, slots=True)
class Alert:
    """A figure beyond its limit. `remedy` says where to look, or what to run."""

    name: str
    text: str
    remedy: str


def alerts(
    backlog: Backlog, recent: Outcomes, *, unreachable: str | None, relays: int, paused: Sequence[Pause]
) -> list[Alert]:
    """What is beyond its limit, the causes before their effects. `unreachable`: why the destination does not answer,
    `paused`: what operators have paused."""
    found = []
    if unreachable is not None:
        found.append(
            Alert(
                "cluster_unreachable", f"the destination does not answer: {unreachable}", "nothing is lost; rows wait"
            )
        )
    if backlog.unfinished and not relays:
        found.append(Alert("no_relay", "rows wait and no relay runs", "outbox-relay run"))
    if paused and backlog.unfinished:
        first, more = paused[0], len(paused) - 1
        what = f"{first.what} and {more:,} more are" if more else f"{first.what} is"
        found.append(Alert("paused", f"rows wait and {what} paused", first.remedy))
    if backlog.unfinished > MOST_DEPTH:
        found.append(
            Alert("queue_depth", f"{backlog.unfinished:,} rows wait (limit {MOST_DEPTH:,})", "see relays and breakers")
        )
    overdue = backlog.unfinished if (backlog.oldest_ms or 0) > OVERDUE_MS else 0
    asked = recent.finished + overdue
    if asked and (completion := recent.done / asked) < LEAST_COMPLETION:
        found.append(
            Alert("completion", f"{completion:.1%} of the rows arrived (limit {LEAST_COMPLETION:.0%})", "see dead rows")
        )
    if (rate := recent.failure_rate) is not None and rate > MOST_FAILURES:
        found.append(Alert("failures", f"{rate:.1%} of the rows died (limit {MOST_FAILURES:.0%})", "see dead rows"))
    if (average := recent.average_ms) is not None and average > MOST_AVERAGE_MS:
        found.append(
            Alert("latency", f"rows take {average:,.0f} ms on average (limit {MOST_AVERAGE_MS} ms)", "see the history")
        )
    return found
