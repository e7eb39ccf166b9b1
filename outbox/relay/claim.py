"""Which rows are claimed next: a row alone, a batch that is due, or a trial of what was away."""

from __future__ import annotations

from collections.abc import Collection

from loguru import logger

from outbox import logs
from outbox.relay.health import Health
from outbox.relay.rate import PART_S, Ceiling, TenantRates
from outbox.settings import Settings
from outbox.store import claims, pauses
from outbox.store.claims import Claim
from outbox.store.due import ClaimRequest
from outbox.store.floor import Floor
from outbox.store.pauses import Pause
from outbox.store.store import Store

MOST_ROWS_AT_TRIAL = 50


class Claimer:
    """Claims for one relay: what operators, its breakers and the rates of its tenants allow."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        health: Health,
        relay_id: int,
        longest_wait_ms: int,
    ) -> None:
        self._pauses: tuple[Pause, ...] = ()
        self._store, self._settings, self._health, self._id = store, settings, health, relay_id
        self._lease_ms = int(settings.lease * 1000)
        self._longest_wait_ms = max(longest_wait_ms, self._lease_ms)
        self._left_out: set[str] = set()
        self._ceiling = Ceiling(settings.rate) if settings.rate else None
        self.pause_s = settings.poll_interval
        self._rates = TenantRates(settings.tenant_rate) if settings.tenant_rate else None
        self._floor = None if store.dialect.ids_follow_commits else Floor()

    def next(self, now: int, in_flight: Collection[Claim], leave_out: Collection[str] = ()) -> Claim | None:
        """Rows that are worth sending now, or None. `in_flight`: claims whose rows are with the destination.

        `leave_out`: indexes whose turn it is not.

        Raises `SchemaError` as `Store.pin` says, and `MalformedRows`.
        """
        rows, health = self._settings.batch_rows, self._health
        self._note_pauses()
        paused = (each.index for each in self._pauses if each.index is not None and each.tenant is None)
        self._left_out = {*leave_out, *health.intakes.paused(now), *paused}
        if health.destination.is_open:
            if in_flight or not health.destination.probe_due(now):
                return None
            rows = min(rows, MOST_ROWS_AT_TRIAL)  # a cluster that answers slowly may manage a small request
        if not (rows := self._within_ceiling(rows, now)):
            return None
        lone = not any(claim.lone for claim in in_flight)
        return self._trial(now, in_flight, lone=lone) or self._claim(now, rows, lone=lone)

    def _within_ceiling(self, rows: int, now: int) -> int:
        """So many of the rows as may be taken now: no more are claimed than are sent at once."""
        if self._ceiling is None:
            return rows
        room = self._ceiling.room(now)
        self.pause_s = self._settings.poll_interval if room else min(self._settings.poll_interval, PART_S)
        return min(rows, room)

    def _note_pauses(self) -> None:
        """Note what operators have paused; one line when each begins and when it ends."""
        before, self._pauses = self._pauses, pauses.current(self._store.run)
        for each in self._pauses:
            if each not in before:
                logger.warning(
                    "{what} is paused by {by} ({reason}); '{remedy}' lets it go on",
                    what=logs.safe(each.what),
                    by=logs.safe(each.by),
                    reason=logs.safe(each.reason),
                    remedy=logs.safe(each.remedy),
                )
        for each in before:
            if each not in self._pauses:
                logger.info("{what} is no longer paused", what=logs.safe(each.what))

    def _paused_tenants(self) -> tuple[list[str], list[tuple[str, str]]]:
        """Tenants that are paused, as rows spell them, and those that are in an index: (index, tenant)."""
        tenants: list[str] = []
        lanes: list[tuple[str, str]] = []
        for each in self._pauses:
            if each.index is None:
                tenants += each.tenants
            else:
                lanes += [(each.index, text) for text in each.tenants]
        return tenants, lanes

    def _trial(self, now: int, in_flight: Collection[Claim], *, lone: bool) -> Claim | None:
        """One row of an index that was blocked and should be tried again."""
        for name in self._health.indexes_to_try(now):
            # One trial of an index at a time: a red one holds each for seconds, and all would hold every worker.
            is_asked = any(event.index_name == name for claim in in_flight for event in claim.events)
            if is_asked or name in self._left_out:
                continue
            if claim := self._claim(now, 1, only=name, lone=lone):
                self._health.tried(name, now)
                return claim
            if not claims.any_unfinished(self._store, name):
                self._health.nothing_waits(name)  # purged, or delivered by another relay
        return None

    def _claim(self, now: int, rows: int, *, lone: bool, only: str | None = None) -> Claim | None:
        rates = self._rates
        tenants, lanes = self._paused_tenants()
        claim = claims.claim(
            self._store,
            ClaimRequest(
                relay=self._id,
                now=now,
                lease_ms=self._lease_ms,
                longest_wait=self._longest_wait_ms,
                rows=rows,
                bytes_=self._settings.batch_bytes,
                leave_out=[*self._left_out, *(name for name in self._health.paused_indexes() if name != only)],
                only=only,
                tenants_out=[*tenants, *(rates.exhausted(now) if rates else ())],
                lanes_out=lanes,
                pauses=self._pauses,
                tenant_rows=rates.burst if rates else None,
                expected=self._health.intakes.expected(),
                most=self._health.intakes.most(),
                lone_after=self._settings.lone_after,
                lone=lone,
                lone_last=self._health.lone_failed and only is None,
                floor=self._floor if only is None else None,
            ),
        )
        if claim and self._ceiling:
            self._ceiling.took(len(claim.events))
        if claim and rates:
            rates.took((event.tenant_id for event in claim.events), now)
        return claim
