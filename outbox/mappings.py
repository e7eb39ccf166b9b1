"""Whether the indexes are what the registry says, and what is added to them where they are not.

A change of a registered entity's mappings or settings, or of fields that mappings are derived from, reaches an index
that is there already by `apply`, as far as that goes without a rebuild, or by a reindex.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from outbox.destinations.base import Destination
from outbox.destinations.differences import Difference, differences, merged
from outbox.entities.registry import EntityRegistry
from outbox.errors import DestinationError, DestinationUnanswered
from outbox.store import jobs
from outbox.store.store import Store

EVERY_S: Final = 60.0
LONGEST_PART: Final = 100
"""Of the time, a hundredth is spent on looking at most: each tenant may have indexes of its own."""


@dataclass(frozen=True, slots=True)
class IndexDrift:
    """How an index of entities differs from what is registered. `unknown`: why that cannot be said, for people."""

    index: str
    target: str
    entities: tuple[str, ...]
    differences: tuple[Difference, ...] = ()
    unknown: str = ""

    @property
    def additive(self) -> list[Difference]:
        """What `apply` adds."""
        return [each for each in self.differences if each.additive]

    @property
    def rebuild(self) -> list[Difference]:
        """What takes a reindex."""
        return [each for each in self.differences if not each.additive]

    @property
    def summary(self) -> str:
        """The first difference, and how many more there are."""
        more = f", and {len(self.differences) - 1:,} more" if len(self.differences) > 1 else ""
        return f"{self.target} is not as registered: {self.differences[0]}{more}"

    @property
    def remedy(self) -> str:
        """The commands that make the index as registered."""
        commands = [
            *(["'outbox-relay mappings apply'"] if self.additive else []),
            *([f"'outbox-relay reindex --entity {shlex.quote(self.entities[0])}'"] if self.rebuild else []),
        ]
        return f"run {', then '.join(commands)}"


def drift(
    store: Store, destination: Destination, registry: EntityRegistry, entities: Collection[str] = ()
) -> list[IndexDrift]:
    """Every index that rows of registered entities go to, or of some of them, compared with the registry.

    An index that is being made anew, that is missing, or whose readers get another one is not compared. What is kept
    of a reindex (`--keep-old`) is meant to be as it was. Raises `DestinationError`.
    """
    found = []
    for name, target in sorted(store.targets().items()):
        of_index = tuple(each.name for each in registry.of_index(name))
        if of_index and (not entities or set(of_index) & set(entities)):
            found.append(_compared(store, destination, registry, IndexDrift(name, target, of_index)))
    return found


def drift_of(store: Store, destination: Destination, registry: EntityRegistry, index: str) -> IndexDrift | None:
    """The same of one index; None where no rows go to it so far, or no entity has it."""
    target = store.targets().get(index)
    of_index = tuple(each.name for each in registry.of_index(index))
    if target is None or not of_index:
        return None
    return _compared(store, destination, registry, IndexDrift(index, target, of_index))


def _compared(store: Store, destination: Destination, registry: EntityRegistry, of: IndexDrift) -> IndexDrift:
    job = jobs.open_job(store, of.index)
    if job is not None and job.new_index is not None:
        return replace(of, unknown=f"reindex {job.id} makes it anew: compare again when it has ended")
    if destination.inspect_index(of.index, of.target).readers != (of.target,):
        return replace(of, unknown=f"{of.target} is missing, or readers get another: see 'outbox-relay check'")
    mappings, settings = registry.index_options(of.index) or ({}, {})
    held = destination.definition(of.target, mappings)
    return replace(of, differences=tuple(differences(mappings, settings, held)))


class DriftWatch:
    """The indexes that differ from what is registered, as of the last look."""

    def __init__(self, destination: Destination, registry: EntityRegistry) -> None:
        self._destination, self._registry = destination, registry
        self._next = 0.0
        self.found: Sequence[IndexDrift] = ()

    def look(self, store: Store) -> Sequence[IndexDrift]:
        """Look again if it is time. Raises `DatabaseUnavailable`; without an answer what was found stays."""
        began = time.monotonic()
        if began < self._next:
            return self.found
        try:
            found = drift(store, self._destination, self._registry)
        except DestinationError:
            self._next = time.monotonic() + EVERY_S
            return self.found
        self.found = [each for each in found if each.differences]
        now = time.monotonic()
        self._next = now + max(EVERY_S, (now - began) * LONGEST_PART)
        return self.found


def apply(destination: Destination, drifted: IndexDrift) -> dict[Difference, str]:
    """Add what can be added to an index. Returns what was refused all the same, and why.

    Raises `DestinationUnanswered`; what was asked until then may be done.
    """
    if not drifted.additive or _amended(destination, drifted.target, drifted.additive) is None:
        return {}
    # One request is refused as a whole: see which part of it.
    refused = {each: _amended(destination, drifted.target, [each]) for each in drifted.additive}
    return {each: why for each, why in refused.items() if why is not None}


def _amended(destination: Destination, target: str, some: Iterable[Difference]) -> str | None:
    mappings: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for each in some:
        mappings, settings = merged(mappings, each.mappings), {**settings, **each.settings}
    try:
        destination.amend_index(target, mappings, settings)
    except DestinationUnanswered:
        raise
    except DestinationError as error:
        return str(error)
    return None
