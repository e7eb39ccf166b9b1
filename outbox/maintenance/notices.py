"""What is worth telling operators: looked at once a second from outside, so that delivery does nothing for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from outbox.maintenance.growth import Growth
from outbox.maintenance.notifier import Kind, Notifier
from outbox.mappings import IndexDrift
from outbox.store import upkeep, verifications
from outbox.store.drift import DriftKind
from outbox.store.models import now_ms
from outbox.store.store import Store

_Breakers = dict[str | None, Mapping[str, Any]]  # by index; None: of the destination


class Notices:
    """Of one relay: what it saw begin and end since it started, and for one of all relays what is seen in the tables.

    `breakers` and `deaths`: those of the relay. `mappings` looks for indexes that are not as registered. `silent_ms`: a
    relay without a sign of life for so long counts as gone.
    """

    def __init__(
        self,
        notifier: Notifier,
        relay: int,
        breakers: Callable[[], Sequence[Mapping[str, Any]]],
        deaths: Callable[[], Mapping[tuple[str, str], int]],
        mappings: Callable[[Store], Sequence[IndexDrift]] | None = None,
        *,
        silent_ms: int,
    ) -> None:
        self._notifier, self._relay, self._silent_ms = notifier, relay, silent_ms
        self._breakers, self._deaths, self._mappings = breakers, deaths, mappings
        self._died: Mapping[tuple[str, str], int] = {}
        self._open: _Breakers = {}
        self._verified: set[int] | None = None
        self._drifted: set[str] = set()

    def start(self) -> None:
        self._notifier.start()

    def stop(self) -> None:
        """Say what there is to say of the end, too."""
        self._look_at_relay()
        self._notifier.stop()

    def look(self, store: Store) -> None:
        """Note what has changed since the last look. Raises `DatabaseUnavailable`."""
        self._look_at_relay()
        self._look_at_verifications(store)
        if self._mappings is not None and None not in self._open and self._speaks_for_all(store):
            found = {each.index: each for each in self._mappings(store)}
            for index in found.keys() - self._drifted:
                said = {"index": index, "found": found[index].summary, "remedy": found[index].remedy}
                self._notifier.add(Kind.DRIFT, at=_iso(now_ms()), by="mappings", **said)
            self._drifted = set(found)

    def died(self, index: str, error_type: str, rows: int) -> None:
        """Note rows that died by other hands than the relay's."""
        self._notifier.add(Kind.DEAD, at=_iso(now_ms()), index=index, errorType=error_type, rows=rows)

    def grown(self, change: Growth) -> None:
        """Note a size that has passed its limit, or is back below it."""
        self._notifier.add(
            Kind.GROWTH,
            state="begun" if change.over else "ended",
            at=_iso(now_ms()),
            name=change.name,
            found=change.found,
            value=change.value,
            limit=change.limit,
            remedy=change.remedy,
        )

    def _speaks_for_all(self, store: Store) -> bool:
        return upkeep.is_first(store, self._relay, now_ms() - self._silent_ms)

    def _look_at_relay(self) -> None:
        died = dict(self._deaths())
        for (index, error_type), rows in died.items():
            if new := rows - self._died.get((index, error_type), 0):
                self.died(index, error_type, new)
        self._died = died
        found = {breaker["index"]: breaker for breaker in self._breakers()}
        for before in _without(self._open, found):
            self._add_breaker(before, state="ended", seconds=max(0, now_ms() - before["since"]) // 1000)
        for breaker in _without(found, self._open):
            self._add_breaker(breaker, state="begun", reason=breaker["reason"])
        self._open = found

    def _add_breaker(self, breaker: Mapping[str, Any], state: str, **more: Any) -> None:
        at = breaker["since"] if state == "begun" else now_ms()
        if breaker["index"] is None:
            self._notifier.add(Kind.OUTAGE, state=state, at=_iso(at), **more)
        else:
            self._notifier.add(Kind.BLOCK, state=state, at=_iso(at), index=breaker["index"], **more)

    def _look_at_verifications(self, store: Store) -> None:
        found = {each["id"]: each for each in verifications.with_drift(store)}
        new = [] if self._verified is None else sorted(found.keys() - self._verified)
        self._verified = set(found)
        for each in (found[id_] for id_ in new):
            of_relay = each["started_by"] == f"relay {self._relay}"
            of_another = each["started_by"].startswith("relay ") and not of_relay
            if of_relay or (not of_another and self._speaks_for_all(store)):
                kinds = {str(kind): each[kind] for kind in DriftKind}
                wrong = ", ".join(f"{number:,} {kind}" for kind, number in kinds.items() if number)
                self._notifier.add(
                    Kind.DRIFT,
                    at=_iso(each["finished_at"]),
                    by=each["started_by"],
                    entities=each["entities"],
                    **kinds,
                    found=f"documents of {', '.join(each['entities'])} differ from the database: {wrong}",
                    remedy="see 'outbox-relay verify'",
                )


def _without(some: _Breakers, others: _Breakers) -> list[Mapping[str, Any]]:
    """Those that are not among the others: one that closed and opened again is another one."""
    return [each for index, each in some.items() if index not in others or others[index]["since"] != each["since"]]


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
