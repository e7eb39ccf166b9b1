"""Which indexes have time series of their own: not each of a thousand tenants, nor each name that a loop makes up."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from operator import add, sub
from typing import Final

from outbox.admin.statistics import NOTHING, Counts, IndexAction
from outbox.store.figures import Outcomes

OTHER: Final = "other"
"""The label of all that have none of their own."""

DISPLACED_BY: Final = 2
"""An index gives its label up to one with so many times its rows: a label that changes hands makes a new time series,
so indexes that are about as busy must not take it from each other at each scrape."""


class BusiestIndexes:
    """Counts by label: the indexes of entities, the `most` busiest others, and `OTHER`.

    Only what is added from one look to the next is counted, under the label that its index has then. So no count ever
    falls and none jumps when an index gets a label or gives it up.
    """

    def __init__(self, most: int, entities: Collection[str]) -> None:
        self._most, self._entities = most, entities
        self._named: set[str] = set()
        self._seen: Mapping[IndexAction, Counts] = {}
        self._counted: dict[IndexAction, Counts] = {}

    def labelled(self, counted: Mapping[IndexAction, Counts], before: Mapping[str, int]) -> dict[IndexAction, Counts]:
        """`counted`: by index, never less than at the last look. `before`: rows of the last day, by index."""
        self._choose(counted, before)
        shown = {*self._entities, *self._named, OTHER}
        for (index, action), counts in counted.items():
            seen = self._seen.get((index, action))
            if counts != seen:
                label = index if index in shown else OTHER, action
                more = map(sub, counts, seen or NOTHING)
                self._counted[label] = tuple(map(add, self._counted.get(label, NOTHING), more))
        self._seen = counted
        return {key: counts for key, counts in self._counted.items() if key[0] in shown}

    def _choose(self, counted: Mapping[IndexAction, Counts], before: Mapping[str, int]) -> None:
        rows = {index: before.get(index, 0) for index, _ in counted if index not in self._entities}
        for (index, _), counts in counted.items():
            if index in rows:
                rows[index] += Outcomes.of(counts).finished
        for index in sorted(rows.keys() - self._named, key=lambda index: (-rows[index], index)):
            if len(self._named) == self._most:
                quietest = min(self._named, key=lambda index: rows.get(index, 0))
                if rows[index] < DISPLACED_BY * max(1, rows.get(quietest, 0)):
                    break
                self._named.remove(quietest)
            self._named.add(index)
