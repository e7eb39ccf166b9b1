"""Posts what operators should hear of, on a thread of its own: nothing else ever waits for the receiver."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

import orjson
from loguru import logger

from outbox import logs
from outbox.maintenance.webhook import Webhook

EVERY_S: Final = 60.0
"""Of each kind there is one post in that time at most: what comes meanwhile is in the next one."""

PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Between the tries of one post."""

MOST_EVENTS: Final = 100
"""In one post; more are only counted. So a receiver that hangs costs no memory either."""

LAST_S: Final = 5.0
"""For what is left when the relay ends."""

Event = dict[str, Any]


class Kind(StrEnum):
    """What operators are told of."""

    DEAD = "dead"
    OUTAGE = "outage"
    BLOCK = "block"
    DRIFT = "drift"
    GROWTH = "growth"


class Notifier:
    """`source`: which relay of which database this is, part of each post."""

    def __init__(
        self,
        webhook: Webhook,
        source: Mapping[str, Any],
        *,
        every_s: float = EVERY_S,
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        self._webhook, self._source, self._every_s, self._pauses_s = webhook, source, every_s, pauses_s
        self._changed = threading.Condition()
        self._waiting: dict[Kind, list[Event]] = {}
        self._left_off: dict[Kind, int] = {}
        self._next_at: dict[Kind, float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outbox-notify", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Send what is left, each kind once, and wait for that some seconds at most."""
        self._stopping.set()
        with self._changed:
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(LAST_S)
        if self._thread.is_alive():
            logger.warning(
                "the last notifications were not taken by {receiver} in time; the log has what they said",
                receiver=logs.safe(self._webhook.name),
            )

    def add(self, kind: Kind, **event: Any) -> None:
        """Have something said. Rows that died of the same in the same index are one event. Waits for nothing."""
        with self._changed:
            waiting = self._waiting.setdefault(kind, [])
            same = next((each for each in waiting if kind is Kind.DEAD and _cause(each) == _cause(event)), None)
            if same:
                same["rows"] += event["rows"]
            elif len(waiting) < MOST_EVENTS:
                waiting.append(event)
            else:
                self._left_off[kind] = self._left_off.get(kind, 0) + 1
            self._changed.notify()

    def _run(self) -> None:
        while taken := self._take():
            kind, events, left_off = taken
            try:
                self._send(kind, body(kind, events, left_off, self._source))
            except Exception as error:  # a defect here must not end what tells of all else
                logger.opt(exception=error).error("notification of kind {kind} failed unexpectedly", kind=kind)

    def _take(self) -> tuple[Kind, list[Event], int] | None:
        """What to send next, as soon as it may be sent; None: nothing is left, and it ends."""
        with self._changed:
            while True:
                now = time.monotonic()
                for kind in self._waiting:
                    if self._stopping.is_set() or self._next_at.get(kind, now) <= now:
                        self._next_at[kind] = now + self._every_s
                        return kind, self._waiting.pop(kind), self._left_off.pop(kind, 0)
                if self._stopping.is_set():
                    return None
                at = min((self._next_at[kind] for kind in self._waiting), default=None)
                self._changed.wait(None if at is None else max(0.0, at - now))

    def _send(self, kind: Kind, said: bytes) -> None:
        for pause in (*self._pauses_s, None):
            failure = self._webhook.post(said)
            if failure is None:
                return
            if pause is None or self._stopping.wait(pause):
                break
        logger.warning(
            "notification of kind {kind} not taken by {receiver}, given up: {reason}; the log has what it said",
            kind=kind,
            receiver=logs.safe(self._webhook.name),
            reason=logs.safe(failure or "?"),
        )


def body(kind: Kind, events: Sequence[Event], left_off: int, source: Mapping[str, Any]) -> bytes:
    """A post: for people in `text`, for programs in the rest. Each try of it has the same `id`."""
    sentences = [sentence(kind, each) for each in events[:3]]
    if more := len(events) + left_off - len(sentences):
        sentences.append(f"{more:,} more")
    return orjson.dumps(
        {
            "id": uuid.uuid4().hex,
            "kind": kind,
            "text": f"outbox-relay: {'; '.join(sentences)}",
            "sentAt": datetime.now(UTC).isoformat(timespec="seconds"),
            **source,
            "events": events,
            "leftOff": left_off,
        }
    )


def sentence(kind: Kind, event: Mapping[str, Any]) -> str:
    """One event, as a person would say it."""
    begun = event.get("state") == "begun"
    match kind:
        case Kind.DEAD:
            where = f" in {event['index']}" if event["index"] else ""
            return f"{logs.rows(event['rows'])} died{where} ({event['errorType']}): see 'outbox-relay dead list'"
        case Kind.OUTAGE if begun:
            return f"the destination does not answer ({event['reason']}); rows wait, none is lost"
        case Kind.OUTAGE:
            return f"the destination answers again after {event['seconds']:,} s"
        case Kind.BLOCK if begun:
            return f"index {event['index']} takes no rows ({event['reason']}): see 'outbox-relay check'"
        case Kind.BLOCK:
            return f"index {event['index']} is no longer paused after {event['seconds']:,} s"
        case Kind.GROWTH:
            return f"{event['found']}: {event['remedy']}" if begun else f"{event['name']} back below its limit"
        case Kind.DRIFT:
            return f"{event['found']}: {event['remedy']}"


def _cause(event: Mapping[str, Any]) -> tuple[str, str]:
    return event["index"], event["errorType"]
