"""What goes wrong, or comes between, beneath a reindex."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from outbox import EntityRegistry
from outbox.destinations.base import Destination, Outcome, OutcomeKind
from tests.reindex.world import SECOND
from tests.support import LIMIT_S


class Reading:
    """The registry, with something that happens after a page was read and before it is written."""

    def __init__(self, registry: EntityRegistry, then: Callable[[], None]) -> None:
        self._registry, self._then = registry, then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._registry)

    def page(self, *arguments: Any) -> Any:
        found = self._registry.page(*arguments)
        then, self._then = self._then, lambda: None
        then()
        return found


class Refusing:
    """A destination, one of whose indexes refuses or blocks what is sent to it."""

    def __init__(self, to: Destination, target: str, kind: OutcomeKind = OutcomeKind.REJECTED) -> None:
        self._to, self._target, self._kind = to, target, kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._to, name)

    def apply(self, operations: Any) -> list[Outcome]:
        passed = iter(self._to.apply([operation for operation in operations if operation.target != self._target]))
        refused = Outcome(self._kind, "provoked", "no such luck")
        return [refused if operation.target == self._target else next(passed) for operation in operations]


class Holding:
    """A destination that keeps what is sent for one document of the new index waiting."""

    def __init__(self, to: Destination, document_id: str) -> None:
        self._to, self._document_id = to, document_id
        self.release, self.answered = threading.Event(), threading.Semaphore(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._to, name)

    def apply(self, operations: Any) -> list[Outcome]:
        if any(operation.target == SECOND and operation.document_id == self._document_id for operation in operations):
            assert self.release.wait(LIMIT_S)
        outcomes = self._to.apply(operations)
        self.answered.release()
        return outcomes
