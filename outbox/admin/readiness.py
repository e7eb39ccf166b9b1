"""Whether the relay of this process gets anywhere: what `/health/ready` asks beside the database.

An outage of the destination is the destination's, a pause the operator's, and rows that wait for their next attempt
wait as they should: none of these makes a relay unready.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from loguru import logger

from outbox import logs
from outbox.admin.poller import DestinationStatus
from outbox.settings import Settings
from outbox.store import figures, pauses
from outbox.store.models import now_ms
from outbox.store.shown import moment
from outbox.store.store import Store

LEASES: Final = 2
"""Whatever a relay does with a claim is over before its lease is, or in vain; twice as long is no slow answer."""

TRIAL_LATE_MS: Final = 5_000


class RunningRelay(Protocol):
    """What a relay says of itself, from any thread."""

    @property
    def looked_at(self) -> float:
        """When it last asked for rows and got an answer, whether there were any, by `time.monotonic`."""

    @property
    def settled_at(self) -> int | None:
        """When it last settled a row, in milliseconds since 1970."""

    @property
    def database_error(self) -> str | None:
        """Why the database does not take its writes."""

    def breakers(self) -> Sequence[Mapping[str, Any]]:
        """What it has paused, see `outbox.relay.Relay`."""


class Readiness:
    """`relay`: of this process, None where there is none: then nothing is asked of other processes' relays."""

    def __init__(
        self, relay: RunningRelay | None, destination: Callable[[], DestinationStatus | None], settings: Settings
    ) -> None:
        self._relay, self._destination = relay, destination
        self._stuck_after_ms = LEASES * int(settings.lease * 1000)
        self._answer_ms = int(settings.request_timeout * 1000)
        self._trial_late_ms = TRIAL_LATE_MS + int(settings.poll_interval * 1000)
        self._said = False

    def problem(self, store: Store) -> str | None:
        """Why the relay gets nowhere, since when, and what to do; None: it does, or there is nothing to do for it.

        One line in the log when that begins, and one when it ends. Raises `DatabaseUnavailable`.
        """
        paused = pauses.current(store.run)  # also of a part: what else waits is not told apart from its rows
        found = None
        if self._relay is not None and not paused:
            breakers = self._relay.breakers()
            if self._destination_answers(breakers):
                found = self._stuck(self._relay, store) or self._all_refused(self._relay, breakers)
        if found and not self._said:
            logger.error("not ready: {reason}", reason=logs.safe(found))
        elif self._said and not found:
            logger.info("ready again")
        self._said = found is not None
        return found

    def _destination_answers(self, breakers: Sequence[Mapping[str, Any]]) -> bool:
        seen = self._destination()
        paused = any(breaker["index"] is None for breaker in breakers)
        return seen is not None and seen.unreachable is None and not paused

    def _stuck(self, relay: RunningRelay, store: Store) -> str | None:
        """The relay does not even look for rows: code of the application that does not return, or no write lock."""
        silent_ms = int((time.monotonic() - relay.looked_at) * 1000)
        if silent_ms < self._stuck_after_ms:
            return None
        now = now_ms()
        due = figures.longest_due(store, now - self._stuck_after_ms)
        if due is None:
            return None
        rows = f"rows of index {due.index_name} wait since {_iso(due.since)}"
        if error := relay.database_error:
            return (
                f"the database has taken no writes of the relay since {_iso(now - silent_ms)} ({error}); {rows}; "
                "'outbox-relay check' says what to do"
            )
        return (
            f"the relay has not looked for rows since {_iso(now - silent_ms)}; {rows}; its log says what it did last: "
            "restart it"
        )

    def _all_refused(self, relay: RunningRelay, breakers: Sequence[Mapping[str, Any]]) -> str | None:
        """The only rows that it could deliver are refused: indexes take none, and no row of another one went through.

        Where others did, the relay is ready, and these indexes are what is wrong.
        """
        now = now_ms()
        # After a pause, or an outage, an index may take rows by now: it is asked first.
        tried = [breaker for breaker in breakers if now < breaker["next_probe"] + self._trial_late_ms]
        if not tried:
            return None
        first = min(tried, key=lambda breaker: int(breaker["since"]))
        # Answers to requests that were under way when it began say nothing of the time since.
        others_flow = relay.settled_at is not None and relay.settled_at > first["since"] + self._answer_ms
        if others_flow or now - first["since"] < self._stuck_after_ms:
            return None
        return (
            f"index {first['index']} takes no rows since {_iso(first['since'])} ({first['reason']}), and no row of "
            "another one was delivered since; 'outbox-relay check' says what to do"
        )


def _iso(milliseconds: int) -> str:
    return moment(milliseconds).isoformat(timespec="seconds")
