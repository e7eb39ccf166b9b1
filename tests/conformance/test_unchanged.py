"""What every destination promises of `Operation.unless_held`: nothing is written where nothing would change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from outbox.destinations.base import Destination, Operation, Outcome, OutcomeKind
from outbox.destinations.embedded.destination import EmbeddedDestination
from tests.conformance.index import APPLIED, CONFLICT, REJECTED, Index, kinds

UNCHANGED = OutcomeKind.UNCHANGED
DOCUMENT = {"name": "Ada", "tags": ["a", "b"], "at": {"n": 1, "m": None}}


def unless(operation: Operation, held: int) -> Operation:
    return replace(operation, unless_held=held)


def test_document_that_is_held_is_not_written_and_every_other_one_is(index: Index) -> None:
    index.apply(*(index.put(each, 5, DOCUMENT) for each in ("same", "sorted", "other", "deleted")))
    index.one(index.delete("deleted", 6))
    outcomes = index.apply(
        unless(index.put("same", 9, DOCUMENT), 5),
        unless(index.put("sorted", 9, dict(reversed(DOCUMENT.items()))), 5),  # the order of keys says nothing
        unless(index.put("other", 9, {**DOCUMENT, "tags": ["b", "a"]}), 5),
        unless(index.put("deleted", 9, DOCUMENT), 5),
        unless(index.put("missing", 9, DOCUMENT), 5),
        index.put("always", 9, DOCUMENT),
    )
    assert kinds(outcomes) == [UNCHANGED, UNCHANGED, *[APPLIED] * 4]
    held = index.holds("same", "sorted", "other", "deleted", "missing", "always")
    assert {each: version for each, (version, _) in held.items()} == {
        **dict.fromkeys(("same", "sorted"), 5),
        **dict.fromkeys(("other", "deleted", "missing", "always"), 9),
    }


def test_version_decides_first(index: Index) -> None:
    """Below the one that is asked for, something else may be on its way; what is not older is in conflict."""
    index.one(index.put("c1", 5, DOCUMENT))
    for version in (4, 5):
        outcome = index.one(unless(index.put("c1", version, DOCUMENT), 1))
        assert (outcome.kind, outcome.version) == (CONFLICT, 5)
    assert index.one(unless(index.put("c1", 9, DOCUMENT), 6)) == Outcome(APPLIED)
    assert index.one(unless(index.put("c1", 10, DOCUMENT), 9)) == Outcome(UNCHANGED)
    assert index.holds("c1") == {"c1": (9, DOCUMENT)}


def test_it_is_compared_to_the_last_digit_and_by_type(destination: Destination, name: str) -> None:
    destination.ensure_index(name, {"dynamic": False})
    index = Index(destination, name)
    first = b'{"n":0.1,"long":12345678901234567890,"none":null,"one":1}'
    others = [
        first.replace(b"0.1", b"0.10000000000000000001"),
        first.replace(b"67890", b"67891"),
        first.replace(b'"none":null,', b""),
        first.replace(b'"one":1', b'"one":true'),
        first.replace(b'"one":1', b'"one":1.0'),
        first.replace(b'"one":1', b'"one":"1"'),
        first.replace(b'"one":1', b'"one":[1]'),
    ]
    for at, other in enumerate(others):
        index.one(index.operation(f"d{at}", 1, first))
        assert index.one(unless(index.operation(f"d{at}", 2, other), 1)) == Outcome(APPLIED)
        assert destination.read_texts(index.target, [f"d{at}"]) == {f"d{at}": other}
        assert index.one(unless(index.operation(f"d{at}", 3, other), 1)) == Outcome(UNCHANGED)


def test_it_removes_nothing_and_a_later_version_is_as_welcome_as_before(index: Index) -> None:
    """On a cluster it takes a delete whose condition cannot be met."""
    index.one(index.put("c1", 5, DOCUMENT))
    assert index.one(unless(index.put("c1", 9, DOCUMENT), 5)) == Outcome(UNCHANGED)
    assert index.holds("c1") == {"c1": (5, DOCUMENT)}
    assert index.one(index.put("c1", 6, {"n": 1})) == Outcome(APPLIED)


def test_many_documents_of_several_indexes_and_strange_ids(destination: Destination, name: str) -> None:
    indexes = [Index(destination, each) for each in (name, f"{name}-b")]
    for each in indexes:
        destination.ensure_index(each.name)
    ids = [*map(str, range(70)), 'current document has seqNo [1] and primary term [1]"', "ü/?#%\n", "a" * 512]
    writes = [each.put(document_id, 5, {"n": at}) for each in indexes for at, document_id in enumerate(ids)]
    assert set(kinds(destination.apply(writes))) == {APPLIED}
    again = [unless(replace(each, version=7), 5) for each in writes]
    again[3] = unless(replace(writes[3], version=7, document=b'{"n":-1}'), 5)
    outcomes = kinds(destination.apply(again))
    assert outcomes[3] == APPLIED
    assert set(outcomes[:3] + outcomes[4:]) == {UNCHANGED}


def test_index_that_is_missing_is_no_index_that_holds_it(destination: Destination, name: str) -> None:
    index = Index(destination, name)
    assert index.one(unless(index.put("c1", 9, DOCUMENT), 1)).kind is OutcomeKind.BLOCKED


def test_document_that_is_refused_is_refused(typed: Index) -> None:
    typed.one(typed.put("c1", 5, {"age": 1}))
    assert typed.one(unless(typed.put("c1", 9, {"age": "no number"}), 5)).kind is REJECTED


@pytest.mark.parametrize(
    "mappings",
    [
        {"_source": {"excludes": ["body"]}},
        {"_source": {"includes": ["title"]}},
        {"_source": {"enabled": False}},
    ],
    ids=["excludes", "includes", "none"],
)
def test_document_that_does_not_come_back_whole_is_written(
    destination: Destination, name: str, mappings: dict[str, Any]
) -> None:
    if isinstance(destination, EmbeddedDestination):
        pytest.skip("gives back every document as it was sent")
    destination.ensure_index(name, mappings)
    index = Index(destination, name)
    assert destination.kept(index.target).uncertain
    index.one(index.put("d1", 1, {"title": "a"}))
    assert index.one(unless(index.put("d1", 2, {"title": "a"}), 1)) == Outcome(APPLIED)


def test_vector_that_comes_back_less_exactly_is_written(destination: Destination, name: str) -> None:
    if destination.health().product == "opensearch":
        pytest.skip("its fields for vectors come with a plugin")
    mappings = {"properties": {"v": {"type": "dense_vector", "dims": 2}}}
    destination.ensure_index(name, mappings)
    index = Index(destination, name)
    index.one(index.put("d1", 1, {"v": [0.1, 0.30000000000000004]}))
    index.one(unless(index.put("d1", 2, {"v": [0.1, 0.3]}), 1))
    assert index.holds("d1")["d1"][0] == 2
