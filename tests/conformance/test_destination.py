"""What every destination promises (`outbox.destinations.base`), told to each of them through the contract alone."""

from __future__ import annotations

import json
import multiprocessing
import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from outbox.destinations.base import FOREVER, Destination, Listed, Operation, Outcome, OutcomeKind
from outbox.errors import DestinationError, IndexMissing
from tests.conformance.conftest import Opener
from tests.support import LIMIT_S

APPLIED, CONFLICT, REJECTED = OutcomeKind.APPLIED, OutcomeKind.CONFLICT, OutcomeKind.REJECTED


class Index:
    """One index of a destination, and short words for what a relay would send to it."""

    def __init__(self, destination: Destination, name: str) -> None:
        self.destination, self.name, self.target = destination, name, f"{name}-000001"

    def operation(self, document_id: str, version: int, document: bytes | None, *patches: bytes) -> Operation:
        return Operation(self.name, self.target, document_id, version, document, patches)

    def put(self, document_id: str, version: int, document: Any) -> Operation:
        return self.operation(document_id, version, json.dumps(document).encode())

    def patch(self, document_id: str, version: int, *changes: Any) -> Operation:
        return self.operation(document_id, version, None, *(json.dumps(change).encode() for change in changes))

    def delete(self, document_id: str, version: int) -> Operation:
        return self.operation(document_id, version, None)

    def apply(self, *operations: Operation) -> list[Outcome]:
        return self.destination.apply(operations)

    def one(self, operation: Operation) -> Outcome:
        (outcome,) = self.destination.apply([operation])
        return outcome

    def holds(self, *document_ids: str) -> dict[str, tuple[int, Any]]:
        """Version and source, by id."""
        found = self.destination.read(self.target, document_ids)
        return {each: (stored.version, stored.source) for each, stored in found.items()}

    def found(self, query: str, **options: Any) -> list[str]:
        return [hit.document_id for hit in self.destination.search(self.name, query, **options)]


@pytest.fixture
def index(destination: Destination, name: str) -> Index:
    destination.ensure_index(name)
    return Index(destination, name)


def kinds(outcomes: Iterable[Outcome]) -> list[OutcomeKind]:
    return [outcome.kind for outcome in outcomes]


# -- the version rule -----------------------------------------------------------------------------------------------


def test_higher_version_replaces_and_no_other_does(index: Index) -> None:
    assert index.one(index.put("c1", 5, {"n": 5})) == Outcome(APPLIED)
    for version in (5, 4, 1):
        outcome = index.one(index.put("c1", version, {"n": version}))
        assert (outcome.kind, outcome.version) == (CONFLICT, 5)
    assert index.holds("c1") == {"c1": (5, {"n": 5})}
    assert index.one(index.put("c1", 6, {"m": 6})) == Outcome(APPLIED)
    assert index.holds("c1") == {"c1": (6, {"m": 6})}


def test_versions_of_an_outbox_are_kept_to_the_last_digit(index: Index) -> None:
    highest = 9_000_000 * 10**12 + 999_999_999_999
    assert index.one(index.put("c1", highest, {})) == Outcome(APPLIED)
    outcome = index.one(index.put("c1", highest - 1, {}))
    assert (outcome.kind, outcome.version) == (CONFLICT, highest)


def test_redelivery_of_a_batch_changes_nothing_and_reports_its_own_versions(index: Index) -> None:
    index.one(index.put("gone", 1, {}))
    batch = [
        index.put("c1", 2, {"n": 1}),
        index.delete("gone", 3),
        index.delete("never", 4),
        index.put("c2", 5, {"n": 2}),
    ]
    assert kinds(index.apply(*batch)) == [APPLIED] * 4
    again = index.apply(*batch)
    assert [(outcome.kind, outcome.version) for outcome in again] == [(CONFLICT, version) for version in (2, 3, 4, 5)]
    assert index.holds("c1", "c2", "gone", "never") == {"c1": (2, {"n": 1}), "c2": (5, {"n": 2})}


def test_delete_is_remembered_against_what_comes_late(index: Index) -> None:
    index.one(index.put("c1", 1, {"n": 1}))
    assert index.one(index.delete("c1", 3)) == Outcome(APPLIED)
    assert index.holds("c1") == {}
    late = index.one(index.put("c1", 2, {"n": 2}))
    assert (late.kind, late.version) == (CONFLICT, 3)
    assert index.holds("c1") == {}
    assert index.one(index.put("c1", 4, {"n": 4})) == Outcome(APPLIED)
    late = index.one(index.delete("c1", 3))
    assert (late.kind, late.version) == (CONFLICT, 4)
    assert index.holds("c1") == {"c1": (4, {"n": 4})}


def test_delete_of_what_was_never_there_is_applied_and_remembered(index: Index) -> None:
    assert index.one(index.delete("c1", 5)) == Outcome(APPLIED)
    late = index.one(index.put("c1", 4, {}))
    assert (late.kind, late.version) == (CONFLICT, 5)
    assert index.one(index.delete("c1", 6)) == Outcome(APPLIED)
    assert index.one(index.put("c1", 7, {})) == Outcome(APPLIED)


# -- partial updates ------------------------------------------------------------------------------------------------


def test_patches_are_merged_one_after_another_into_what_is_held(index: Index) -> None:
    index.one(index.put("c1", 1, {"name": "Ada", "address": {"city": "London", "zip": "W1"}, "tags": ["a", "b"]}))
    changes = [{"address": {"zip": None, "street": "x"}}, {"tags": ["c"], "a": 5}, {"a": {"y": 2}}]
    assert index.one(index.patch("c1", 2, *changes)) == Outcome(APPLIED)
    merged = {
        "name": "Ada",
        "address": {"city": "London", "zip": None, "street": "x"},
        "tags": ["c"],
        "a": {"y": 2},
    }
    assert index.holds("c1") == {"c1": (2, merged)}


def test_patch_of_a_missing_or_deleted_document_is_rejected(index: Index) -> None:
    index.apply(index.put("deleted", 1, {}), index.delete("never", 1))
    index.one(index.delete("deleted", 2))
    outcomes = index.apply(index.patch("missing", 9, {"a": 1}), index.patch("deleted", 9, {}), index.patch("never", 9))
    # Without a patch it is a delete.
    assert [(outcome.kind, outcome.error_type) for outcome in outcomes] == [
        (REJECTED, "document_missing"), (REJECTED, "document_missing"), (APPLIED, None)
    ]  # fmt: skip
    assert index.holds("missing", "deleted", "never") == {}


def test_patch_that_is_not_newer_is_a_conflict(index: Index) -> None:
    index.one(index.put("c1", 5, {"n": 5}))
    for version in (5, 4):
        outcome = index.one(index.patch("c1", version, {"n": 1, "m": 1}))
        assert (outcome.kind, outcome.version) == (CONFLICT, 5)
    assert index.holds("c1") == {"c1": (5, {"n": 5})}


def test_numbers_survive_a_patch_of_their_neighbour(index: Index) -> None:
    document = {"big": 2**63 - 1, "small": -(2**63), "half": 0.5, "tenth": 0.1, "whole": 1.0, "exact": 1e-7}
    index.one(index.put("c1", 1, document))
    index.one(index.patch("c1", 2, {"more": 1}))
    assert index.holds("c1") == {"c1": (2, {**document, "more": 1})}


def test_patch_and_full_document_of_others_go_together(index: Index) -> None:
    index.apply(index.put("c1", 1, {"a": 1}), index.put("c2", 2, {"a": 2}))
    batch = [
        index.patch("c1", 3, {"b": 1}),
        index.put("c3", 4, {"a": 3}),
        index.patch("missing", 5, {}),
        index.delete("c2", 6),
    ]
    assert kinds(index.apply(*batch)) == [APPLIED, APPLIED, REJECTED, APPLIED]
    assert index.holds("c1", "c2", "c3", "missing") == {"c1": (3, {"a": 1, "b": 1}), "c3": (4, {"a": 3})}


# -- rejected: the document's fault ---------------------------------------------------------------------------------

MAPPINGS = {
    "properties": {
        "age": {"type": "long"},
        "born": {"type": "date"},
        "tenantId": {"type": "keyword"},
        "address": {"properties": {"zip": {"type": "integer"}}},
    }
}


@pytest.fixture
def typed(destination: Destination, name: str) -> Index:
    destination.ensure_index(name, MAPPINGS)
    return Index(destination, name)


def test_bad_documents_among_good_ones_are_rejected_by_position(typed: Index) -> None:
    batch = [
        typed.put("good-1", 1, {"age": 36}),
        typed.put("bad-1", 2, {"age": "thirty-six"}),
        typed.put("good-2", 3, {"age": "36", "address": {"zip": None}}),
        typed.put("bad-2", 4, {"address": {"zip": [1, "W1"]}}),
        typed.delete("good-3", 5),
        typed.put("bad-3", 6, {"born": "yesterday"}),
        typed.put("good-4", 7, {"born": "1815-12-10"}),
    ]
    outcomes = typed.apply(*batch)
    assert kinds(outcomes) == [APPLIED, REJECTED, APPLIED, REJECTED, APPLIED, REJECTED, APPLIED]
    assert {outcome.error_type for outcome in outcomes if outcome.kind is REJECTED} == {"document_parsing_exception"}
    assert [field in str(outcomes[at].error) for at, field in ((1, "age"), (3, "zip"), (5, "born"))] == [True] * 3
    assert set(typed.holds(*(operation.document_id for operation in batch))) == {"good-1", "good-2", "good-4"}


def test_patch_that_spoils_the_document_is_rejected_and_leaves_it_as_it_was(typed: Index) -> None:
    typed.one(typed.put("c1", 1, {"age": 36}))
    assert typed.one(typed.patch("c1", 2, {"age": "old"})).error_type == "document_parsing_exception"
    assert typed.holds("c1") == {"c1": (1, {"age": 36})}
    assert typed.one(typed.patch("c1", 2, {"age": 37})) == Outcome(APPLIED)


def test_rejected_document_leaves_no_version_behind(typed: Index) -> None:
    assert typed.one(typed.put("c1", 9, {"age": "old"})).kind is REJECTED
    assert typed.one(typed.put("c1", 2, {"age": 36})) == Outcome(APPLIED)


def test_field_that_a_strict_mapping_does_not_know_is_rejected(destination: Destination, name: str) -> None:
    destination.ensure_index(name, {"dynamic": "strict", "properties": {"age": {"type": "long"}}})
    index = Index(destination, name)
    outcome = index.one(index.put("c1", 1, {"age": 1, "name": "Ada"}))
    assert (outcome.kind, outcome.error_type) == (REJECTED, "strict_dynamic_mapping_exception")
    assert "name" in str(outcome.error)


TAKEN: dict[str, list[str]] = {
    "long": ['1', '-1', '1.7', '1e3', '"12"', '"12.7"', '"1e3"', '""', 'null', '[]', '[[1]]', '"+5"', '".5"',
             '9223372036854775807', '1700000000000.5'],
    "integer": ['2147483647', '" 12 "', '"1f"', '3.99', '"NaN"'],
    "short": ['-32768', '"20"'],
    "byte": ['127', '"-128"'],
    "double": ['1e308', '"1e308"', '" 12 "', '1', '""', '18446744073709551615'],
    "float": ['3.4e38', '"1.5"', '0'],
    "boolean": ['true', '"false"', '""', '[true, null]'],
    "date": ['"2024"', '"2024-02-29"', '"2024-01-02T03"', '"2024-01-02T03:04:05Z"', '"2024-01-02T03:04:05.123456789Z"',
             '"2024-01-02T03:04:05,5+0100"', '1700000000000',
             '"1700000000000"', '-5', '1700000000000.5', '["2024", 5]'],
    "keyword": ['"x"', '1', 'true', '[1, "x"]', '1.5'],
    "text": ['"x"', '1', 'true', '[1, "x"]'],
    "object": ['{}', '{"a": 1}', '[{"a": 1}, {}]', 'null'],
}  # fmt: skip

REFUSED: dict[str, list[str]] = {
    "long": ['"x"', '" 12 "', '"1f"', 'true', '"true"', '{}', '[1, "x"]', '1e30', '9223372036854775808', '"NaN"',
             '" "'],
    "integer": ['2147483648', '"3000000000"', '"Infinity"', 'false', '"1_000"', '[[[{}]]]'],
    "short": ['32768', '"x"'],
    "byte": ['128', '-129', '"200"'],
    "double": ['"x"', 'true', '{}', '"NaN"', '"Infinity"', '"0x10"', '"."'],
    "float": ['3.5e38', '"3.5e38"', '[1, "x"]'],
    "boolean": ['1', '0', '"True"', '"yes"', '{}', '[true, 1]'],
    "date": ['"yesterday"', '""', 'true', '{}', '"2024-1-2"', '"2023-02-29"', '"2024-13-01"', '"2024-01-02 03:04:05"',
             '"2024-01-02T24:00:00"', '"2024-01-02T03:04:60Z"', '"2024-W01"', '1e30', '"+5"', '"10000-01-01"'],
    "keyword": ['{}', '{"a": 1}', '[{"a": 1}]'],
    "text": ['{}', '{"a": 1}'],
    "object": ['1', '"x"', 'true', '[1]', '""'],
}  # fmt: skip


def test_fields_take_what_elasticsearch_takes_and_nothing_else(destination: Destination, name: str) -> None:
    destination.ensure_index(name, {"properties": {kind: {"type": kind} for kind in TAKEN}})
    index = Index(destination, name)
    for values, kind_of_outcome in ((TAKEN, APPLIED), (REFUSED, REJECTED)):
        contents = [f'{{"{kind}":{value}}}' for kind in values for value in values[kind]]
        outcomes = index.apply(*(index.operation(text, 1, text.encode()) for text in contents))
        wrong = [text for text, outcome in zip(contents, outcomes, strict=True) if outcome.kind is not kind_of_outcome]
        assert wrong == []


def test_fields_written_with_dots_are_the_same_fields(typed: Index) -> None:
    assert kinds(typed.apply(typed.put("c1", 1, {"address.zip": "x"}), typed.put("c2", 2, {"address.zip": 5}))) == [
        REJECTED, APPLIED
    ]  # fmt: skip


def test_malformed_values_that_the_mapping_ignores_are_taken(destination: Destination, name: str) -> None:
    lenient = {
        "age": {"type": "long", "ignore_malformed": True},
        "raw": {"type": "object", "enabled": False, "properties": {"n": {"type": "long"}}},
    }
    destination.ensure_index(name, {"properties": lenient})
    index = Index(destination, name)
    documents = [{"age": "old"}, {"raw": 5}, {"raw": {"n": "x"}}]
    assert kinds(index.apply(*(index.put(str(each), 1, each) for each in documents))) == [APPLIED] * 3


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"[1]", id="array"),
        pytest.param(b'"text"', id="text"),
        pytest.param(b"null", id="null"),
        pytest.param(b'{"n":', id="cut"),
        pytest.param(b'{"n":1}}', id="one-brace-more"),
        pytest.param(b'{"n":1} {"n":2}', id="two-documents"),
        pytest.param(b"{n:1}", id="no-quotes"),
        pytest.param(b'{"n":NaN}', id="nan"),
        pytest.param(b'{"n":"\xff"}', id="no-utf8"),
        pytest.param(b'{"a":1,\n"b":2}', id="line-break"),
        pytest.param(b'{"a":1,\r"b":2}', id="carriage-return"),
        pytest.param(b'{"a":1}\n{"delete":{"_index":"TARGET","_id":"good"}}', id="forged-operation"),
    ],
)
def test_content_that_is_no_object_on_one_line_is_rejected_and_its_neighbours_are_applied(
    index: Index, content: bytes
) -> None:
    content = content.replace(b"TARGET", index.target.encode())
    outcomes = index.apply(index.put("good", 1, {"n": 1}), index.operation("bad", 2, content), index.put("too", 3, {}))
    assert kinds(outcomes) == [APPLIED, REJECTED, APPLIED]
    assert set(index.holds("good", "bad", "too")) == {"good", "too"}
    if b"\n" in content or not content.startswith(b"{"):
        assert outcomes[1].error_type == "illegal_document"


@pytest.mark.parametrize("patch", [b"", b"[1]", b"null", b'{"n":', b'{"n":NaN}', b'{"a":"\\ud800"}', b"{} {}"])
def test_patch_that_is_no_object_is_rejected(index: Index, patch: bytes) -> None:
    index.one(index.put("c1", 1, {"n": 1}))
    outcome = index.one(index.operation("c1", 2, None, b'{"m":1}', patch))
    assert (outcome.kind, outcome.error_type) == (REJECTED, "illegal_document")
    assert index.holds("c1") == {"c1": (1, {"n": 1})}


@pytest.mark.parametrize("document_id", ["", "x" * 513, "ü" * 257, "\ud800"])
def test_id_that_no_document_may_have_is_rejected_and_its_neighbours_are_applied(
    index: Index, document_id: str
) -> None:
    outcomes = index.apply(index.put("c1", 1, {}), index.put(document_id, 2, {}), index.delete(document_id, 3))
    assert [(outcome.kind, outcome.error_type) for outcome in outcomes] == [
        (APPLIED, None), (REJECTED, "illegal_argument_exception"), (REJECTED, "illegal_argument_exception")
    ]  # fmt: skip


def test_any_other_id_and_text_come_back_as_they_were(index: Index) -> None:
    ids = [
        "x" * 512,
        "ü" * 256,
        "a/b",
        "a b",
        "?#&=",
        "'\"\\",
        "_all",
        "..",
        "100%",
        "ne\u0301",
        "🙂",
        "\t",
        "C1",
        "c1",
    ]
    assert kinds(index.apply(*(index.put(each, at + 1, {"id": each}) for at, each in enumerate(ids)))) == [APPLIED] * 14
    assert index.holds(*ids) == {each: (at + 1, {"id": each}) for at, each in enumerate(ids)}
    text = 'line\nbreak \u2028 tab\t quote" back\\slash \x7f 🙂 <b>'
    document = {"text": text, 'a "quoted"\tkey': [text, ""], "nested": {text: text}}
    assert index.one(index.put("text", 99, document)) == Outcome(APPLIED)
    assert index.holds("text") == {"text": (99, document)}


# -- indexes --------------------------------------------------------------------------------------------------------


def test_missing_index_is_blocked_and_not_made_by_what_is_sent_to_it(index: Index, name: str) -> None:
    missing = Index(index.destination, f"{name}-missing")
    outcomes = index.apply(
        index.put("c1", 1, {}), missing.put("c1", 2, {}), missing.delete("c2", 3), index.put("c2", 4, {})
    )
    assert kinds(outcomes) == [APPLIED, OutcomeKind.BLOCKED, OutcomeKind.BLOCKED, APPLIED]
    assert {outcome.error_type for outcome in outcomes[1:3]} == {"index_not_found_exception"}
    assert missing.one(missing.patch("c1", 5, {"a": 1})).kind is OutcomeKind.BLOCKED
    facts = index.destination.inspect_index(missing.name, missing.target)
    assert (facts.exists, facts.readers) == (False, ())


def test_index_that_its_readers_do_not_reach_is_blocked(index: Index, name: str) -> None:
    stray = Operation(f"{name}-other", index.target, "c1", 1, b"{}")
    (outcome,) = index.destination.apply([stray])
    assert (outcome.kind, outcome.error_type) == (OutcomeKind.BLOCKED, "alias_not_found_exception")


def test_ensure_index_creates_once_and_uses_what_is_there(destination: Destination, name: str) -> None:
    assert (
        destination.ensure_index(name, {"dynamic": "strict", "properties": {"age": {"type": "long"}}})
        == f"{name}-000001"
    )
    assert destination.ensure_index(name) == f"{name}-000001"
    assert destination.ensure_index(name, {"properties": {"name": {"type": "text"}}}) == f"{name}-000001"
    index = Index(destination, name)
    assert index.one(index.put("c1", 1, {"name": "Ada"})).kind is REJECTED  # the first mappings stay


def test_settings_are_taken_when_the_index_is_created(destination: Destination, name: str) -> None:
    assert destination.ensure_index(name, settings={"index.refresh_interval": "5s"}) == f"{name}-000001"
    assert destination.inspect_index(name, f"{name}-000001").exists


def test_concrete_index_of_that_name_is_used_as_it_is(destination: Destination, name: str) -> None:
    concrete = destination.ensure_index(name)
    assert destination.ensure_index(concrete) == concrete
    (outcome,) = destination.apply([Operation(concrete, concrete, "c1", 1, b'{"n":1}')])
    assert outcome.kind is APPLIED
    assert set(destination.read(concrete, ["c1"])) == {"c1"}


def test_physical_name_that_something_else_has_is_refused(destination: Destination, name: str) -> None:
    destination.ensure_index(f"{name}-000001")  # an alias that has the name which the index of `name` would have
    with pytest.raises(DestinationError, match=f"{name}-000001 cannot be created"):
        destination.ensure_index(name)


def test_two_that_ensure_an_index_at_once_get_the_same(opener: Opener, name: str) -> None:
    both = [opener(), opener()]
    names = [f"{name}-{n}" for n in range(4)]
    start = threading.Barrier(2)

    def ensure(destination: Destination) -> list[str]:
        start.wait(LIMIT_S)
        return [destination.ensure_index(each) for each in names]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ensure, both)) == [[f"{each}-000001" for each in names]] * 2
    for destination in both:
        destination.close()


def test_inspection_tells_where_readers_go_and_how_long_deletes_are_remembered(index: Index) -> None:
    facts = index.destination.inspect_index(index.name, index.target)
    assert (facts.exists, facts.readers) == (True, (index.target,))
    assert facts.gc_deletes == FOREVER or re.fullmatch(r"\d+(ms|s|m|h|d)", facts.gc_deletes)


# -- looking --------------------------------------------------------------------------------------------------------


def test_read_sees_what_was_applied_before_any_refresh_and_leaves_out_what_is_not_there(index: Index) -> None:
    index.apply(index.put("c1", 1, {"n": 1}), index.put("c2", 2, {}))
    index.one(index.delete("c2", 3))
    assert index.holds("c1", "c2", "c3") == {"c1": (1, {"n": 1})}
    assert index.holds() == {}
    assert set(index.destination.read(index.name, ["c1"])) == {"c1"}  # by alias


def test_read_keeps_numbers_exact(index: Index) -> None:
    document = {"exact": 2**63 - 1, "negative": -(2**63), "float": 0.1, "half": 0.5, "yes": True, "nothing": None}
    index.one(index.put("c1", 1, document))
    ((_, source),) = index.holds("c1").values()
    assert {key: (value, type(value)) for key, value in source.items()} == {
        key: (value, type(value)) for key, value in document.items()
    }


def listed(index: Index, size: int, **options: Any) -> list[dict[str, Listed]]:
    return list(index.destination.pages(index.name, size, **options))


def test_pages_list_each_document_once_with_its_version_and_tenant_and_no_deleted_one(index: Index) -> None:
    index.apply(*(index.put(f"c{n}", n + 1, {"n": n, "tenantId": f"t{n % 2}"}) for n in range(25)))
    index.apply(index.delete("c3", 100), index.put("c4", 101, {"text": "x" * 1_000}))
    pages = listed(index, 10, tenants=True)
    assert [len(page) for page in pages] == [10, 10, 4]
    assert {each: found for page in pages for each, found in page.items()} == {
        "c4": Listed(101, None),
        **{f"c{n}": Listed(n + 1, f"t{n % 2}") for n in range(25) if n not in (3, 4)},
    }
    (page,) = listed(index, 100)
    assert page == {"c4": Listed(101), **{f"c{n}": Listed(n + 1) for n in range(25) if n not in (3, 4)}}


def test_pages_of_one_index_list_nothing_of_another(index: Index, name: str) -> None:
    other = Index(index.destination, f"{name}-other")
    index.destination.ensure_index(other.name)
    index.apply(index.put("c1", 1, {}), other.put("c2", 2, {}))
    assert [set(page) for page in listed(index, 10)] == [{"c1"}]


def test_pages_of_a_missing_or_empty_index_are_none(index: Index, name: str) -> None:
    assert listed(index, 10) == []
    assert list(index.destination.pages(f"{name}-missing", 10)) == []


def test_shares_of_the_pages_have_nothing_in_common_and_are_all_of_it_together(index: Index) -> None:
    index.apply(*(index.put(f"c{n}", 1, {}) for n in range(100)))
    shares = [{each for page in listed(index, 7, share=(part, 4)) for each in page} for part in range(4)]
    assert sum(map(len, shares)) == 100
    assert set.union(*shares) == {f"c{n}" for n in range(100)}
    assert all(5 <= len(share) <= 60 for share in shares)


def test_documents_that_come_and_go_between_pages_keep_no_other_from_being_listed(index: Index) -> None:
    index.apply(*(index.put(f"c{n}", 1, {}) for n in range(30)))
    pages = index.destination.pages(index.name, 10)
    found = set(next(pages))
    gone, *_ = {f"c{n}" for n in range(30)} - found
    index.apply(index.delete(gone, 2), index.put("new", 1, {}))
    for page in pages:
        assert not found & set(page)
        found |= set(page)
    assert found >= {f"c{n}" for n in range(30)} - {gone}


def test_pages_that_nobody_reads_to_the_end_leave_the_index_usable(index: Index) -> None:
    index.apply(*(index.put(f"c{n}", 1, {}) for n in range(30)))
    for _ in range(20):
        pages = index.destination.pages(index.name, 10)
        next(pages)
        pages.close()  # type: ignore[attr-defined]
    assert index.one(index.put("c1", 2, {})) == Outcome(APPLIED)


def test_highest_version_of_an_empty_a_missing_and_a_filled_index(index: Index, name: str) -> None:
    assert index.destination.highest_version(name) == 0
    assert index.destination.highest_version(f"{name}-missing") == 0
    index.apply(*(index.put(f"c{n}", 10**12 + n, {}) for n in range(1, 50)))
    assert index.destination.highest_version(name) == 10**12 + 49


def test_well_destination_says_so(index: Index) -> None:
    assert index.destination.ping() is None
    health = index.destination.health()
    assert health.product
    assert re.search(r"\d+\.\d+", health.version)
    assert health.status


@pytest.mark.parametrize(
    "look",
    [
        lambda destination, name: destination.refresh(name),
        lambda destination, name: destination.count(name),
        lambda destination, name: destination.finish_index(name, {}),
        lambda destination, name: destination.search(name, "ada"),
        lambda destination, name: destination.search(name, "ada", tenant="t1"),
    ],
)
def test_missing_index_is_said_to_whoever_looks(
    index: Index, name: str, look: Callable[[Destination, str], object]
) -> None:
    with pytest.raises(DestinationError, match=f"{name}-missing"):
        look(index.destination, f"{name}-missing")


def test_search_of_a_missing_index_is_told_from_a_failure(destination: Destination, name: str) -> None:
    with pytest.raises(IndexMissing):  # not even the file of an embedded destination is there
        destination.search(name, "ada", tenant="t1")


# -- rebuilding an index --------------------------------------------------------------------------------------------


def test_operation_that_may_meet_its_own_version_replaces_that_and_nothing_newer(index: Index) -> None:
    index.apply(index.put("same", 5, {"n": 1}), index.put("newer", 6, {"n": 1}), index.put("gone", 4, {}))
    index.one(index.delete("gone", 6))
    batch = [index.put("same", 5, {"n": 2}), index.put("newer", 5, {"n": 2}), index.put("gone", 5, {})]
    outcomes = index.apply(*(replace(operation, or_equal=True) for operation in batch))
    assert [(outcome.kind, outcome.version) for outcome in outcomes] == [(APPLIED, None), (CONFLICT, 6), (CONFLICT, 6)]
    assert index.holds("same", "newer", "gone") == {"same": (5, {"n": 2}), "newer": (6, {"n": 1})}
    batch = [index.delete("same", 5), index.delete("newer", 5)]
    outcomes = index.apply(*(replace(operation, or_equal=True) for operation in batch))
    assert kinds(outcomes) == [APPLIED, CONFLICT]
    assert index.holds("same", "newer") == {"newer": (6, {"n": 1})}
    assert index.one(index.put("same", 5, {})).version == 5  # its delete is remembered
    assert index.one(replace(index.put("same", 5, {}), or_equal=True)).kind is APPLIED


def test_index_that_is_filled_before_readers_reach_it(index: Index, name: str) -> None:
    destination, new = index.destination, f"{name}-000002"
    index.one(index.put("c1", 1, {"name": "Ada"}))
    mappings = {"dynamic": "strict", "properties": {"name": {"type": "text"}}}
    destination.create_index(new, mappings, {"number_of_replicas": 0, "index": {"refresh_interval": "7s"}})
    assert kinds(destination.apply([Operation(new, new, "c1", 1, b'{"name":"Grace"}')])) == [APPLIED]
    assert kinds(destination.apply([Operation(new, new, "c2", 1, b'{"age":1}')])) == [REJECTED]  # its own mappings
    destination.refresh(name)
    assert (index.found("ada"), index.found("grace")) == (["c1"], [])
    destination.finish_index(new, {"number_of_replicas": 0, "index": {"refresh_interval": "7s"}})
    destination.swap(name, index.target, new)
    assert (index.found("ada"), index.found("grace")) == ([], ["c1"])
    assert destination.inspect_index(name, new).readers == (new,)
    destination.drop_index(index.target)
    assert not destination.inspect_index(name, index.target).exists
    assert (index.found("ada"), index.found("grace"), destination.count(name)) == ([], ["c1"], 1)


def test_index_of_a_name_that_is_taken_is_not_created(index: Index) -> None:
    index.one(index.put("c1", 1, {}))
    for taken in (index.name, index.target):
        with pytest.raises(DestinationError, match=f"{taken} cannot be created"):
            index.destination.create_index(taken, {}, {})
    assert index.holds("c1") == {"c1": (1, {})}


def test_swap_that_comes_late_changes_nothing(index: Index, name: str) -> None:
    destination, second, third = index.destination, f"{name}-000002", f"{name}-000003"
    for target in (second, third):
        destination.create_index(target, {}, {})
    destination.swap(name, index.target, second)
    for old, new in ((index.target, second), (index.target, third), (second, f"{name}-missing")):
        with pytest.raises(DestinationError, match=f"alias {name} cannot be moved"):
            destination.swap(name, old, new)
        assert destination.inspect_index(name, second).readers == (second,)
    destination.drop_index(index.target)
    with pytest.raises(DestinationError):
        destination.swap(name, index.target, third)
    assert destination.inspect_index(name, second).readers == (second,)


def test_concrete_index_of_the_name_gives_way_to_an_alias_only_when_told(index: Index, name: str) -> None:
    destination, concrete, new = index.destination, index.target, f"{name}-new"
    destination.create_index(new, {}, {})
    destination.apply([Operation(new, new, "c1", 1, b'{"name":"Grace"}')])
    destination.finish_index(new, {})
    with pytest.raises(DestinationError):
        destination.swap(concrete, concrete, new)
    destination.swap(concrete, concrete, new, adopt=True)
    assert destination.inspect_index(concrete, new).readers == (new,)
    assert [hit.document_id for hit in destination.search(concrete, "grace")] == ["c1"]


def test_dropping_what_is_not_there_is_fine_and_an_alias_is_no_index(index: Index, name: str) -> None:
    index.destination.drop_index(f"{name}-missing")
    index.one(index.put("c1", 1, {}))
    with suppress(DestinationError):
        index.destination.drop_index(name)
    assert index.holds("c1") == {"c1": (1, {})}


# -- search ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def people(index: Index) -> Index:
    people = {
        "ada": {"name": "Ada Lovelace", "about": "wrote the first program for the analytical engine"},
        "babbage": {"name": "Charles Babbage", "about": "designed the analytical engine, a first computer"},
        "grace": {"name": "Grace Hopper", "about": "compilers", "address": {"city": "Arlington"}, "tags": ["navy"]},
        "alan": {"name": "Alan Turing", "about": "computability", "born": 1912},
    }
    index.apply(*(index.put(each, at + 1, document) for at, (each, document) in enumerate(people.items())))
    index.destination.refresh(index.name)
    return index


def test_search_ranks_more_and_rarer_words_higher(people: Index) -> None:
    hits = people.destination.search(people.name, "first program")
    assert [hit.document_id for hit in hits] == ["ada", "babbage"]
    assert hits[0].score > hits[1].score > 0
    assert hits[0].source["name"] == "Ada Lovelace"
    assert people.found("analytical engine", limit=1) in (["ada"], ["babbage"])


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("lovelace", "ada"),
        ("LOVELACE", "ada"),
        ("lovel", "ada"),  # the beginning of a word
        ("analytical engine, a first comp", "babbage"),
        ("hopp", "grace"),
        ("loveleca", "ada"),  # two letters swapped
        ("lovlace", "ada"),  # one is missing
        ("babage", "babbage"),
        ("turingg", "alan"),
        ("arlington", "grace"),  # in an object
        ("navy", "grace"),  # in an array
    ],
)
def test_search_finds_words_their_beginnings_and_misspelt_ones(people: Index, query: str, found: str) -> None:
    assert people.found(query)[:1] == [found]


@pytest.mark.parametrize("query", ["zzzzzz", "", "   ", "?", "* -"])
def test_search_for_nothing_that_is_there_finds_nothing(people: Index, query: str) -> None:
    assert people.found(query) == []


def test_search_finds_a_word_before_its_misspelling(index: Index) -> None:
    index.apply(*(index.put(f"c{n}", n + 1, {"name": "smyth" if n == 3 else "smith"}) for n in range(6)))
    index.destination.refresh(index.name)
    found = index.found("smith", limit=50)
    assert (len(found), found[-1]) == (6, "c3")
    assert len(index.found("smith", limit=2)) == 2


def test_search_finds_the_present_and_not_the_past(people: Index) -> None:
    people.apply(people.put("ada", 10, {"name": "Augusta King"}), people.delete("grace", 11))
    people.destination.refresh(people.name)
    assert people.found("lovelace") == []
    assert people.found("augusta") == ["ada"]
    assert people.found("hopper") == []


@pytest.mark.parametrize("mappings", [None, MAPPINGS], ids=["dynamic", "registered"])
def test_search_of_one_tenant_finds_nothing_of_another(
    destination: Destination, name: str, mappings: dict[str, Any] | None
) -> None:
    destination.ensure_index(name, mappings)
    index = Index(destination, name)
    tenants = ["acme", "acme-2", "ACME", "acme 2", "2"]
    index.apply(
        index.put("of nobody", 1, {"name": "Ada"}),
        *(index.put(tenant, 1, {"name": "Ada", "tenantId": tenant}) for tenant in tenants),
    )
    destination.refresh(name)
    assert set(index.found("ada")) == {*tenants, "of nobody"}
    for tenant in tenants:
        assert index.found("ada", tenant=tenant) == [tenant]
    assert index.found("ada", tenant="nobody") == []
    assert index.found("ada", tenant="") == []


# -- several at once ------------------------------------------------------------------------------------------------


def test_second_instance_sees_and_respects_what_the_first_applied(index: Index, opener: Opener) -> None:
    index.one(index.put("c1", 5, {"n": 5}))
    second = Index(opener(), index.name)
    assert second.holds("c1") == {"c1": (5, {"n": 5})}
    assert second.one(second.put("c1", 4, {})).version == 5
    assert second.one(second.put("c1", 6, {"n": 6})) == Outcome(APPLIED)
    assert index.holds("c1") == {"c1": (6, {"n": 6})}
    second.destination.close()


def _write_versions(opener: Opener, name: str, first: int) -> None:
    index = Index(opener(), name)
    for version in range(first, 60, 3):
        outcomes = index.apply(*(index.put(f"c{n}", version, {"version": version}) for n in range(20)))
        assert set(kinds(outcomes)) <= {APPLIED, CONFLICT}, outcomes
    index.destination.close()


def test_processes_that_write_the_same_documents_leave_the_highest_versions(index: Index, opener: Opener) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write_versions, args=(opener, index.name, first)) for first in (1, 2, 3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT_S)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    ids = [f"c{n}" for n in range(20)]
    assert index.holds(*ids) == {each: (59, {"version": 59}) for each in ids}


def test_threads_share_one_instance(index: Index) -> None:
    def write(thread: int) -> list[OutcomeKind]:
        return kinds(
            outcome
            for at in range(10)
            for outcome in index.apply(*(index.put(f"{thread}-{at}-{n}", 1, {}) for n in range(10)))
        )

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(write, range(4))) == [[APPLIED] * 100] * 4
    ids = [f"{thread}-{at}-{n}" for thread in range(4) for at in range(10) for n in range(10)]
    assert set(index.holds(*ids)) == set(ids)


def test_thousand_documents_in_one_apply_are_answered_in_their_order(typed: Index) -> None:
    def document(n: int) -> dict[str, Any]:
        return {"age": "bad" if n % 100 == 7 else n, "text": "x" * 700}

    outcomes = typed.apply(*(typed.put(f"c{n}", n + 1, document(n)) for n in range(1_000)))
    assert [at for at, outcome in enumerate(outcomes) if outcome.kind is REJECTED] == list(range(7, 1_000, 100))
    assert kinds(outcomes).count(APPLIED) == 990
    assert len(typed.holds(*(f"c{n}" for n in range(1_000)))) == 990


def test_nothing_to_apply_is_answered_with_nothing(index: Index) -> None:
    assert index.apply() == []
