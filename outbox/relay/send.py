"""Calls of the destination, in threads of their own. No database here: it belongs to the thread of the loop."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from loguru import logger

from outbox.destinations.base import Destination, Outcome, OutcomeKind, ensured
from outbox.entities.registry import EntityRegistry
from outbox.errors import DestinationError
from outbox.relay import dual_write
from outbox.relay.requests import Answer, Request


def send(destination: Destination, registry: EntityRegistry | None, request: Request) -> Answer:
    """Carry out a request. Raises nothing for a destination that is away: that is an outcome."""
    if request.unknown_indexes:
        return _look_up(destination, registry, request)
    began = time.monotonic()
    operations = [fold.operation for fold in request.folds if fold.known is None]
    applied, refusals = dual_write.apply(destination, operations, request.claim.dual_writes) if operations else ((), ())
    took_ms = int((time.monotonic() - began) * 1000)
    answered = iter(applied)
    outcomes = [fold.known or next(answered) for fold in request.folds]
    alone = request.claim.lone and outcomes[0].kind is OutcomeKind.UNAVAILABLE
    failed_alone = alone and _answers_for_its_document(destination, request)
    return Answer(request, outcomes, failed_alone=failed_alone, refusals=refusals, took_ms=took_ms)


def _look_up(destination: Destination, registry: EntityRegistry | None, request: Request) -> Answer:
    """Where indexes are that no row was sent to so far; they are created if need be."""
    targets: dict[str, tuple[str, bool]] = {}
    refused: dict[str, str] = {}
    for name in request.unknown_indexes:
        try:
            options = registry.index_options(name) if registry else None
            targets[name] = ensured(destination, name, *(options or ()))
        except DestinationError as error:
            refused[name] = str(error)
            if why := destination.ping():  # asking for each index would cost as many timeouts
                refused |= dict.fromkeys(set(request.unknown_indexes) - targets.keys(), why)
                away = Outcome(OutcomeKind.UNAVAILABLE, "unavailable", why)
                return Answer(request, [away], targets, refused)
    return Answer(request, (), targets, refused)


def _answers_for_its_document(destination: Destination, request: Request) -> bool:
    """Whether a harmless operation on the document of a lone row gets an answer."""
    # A delete that is older than anything: it leaves what is there as it is.
    harmless = replace(request.folds[0].operation, version=0, document=None, patches=(), upserts=())
    (outcome,) = destination.apply([harmless])
    return outcome.kind in (OutcomeKind.APPLIED, OutcomeKind.CONFLICT)


class Workers:
    """Threads that send requests and hand in the answers. Daemons: a hanging request delays no exit."""

    def __init__(self, number: int, send: Callable[[Request], Answer], answered: Callable[[Answer], None]) -> None:
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._send, self._answered, self._number = send, answered, number
        for position in range(number):
            threading.Thread(target=self._work, name=f"outbox-send-{position}", daemon=True).start()

    def submit(self, request: Request) -> None:
        self._requests.put(request)

    def stop(self) -> None:
        """Let each thread end after the request that it sends."""
        for _ in range(self._number):
            self._requests.put(None)

    def _work(self) -> None:
        while request := self._requests.get():
            try:
                answer = self._send(request)
            except Exception as error:
                logger.opt(exception=True).error("unexpected failure of a request; its rows wait")
                lost = Outcome(OutcomeKind.UNAVAILABLE, type(error).__name__, str(error))
                answer = Answer(
                    request,
                    [lost] * max(1, len(request.folds)),  # one speaks for all unknown indexes
                    refused=dict.fromkeys(request.unknown_indexes, str(error)),
                )
            self._answered(answer)
