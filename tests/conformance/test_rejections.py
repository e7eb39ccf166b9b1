"""What every destination refuses: documents and ids whose fault it is, their neighbours untouched."""

from __future__ import annotations

import pytest

from outbox.destinations.base import Destination, Outcome
from outbox.destinations.faults import named_field
from tests.conformance.index import APPLIED, REJECTED, Index, kinds

PARSING = ("document_parsing_exception", "mapper_parsing_exception")  # the second: OpenSearch's name


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
    (error_type,) = {outcome.error_type for outcome in outcomes if outcome.kind is REJECTED}
    assert error_type in PARSING
    assert [named_field(outcomes[at].error) for at in (1, 3, 5)] == ["age", "address.zip", "born"]
    assert set(typed.holds(*(operation.document_id for operation in batch))) == {"good-1", "good-2", "good-4"}


def test_patch_that_spoils_the_document_is_rejected_and_leaves_it_as_it_was(typed: Index) -> None:
    typed.one(typed.put("c1", 1, {"age": 36}))
    assert typed.one(typed.patch("c1", 2, {"age": "old"})).error_type in PARSING
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
    assert named_field(outcome.error) == "name"


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


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b'{"n":1E+400}', id="number-beyond-double"),
        pytest.param(b'{"n":%s1%s}' % (b"[" * 1_010, b"]" * 1_010), id="lists-nested-too-deeply"),
        pytest.param(b'{"n":%s1%s}' % (b'{"n":' * 1_010, b"}" * 1_010), id="objects-nested-too-deeply"),
    ],
)
def test_content_that_readers_could_not_read_is_rejected_and_searches_find_the_others(
    index: Index, content: bytes
) -> None:
    index.one(index.put("c1", 1, {"name": "Ada"}))
    new, patched = index.operation("bad", 2, content), index.operation("c1", 3, None, content)
    assert kinds(index.apply(new, patched, index.put("c2", 4, {"name": "Ada"}))) == [REJECTED, REJECTED, APPLIED]
    assert index.holds("c1", "c2", "bad") == {"c1": (1, {"name": "Ada"}), "c2": (4, {"name": "Ada"})}
    index.destination.refresh(index.name)
    assert sorted(index.found("ada")) == ["c1", "c2"]


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
