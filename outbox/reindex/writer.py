"""How a reindex writes beside live rows: a few requests in flight, pages settled in order, and the pace of both."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from math import inf
from types import TracebackType
from typing import Final, Generic, TypeVar

from outbox.destinations.base import Destination, Operation, Outcome, OutcomeKind, apply_halved, portions, weight
from outbox.errors import DestinationError, shortened

FIRST_PAUSE_S: Final = 0.05
FAILED_PAUSE_S: Final = 1.0  # at least: these attempts are numbered
LONGEST_PAUSE_S: Final = 10.0
LOOK_EVERY_S: Final = 0.5
RETRIES: Final = 3
FLOW_S: Final = 2.0
READ_S: Final = 1.0
FIRST_ROWS: Final = 20
MOST_GROWTH: Final = 10

_TAKEN = frozenset({OutcomeKind.APPLIED, OutcomeKind.CONFLICT})  # a conflict: something newer is there already
_AWAY = frozenset({OutcomeKind.UNAVAILABLE, OutcomeKind.OVERLOADED})

M = TypeVar("M")


@dataclass(slots=True)
class Page(Generic[M]):
    """Documents that were read together, and what is recorded once all of them are settled."""

    mark: M
    documents: int
    open: int = 0  # requests of it that are not settled
    refused: list[str] = field(default_factory=list)  # what the destination does not take, each as one line


@dataclass(frozen=True, slots=True)
class _Request(Generic[M]):
    page: Page[M]
    operations: Sequence[Operation]
    failures: int = 0
    sent_at: float = 0.0


class Writer(Generic[M]):
    """Applies pages of operations, up to `requests` requests at a time of up to `request_bytes` of documents, for as
    long as it takes. While `gentle` is set it is one at a time: requests of live rows then wait behind at most one of
    this writer.

    For one thread, which alone decides what is sent; only requests run in others. `check` is called before each of
    them, and twice a second while answers are awaited: when it raises, nothing more is sent. `report` is told why the
    destination takes nothing at present, and None once it does; until then it is tried again with growing pauses, one
    request at a time, and what was too much at once in halves. Leaving the context waits for the answers of what is in
    flight, so that nothing is written later.
    """

    def __init__(
        self,
        destination: Destination,
        requests: int,
        request_bytes: int,
        *,
        check: Callable[[], None],
        report: Callable[[str | None], None],
    ) -> None:
        self._destination, self._most, self._check, self._report = destination, requests, check, report
        self._request_bytes = request_bytes
        self._pool = ThreadPoolExecutor(requests, "outbox-writer")
        self._pages: deque[Page[M]] = deque()
        self._waiting: deque[_Request[M]] = deque()
        self._in_flight: dict[Future[list[Outcome]], _Request[M]] = {}
        self._pause, self._not_before = 0.0, 0.0
        self.gentle = False

    def __enter__(self) -> Writer[M]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def send(self, operations: Sequence[Operation], mark: M) -> None:
        """Send a page as soon as there is room for it. Raises `DestinationError` if the index takes nothing at all."""
        page = Page(mark, len(operations))
        requests = [_Request(page, batch) for batch in portions(operations, weight, self._request_bytes)]
        page.open = len(requests)
        self._pages.append(page)
        self._waiting += requests
        self._work(lambda: not self._waiting)

    def settled(self) -> Iterator[Page[M]]:
        """Pages whose documents are all taken or refused, as are those of the pages before them. Each page once."""
        while self._pages and not self._pages[0].open:
            yield self._pages.popleft()

    def drain(self) -> Iterator[Page[M]]:
        """As `settled`, until everything that was sent is settled. Raises `DestinationError` as `send` does."""
        while self._pages:
            self._work(lambda: not self._pages[0].open)
            yield from self.settled()

    def _work(self, until: Callable[[], bool]) -> None:
        while True:
            while self._waiting and self._has_room():
                self._check()
                request = replace(self._waiting.popleft(), sent_at=time.monotonic())
                self._in_flight[self._pool.submit(apply_halved, self._destination, request.operations)] = request
            for answered in [each for each in self._in_flight if each.done()]:
                self._settle(self._in_flight.pop(answered), answered.result())
            if until():
                return
            if self._waiting and self._has_room():
                continue
            self._check()
            if self._in_flight:
                wait(self._in_flight, LOOK_EVERY_S, FIRST_COMPLETED)
            else:
                time.sleep(min(LOOK_EVERY_S, max(0.0, self._not_before - time.monotonic())))

    def _has_room(self) -> bool:
        if self._pause:
            return not self._in_flight and time.monotonic() >= self._not_before
        return len(self._in_flight) < (1 if self.gentle else self._most)

    def _settle(self, request: _Request[M], outcomes: Sequence[Outcome]) -> None:
        again: list[Operation] = []
        trouble: Outcome | None = None
        failed = False
        for operation, outcome in zip(request.operations, outcomes, strict=True):
            if outcome.kind in _TAKEN:
                continue
            if outcome.kind in _AWAY or (outcome.kind is OutcomeKind.FAILED and request.failures < RETRIES):
                again.append(operation)
                trouble = trouble or outcome
                failed |= outcome.kind is OutcomeKind.FAILED
            elif outcome.kind is OutcomeKind.BLOCKED:
                raise DestinationError(f"index {operation.target}: {outcome.error_type}: {outcome.error}")
            else:
                request.page.refused.append(
                    f"{shortened(operation.document_id)}: {outcome.error_type}: {outcome.error}"
                )
        if trouble:
            halved = len(again) > 1 and trouble.kind is OutcomeKind.OVERLOADED
            middle = len(again) // 2 if halved else 0
            for part in (again[middle:], again[:middle]) if halved else (again,):
                self._waiting.appendleft(replace(request, operations=part, failures=request.failures + failed))
            request.page.open += halved
            if request.sent_at >= self._not_before:  # what was in flight beside it says the same
                least = FAILED_PAUSE_S if failed else FIRST_PAUSE_S
                self._pause = min(max(2 * self._pause, least), LONGEST_PAUSE_S)
                self._not_before = time.monotonic() + self._pause
            self._report(trouble.error or trouble.kind.value)
            return
        request.page.open -= 1
        if self._pause and request.sent_at >= self._not_before:
            self._pause = 0.0
            self._report(None)


@dataclass(slots=True)
class Pace:
    """Page after page, at most `rate` documents a second; time lost to an outage is not made up for.

    All instants in seconds, of a clock that never jumps back.
    """

    rate: float
    _due: float = -inf

    def turn(self, documents: int, now: float) -> float:
        """When the next page may be sent, of so many documents: now or later."""
        turn = max(self._due, now)
        self._due = turn + documents / self.rate
        return turn


@dataclass(slots=True)
class Portion:
    """How many rows to read at a time, so that it takes about `READ_S`: documents may take long to make, and the lease
    of a job is renewed between two reads. Few at first, as long as it is not known."""

    rows: int = FIRST_ROWS

    def took(self, rows: int, seconds: float) -> None:
        """How long it took to read some of them."""
        self.rows = max(1, min(int(rows * READ_S / max(seconds, 1e-9)), MOST_GROWTH * self.rows))


@dataclass(slots=True)
class Traffic:
    """Whether the application is writing rows, seen from the highest id that was issued. Instants as for `Pace`."""

    last_id: int
    _flowed_at: float = -inf

    def flows(self, last_id: int, now: float) -> bool:
        """Whether a row came within the last `FLOW_S` seconds, or since the last call."""
        if last_id != self.last_id:
            self.last_id, self._flowed_at = last_id, now
        return now - self._flowed_at < FLOW_S
