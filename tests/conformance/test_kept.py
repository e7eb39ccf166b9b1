"""What comes back of a document, and what a partial update makes of it: as it was sent, on every destination."""

from __future__ import annotations

from typing import Any

import pytest

from outbox.destinations.base import SOURCE_MISSING, Destination, OutcomeKind
from outbox.destinations.embedded.destination import EmbeddedDestination
from tests.conformance.index import APPLIED, Index

DIGITS = b'{"n":1,"price":1.10,"long":12345678901234567890.123456789,"e":1E2,"large":123456789012345678901234567890}'


def index_with(destination: Destination, name: str, mappings: dict[str, Any]) -> Index:
    destination.ensure_index(name, mappings)
    return Index(destination, name)


def test_numbers_keep_their_digits_through_a_partial_update(destination: Destination, name: str) -> None:
    index = index_with(destination, name, {"dynamic": False})
    assert index.one(index.operation("d1", 1, DIGITS)).kind is APPLIED
    assert destination.read_texts(index.target, ["d1", "none"]) == {"d1": DIGITS}
    assert index.one(index.operation("d1", 2, None, b'{"n":2.50}')).kind is APPLIED
    assert destination.read_texts(index.target, ["d1"]) == {"d1": DIGITS.replace(b'"n":1', b'"n":2.50')}


VECTORS = {
    "properties": {
        "v": {"type": "dense_vector", "dims": 3},
        "weights": {"type": "sparse_vector"},
        "parts": {"type": "nested", "properties": {"v": {"type": "dense_vector", "dims": 2}}},
    }
}


def test_partial_update_of_another_field_leaves_vectors_and_all_of_them_come_back(
    destination: Destination, name: str
) -> None:
    if destination.health().product == "opensearch":
        pytest.skip("its fields for vectors come with a plugin")
    index = index_with(destination, name, VECTORS)
    parts = [{"v": [0.1, 0.2], "k": 1}, {"k": 2}]
    sent = {"t": "a", "v": [0.1, 0.30000000000000004, 0.7], "weights": {"a": 0.123456, "b": 3.7777}, "parts": parts}
    assert index.one(index.put("d1", 1, sent)).kind is APPLIED
    for version, title in ((2, "b"), (3, "c")):
        assert index.one(index.patch("d1", version, {"t": title})).kind is APPLIED
    kept, (stored,) = destination.kept(index.target), destination.read(index.target, ["d1"]).values()
    expected, held = kept.comparable({**sent, "t": "c"}, stored.source)
    assert expected == held
    assert kept.compared_without is None
    wrong, held = kept.comparable({**sent, "t": "c", "v": [0.1, 0.4, 0.7]}, stored.source)
    assert wrong != held


@pytest.mark.parametrize(
    "source",
    [{"excludes": ["body"]}, {"includes": ["title"]}, {"enabled": False}],
    ids=["excludes", "includes", "none"],
)
def test_partial_update_never_loses_what_the_index_does_not_give_back(
    destination: Destination, name: str, source: dict[str, Any]
) -> None:
    index = index_with(destination, name, {"_source": source})
    sent = {"title": "a", "body": "long text"}
    index.one(index.put("d1", 1, sent))
    outcome = index.one(index.patch("d1", 2, {"title": "b"}))
    (stored,) = destination.read(index.target, ["d1"]).values()
    kept = destination.kept(index.target)
    if isinstance(destination, EmbeddedDestination):
        assert (outcome.kind, stored.source, kept.lost) == (APPLIED, {**sent, "title": "b"}, None)
        return
    assert (outcome.kind, outcome.error_type) == (OutcomeKind.REJECTED, SOURCE_MISSING)
    assert stored.version == 1
    expected, held = kept.comparable(sent, stored.source)
    assert expected == held
    assert index.one(index.put("d1", 3, {"title": "b", "body": "long text"})).kind is APPLIED


def test_copied_field_comes_back_as_it_was_sent(destination: Destination, name: str) -> None:
    copied = {"properties": {"a": {"type": "keyword", "copy_to": "all"}, "all": {"type": "text"}}}
    index = index_with(destination, name, copied)
    index.one(index.put("d1", 1, {"a": "x", "b": 1}))
    index.one(index.patch("d1", 2, {"b": 2}))
    assert index.holds("d1") == {"d1": (2, {"a": "x", "b": 2})}
    assert destination.kept(index.target).compared_without is None
