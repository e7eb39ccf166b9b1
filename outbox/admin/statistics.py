"""What became of rows, by time: statistics of minutes that are over are read once, and kept as sums."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import add, sub
from typing import Final, TypeVar

from outbox.store import by_index, figures
from outbox.store.figures import DAY_MS, MINUTE_MS, WEEK_MS, Outcomes, Statistic
from outbox.store.models import STATISTICS
from outbox.store.store import Store
from outbox.store.upkeep import HOUR_MS

OPEN_MS: Final = 5 * MINUTE_MS
"""For so long the statistics of a minute may still grow: they are noted by other processes."""

MINUTES_MS: Final = 4 * HOUR_MS
"""Of that time each minute is kept, before it each hour."""

PAUSE_MS: Final = 2 * HOUR_MS
"""After a longer one (a machine that slept) minutes may have been summed up before the next look."""

ENTITIES_MS: Final = DAY_MS + 2 * HOUR_MS
"""Of that time the sums are kept by entity."""

KEPT_INDEXES: Final = 20
"""Of which the statistics are kept one by one: a kilobyte or two for each hour of a week."""

Counts = tuple[int, ...]  # in the order of STATISTICS
Names = Mapping[str, Counts]  # by entity, or by index where the rows name none
IndexAction = tuple[str, str]
K = TypeVar("K")

_DONE, _DEAD = STATISTICS.index("done"), STATISTICS.index("dead")

NOTHING: Final[Counts] = (0,) * len(STATISTICS)


@dataclass(frozen=True, slots=True)
class Statistics:
    """What became of rows in the last week.

    `days`: the sums of each day of UTC. `by_index_and_action`: since the first look; none of its counts ever falls.
    Rows of an entity are counted under the entity's index, also where each of its tenants has one.
    """

    periods: Mapping[int, Names]
    by_index_and_action: Mapping[IndexAction, Counts]
    days: Mapping[int, Names]

    def outcomes(self, since: int) -> Outcomes:
        """Of all rows from the minute of that instant on; from more than four hours ago on, of full hours."""
        return Outcomes.of(summed(counts for names in self._since(since).values() for counts in names.values()))

    def by_entity(self, since: int) -> dict[str, Outcomes]:
        """The same by entity, or by index where the rows name none; at most of the last day."""
        found: dict[str, list[Counts]] = {}
        for names in self._since(since).values():
            for name, counts in names.items():
                found.setdefault(name, []).append(counts)
        return {name: Outcomes.of(summed(counts)) for name, counts in found.items()}

    def finished(self, now: int) -> dict[str, tuple[list[int], list[int]]]:
        """How many rows of each entity (or index where the rows name none) ended in each of the last 24 hours, and on
        each of the last seven days of UTC; the last of both are not over."""
        hour, day = now - now % HOUR_MS, now - now % DAY_MS
        found: dict[str, tuple[list[int], list[int]]] = {}
        spans = ((0, self.periods, hour, HOUR_MS, 24), (1, self.days, day, DAY_MS, 7))
        for which, sums, last, span_ms, number in spans:
            for at, names in sums.items():
                place = number - 1 - (last - at + at % span_ms) // span_ms
                for name, counts in names.items() if 0 <= place < number else ():
                    if name not in found:
                        found[name] = ([0] * 24, [0] * 7)
                    found[name][which][place] += counts[_DONE] + counts[_DEAD]  # no object of each: there are thousands
        return found

    def history(self, since: int) -> dict[int, Outcomes]:
        """By the minutes in which rows finished."""
        return {at: Outcomes.of(summed(names.values())) for at, names in self._since(since).items()}

    def _since(self, since: int) -> dict[int, Names]:
        return {at: names for at, names in self.periods.items() if at >= since - since % MINUTE_MS}


class StatisticsCache:
    """Reads on from where the last look ended. The first look reads a week, each further one some minutes.

    `indexes`: of the entities, by their names. `statistics`: reads them from a minute on, those of all rows by default.
    """

    def __init__(
        self,
        indexes: Mapping[str, str],
        statistics: Callable[[Store, int], list[Statistic]] = figures.statistics,
    ) -> None:
        self._indexes, self._statistics = indexes, statistics
        self._lock = threading.Lock()
        self._looked_at: int | None = None  # the last time
        self._until = 0  # minutes before it are over, and have been read
        self._periods: dict[int, Names] = {}
        self._days: Mapping[int, Names] = {}
        self._finished: dict[IndexAction, Counts] = {}  # of the minutes that came to their end since the first look
        self._uncounted: dict[IndexAction, Counts] = {}  # what some of these held at the first look already
        self._reported: dict[IndexAction, Counts] = {}

    def read(self, store: Store, now: int) -> Statistics:
        """What is so by now. Raises `DatabaseUnavailable`."""
        with self._lock:
            first = self._looked_at is None
            back = self._until > now  # the clock was set back: nothing ahead of it is over
            anew = back or now - (self._looked_at or 0) > PAUSE_MS
            since = now - now % HOUR_MS - WEEK_MS if anew else self._until
            over = max(since, now - now % MINUTE_MS - OPEN_MS)
            found = self._statistics(store, since)
            closed = [each for each in found if each.minute < over]
            growing = [each for each in found if each.minute >= over]
            if first:
                self._uncounted = self._by_index_and_action(growing)
            elif back:
                self._finished, self._uncounted = self._reported, self._by_index_and_action(growing)
            elif anew:  # what was reported last may be part of an hour's sum by now
                self._uncounted = {}
                later = (each for each in closed if each.minute > (self._looked_at or 0))
                self._finished = _added(self._reported, self._by_index_and_action(later))
            else:
                self._finished = _added(self._finished, self._by_index_and_action(closed))
            self._periods = ({} if anew else self._periods) | _by_minute(closed)
            self._days = _with_days({} if anew else self._days, closed)
            self._looked_at, self._until = now, over
            self._shorten(now)
            total = _added(self._finished, self._by_index_and_action(growing))
            self._reported = {
                key: tuple(map(sub, counts, self._uncounted.get(key, NOTHING))) for key, counts in total.items()
            }
            periods = {**self._periods, **_by_minute(growing)}
            return Statistics(periods, self._reported, _with_days(self._days, growing))

    def _by_index_and_action(self, found: Iterable[Statistic]) -> dict[IndexAction, Counts]:
        sums: dict[IndexAction, Counts] = {}
        for each in found:
            _add(sums, (self._indexes.get(each.entity, each.index_name), each.action), each.counts)
        return sums

    def _shorten(self, now: int) -> None:
        hour = now - now % HOUR_MS
        kept: dict[int, Names] = {}
        for at, names in self._periods.items():
            if at < hour - WEEK_MS:
                continue
            if at < hour - ENTITIES_MS and len(names) > 1:
                names = {"": summed(names.values())}
            to = at if at >= hour - MINUTES_MS else at - at % HOUR_MS
            kept[to] = _added(kept[to], names) if to in kept else names
        self._periods = kept
        self._days = {at: names for at, names in self._days.items() if at > hour - WEEK_MS}


class IndexStatistics:
    """The same of single indexes, kept for those that were looked at last: of a busy one a week is a long read."""

    def __init__(self) -> None:
        self._caches: OrderedDict[str, StatisticsCache] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, store: Store, index: str, now: int) -> Statistics:
        """What is so by now. Raises `DatabaseUnavailable`."""
        with self._lock:
            kept = self._caches.setdefault(index, StatisticsCache({}, partial(by_index.statistics, index=index)))
            self._caches.move_to_end(index)
            if len(self._caches) > KEPT_INDEXES:
                self._caches.popitem(last=False)
        return kept.read(store, now)


def summed(counts: Iterable[Counts]) -> Counts:
    """The sum of each place."""
    return tuple(map(sum, zip(*counts, strict=True))) or NOTHING


def _by_minute(found: Iterable[Statistic]) -> dict[int, Names]:
    sums: dict[int, dict[str, Counts]] = {}
    for each in found:
        _add(sums.setdefault(each.minute, {}), each.name, each.counts)
    return dict(sums)


def _with_days(days: Mapping[int, Names], found: Iterable[Statistic]) -> Mapping[int, Names]:
    """The sums of days with what was found added."""
    sums = {at: dict(names) for at, names in days.items()}
    for each in found:
        _add(sums.setdefault(each.minute - each.minute % DAY_MS, {}), each.name, each.counts)
    return sums


def _added(first: Mapping[K, Counts], second: Mapping[K, Counts]) -> dict[K, Counts]:
    sums = dict(first)
    for key, counts in second.items():
        _add(sums, key, counts)
    return sums


def _add(sums: dict[K, Counts], key: K, counts: Counts) -> None:
    sums[key] = tuple(map(add, sums[key], counts)) if key in sums else counts
