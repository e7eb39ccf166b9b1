"""The contract of a destination: one action in, one outcome out, and nothing about tables."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


@dataclass(slots=True)
class Action:
    """What one document shall be: `document` as JSON on one line, or gone when it is None."""

    index: str  # the alias, for messages and breakers
    target: str  # the physical index
    document_id: str
    version: int
    document: bytes | None


class OutcomeKind(enum.Enum):
    """What a destination can say of an action; the README's outcome table says what follows from each."""

    APPLIED = "applied"
    CONFLICT = "conflict"  # it holds `Outcome.version`, which is not lower than the action's
    REJECTED = "rejected"  # the document's fault, no retry can help
    FAILED = "failed"  # the document's failure, a retry may help
    OVERLOADED = "overloaded"  # not now
    BLOCKED = "blocked"  # the index takes nothing at present
    UNAVAILABLE = "unavailable"  # no answer for this action
    SPLIT = "split"  # the request as a whole was refused; smaller ones may pass


class Outcome(NamedTuple):
    """What became of one action. `version` is the one a conflict reports."""

    kind: OutcomeKind
    error_type: str | None = None
    error: str | None = None
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """What a destination says of itself."""

    product: str
    version: str
    status: str


@dataclass(frozen=True, slots=True)
class IndexFacts:
    """What a destination says of a physical index and of the name that readers use."""

    exists: bool
    readers: tuple[str, ...]  # the physical indexes that the name leads to
    gc_deletes: str  # how long deletes are remembered, e.g. 24h


class Destination(Protocol):
    """A search engine that keeps the highest version of each document. Used from several threads at once."""

    def apply(self, actions: Sequence[Action]) -> list[Outcome]:
        """Send the actions in one request. Returns one outcome for each, in their order; raises nothing."""

    def ensure_index(self, name: str) -> str:
        """The physical index for `name`, created (with `name` as alias) if nothing has that name.

        Raises `DestinationError`.
        """

    def ping(self) -> str | None:
        """None if it answers a harmless call, else why not."""

    def health(self) -> Health:
        """Product, version and state. Raises `DestinationError`."""

    def inspect_index(self, name: str, target: str) -> IndexFacts:
        """The state of a physical index and of its name. Changes nothing. Raises `DestinationError`."""

    def highest_version(self, name: str) -> int:
        """The highest version found in the index, 0 if it is empty or missing. Raises `DestinationError`."""

    def close(self) -> None: ...
