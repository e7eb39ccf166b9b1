"""What every destination makes of partial updates that say what the document is where there is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from outbox.destinations.base import Destination, Outcome
from outbox.destinations.merge import Upsert
from tests.conformance.index import APPLIED, CONFLICT, REJECTED, Index

NEW = {"n": 1, "new": True}


def test_upsert_is_the_document_where_there_is_none_and_the_changes_are_merged_where_there_is_one(index: Index) -> None:
    index.apply(index.put("held", 1, {"n": 7, "m": 7}), index.put("deleted", 1, {"n": 7}), index.delete("deleted", 2))
    for document_id in ("held", "deleted", "missing"):
        assert index.one(index.upsert(document_id, 5, (5, {"n": 2}, NEW))) == Outcome(APPLIED)
    assert index.holds("held", "deleted", "missing") == {
        "held": (5, {"n": 2, "m": 7}),
        "deleted": (5, NEW),
        "missing": (5, NEW),
    }


def test_changes_after_an_upsert_are_merged_into_what_it_made(index: Index) -> None:
    steps: list[tuple[int, Any, Any]] = [(5, {"n": 2}, NEW), (6, {"m": 3}, None), (7, {"m": 4}, {"other": 1})]
    index.one(index.put("held", 1, {"o": 1}))
    for document_id in ("held", "missing"):
        assert index.one(index.upsert(document_id, 7, *steps)) == Outcome(APPLIED)
    assert index.holds("held", "missing") == {"held": (7, {"o": 1, "n": 2, "m": 4}), "missing": (7, {**NEW, "m": 4})}


def test_document_that_an_upsert_made_is_not_changed_by_its_own_row_again(index: Index) -> None:
    """As after a crash: its row comes a second time, now together with the next one."""
    index.one(index.upsert("d1", 5, (5, {"n": 2}, NEW)))
    again = index.one(index.upsert("d1", 5, (5, {"n": 2}, NEW)))
    assert (again.kind, again.version) == (CONFLICT, 5)
    assert index.one(index.upsert("d1", 6, (5, {"n": 2}, NEW), (6, {"m": 3}, None))) == Outcome(APPLIED)
    assert index.holds("d1") == {"d1": (6, {**NEW, "m": 3})}
    assert index.one(index.upsert("d1", 8, (7, {"n": 4}, NEW), (8, {"n": 5}, NEW))) == Outcome(APPLIED)
    assert index.holds("d1") == {"d1": (8, {**NEW, "m": 3, "n": 5})}


def test_update_before_an_upsert_misses_the_document(index: Index) -> None:
    outcome = index.one(index.upsert("d1", 6, (5, {"m": 3}, None), (6, {"n": 2}, NEW)))
    assert (outcome.kind, outcome.error_type) == (REJECTED, "document_missing")
    assert index.holds("d1") == {}


def test_upsert_is_older_than_a_later_delete(index: Index) -> None:
    index.apply(index.put("d1", 1, {"n": 7}), index.delete("d1", 9))
    outcome = index.one(index.upsert("d1", 5, (5, {"n": 2}, NEW)))
    assert (outcome.kind, outcome.version) == (CONFLICT, 9)
    assert index.holds("d1") == {}


@pytest.mark.parametrize("upsert", [b"", b"[1]", b"null", b'{"n":NaN}', b'{"a":"\\ud800"}', b"{} {}"])
def test_upsert_that_is_no_object_is_rejected(index: Index, upsert: bytes) -> None:
    operation = replace(index.patch("d1", 5, {"n": 1}), upserts=(Upsert(0, upsert, 5),))
    outcome = index.one(operation)
    assert (outcome.kind, outcome.error_type) == (REJECTED, "illegal_document")


def test_upsert_keeps_every_digit(destination: Destination, name: str) -> None:
    destination.ensure_index(name, {"dynamic": False})
    index = Index(destination, name)
    document = b'{"exact":12345678901234567890,"price":1.10}'
    index.one(replace(index.patch("d1", 5, {"n": 1}), upserts=(Upsert(0, document, 5),)))
    assert index.destination.read_texts(index.target, ["d1"]) == {"d1": document}
