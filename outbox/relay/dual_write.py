"""An index that is being rebuilt has two physical indexes, and what is sent to the live one goes to the other too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from outbox.destinations.base import Destination, Operation, Outcome, OutcomeKind, apply_halved
from outbox.errors import DestinationError

_SETTLED = frozenset({OutcomeKind.APPLIED, OutcomeKind.CONFLICT, OutcomeKind.REJECTED, OutcomeKind.FAILED})
_TOOK = frozenset({OutcomeKind.APPLIED, OutcomeKind.CONFLICT})
_AGAIN = frozenset({OutcomeKind.UNAVAILABLE, OutcomeKind.OVERLOADED})


class Refusal(NamedTuple):
    """What another physical index did not take, although the live one took it. `at`: position of its operation."""

    at: int
    target: str
    outcome: Outcome


def apply(
    destination: Destination, operations: Sequence[Operation], dual_writes: Mapping[str, Sequence[str]]
) -> tuple[list[Outcome], list[Refusal]]:
    """Carry out the operations in the live index, then in the others. `dual_writes`: the others by index name.

    The outcome of an operation is that of the live index. Only where another one could not be asked, or has no time, it
    is that: the row comes again then, and the live index knows it already.
    """
    if not dual_writes:
        return destination.apply(operations), []
    # The readers' name moves on while relays still hold claims from before: no matter where it leads, a claim's
    # physical index gets its rows.
    outcomes = destination.apply(
        [
            replace(operation, index=operation.target) if operation.index in dual_writes else operation
            for operation in operations
        ]
    )
    second = [
        (at, replace(operation, index=target, target=target))
        for at, operation in enumerate(operations)
        # Patches that the live index did not take would bring the others their version without what they say.
        if outcomes[at].kind in (_TOOK if operation.patches else _SETTLED)
        for target in dual_writes.get(operation.index, ())
    ]
    refusals: list[Refusal] = []
    sendable = _merged(destination, operations, outcomes, second)
    for target in sorted({operation.target for _, operation in sendable}):  # each as large as the live one's
        of_target = [each for each in sendable if each[1].target == target]
        second_outcomes = apply_halved(destination, [operation for _, operation in of_target])
        for (at, _), outcome in zip(of_target, second_outcomes, strict=True):
            if outcome.kind in _AGAIN:
                outcomes[at] = outcome
            elif outcome.kind not in _TOOK and outcomes[at].kind in _TOOK:
                refusals.append(Refusal(at, target, outcome))
    return outcomes, refusals


def _merged(
    destination: Destination,
    operations: Sequence[Operation],
    outcomes: list[Outcome],
    second: list[tuple[int, Operation]],
) -> list[tuple[int, Operation]]:
    """Instead of patches, the document that came of them in the live index: the others may not have it yet."""
    patched = sorted({at for at, operation in second if operation.patches})
    if not patched:
        return second
    found: dict[tuple[str, str], bytes] = {}
    try:
        for target in {operations[at].target for at in patched}:
            ids = [operations[at].document_id for at in patched if operations[at].target == target]
            for document_id, document in destination.read_texts(target, ids).items():
                found[target, document_id] = document
    except DestinationError as error:
        for at in patched:
            outcomes[at] = Outcome(OutcomeKind.UNAVAILABLE, "unavailable", str(error))
        return [each for each in second if each[0] not in patched]
    return [
        (
            at,
            replace(
                operation, document=found.get((operations[at].target, operation.document_id)), patches=(), upserts=()
            ),
        )
        if operation.patches
        else (at, operation)
        for at, operation in second
    ]
