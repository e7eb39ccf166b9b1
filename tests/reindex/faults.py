"""What goes wrong, or comes between, beneath a reindex."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from outbox.destinations.base import Destination, Outcome, OutcomeKind
from outbox.entities import loader
from tests.reindex.world import SECOND
from tests.support import LIMIT_S


@contextmanager
def after_reading(then: Callable[[], None]) -> Iterator[None]:
    """Something that happens after the first page was read and before it is written."""
    left, page = [then], loader.page

    def slow(*arguments: Any) -> Any:
        found = page(*arguments)
        if left:
            left.pop()()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "page", slow)
        yield


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
