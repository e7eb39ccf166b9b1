"""Which field of a document a refusal is about, as its reason says: the document's own words are never taken for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from outbox.destinations.faults import LONGEST_FIELD, named_field
from outbox.store import failures
from outbox.store.models import now_ms
from tests.support.outbox import Outbox
from tests.support.places import EmbeddedPlace


@pytest.mark.parametrize(
    ("reason", "field"),
    [
        ("[1:8] failed to parse field [age] of type [long] in document with id 'c1'. Preview of field's …", "age"),
        ("failed to parse field [address.zip] of type [long] in document with id '1'", "address.zip"),
        ("[1:-1] object mapping for [address] tried to parse field [null] as object, but found a value", "address"),
        ("[1:9] mapping set to strict, dynamic introduction of [zip] within [address] is not allowed", "address.zip"),
        ("mapping set to strict, dynamic introduction of [name] within [_doc] is not allowed", "name"),
        ('Document contains at least one immense term in field="notes" (whose UTF8 encoding is longer …', "notes"),
        ("mapper [age] cannot be changed from type [long] to [text]", "age"),
        ("The [dense_vector] field [v] in doc [document with id '1'] has a different number of dimensions", "v"),
        ("[1:8] failed to parse: The [dense_vector] field [v] in doc [x] has a different number of dimensions", "v"),
    ],
)  # fmt: skip
def test_field_is_the_one_that_the_reason_names(reason: str, field: str) -> None:
    assert named_field(reason) == field


@pytest.mark.parametrize(
    "reason",
    [
        None,
        "",
        "no reason given",
        "Limit of total fields [1000] has been exceeded while adding new fields [1]",
        "to_document failed: failed to parse field [age] of the caller",
        "in document 'failed to parse field [age]'",
        f"failed to parse field [{'x' * (LONGEST_FIELD + 1)}] of type [long]",
    ],
)
def test_no_field_is_named_by_what_only_quotes_one(reason: str | None) -> None:
    assert named_field(reason) is None


def test_relay_notes_the_field_of_each_attempt_that_failed(outbox: Outbox, tmp_path: Path) -> None:
    place = EmbeddedPlace(tmp_path / "search.db")
    place.destination.ensure_index("contacts", {"properties": {"age": {"type": "long"}}})
    bad, good = outbox.index("contacts", "c1", {"age": "old"}), outbox.index("contacts", "c2", {"age": 36})
    outbox.drain(place.destination, before := now_ms())
    assert (outbox.state(bad), outbox.state(good), outbox.row(bad)["error_field"]) == ("dead", "done", "age")
    (noted,) = failures.of_row(outbox.store(), bad)
    assert noted["failed_at"] >= before
    assert (noted["attempt"], noted["relay"], noted["state"], noted["error_field"]) == (1, 1, "dead", "age")
    assert noted["error"] == outbox.row(bad)["error"]
    assert failures.of_row(outbox.store(), good) == []
    place.destination.close()
