"""What is refused at write, and that nothing else changes on its way into the table."""

from __future__ import annotations

import enum
import json
import math
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox import InvalidDocument, InvalidName
from outbox.documents import check_document_id, check_index_name, check_tenant_id, serialise


class Colour(enum.Enum):
    RED = "red"


class Name(str):
    pass


def stored(document: Any, max_bytes: int = 1_000_000) -> Any:
    return json.loads(serialise(document, max_bytes=max_bytes), parse_float=str)


def test_values_beyond_json_become_json() -> None:
    document = {
        "at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "on": date(2026, 1, 2),
        "id": UUID(int=1),
        "price": Decimal("12345678901234567890.10"),
        "colour": Colour.RED,
        "name": Name("Ada"),
        "tags": ("a", "b"),
    }
    assert stored(document) == {
        "at": "2026-01-02T03:04:05+00:00",
        "on": "2026-01-02",
        "id": "00000000-0000-0000-0000-000000000001",
        "price": "12345678901234567890.10",
        "colour": "red",
        "name": "Ada",
        "tags": ["a", "b"],
    }


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "JSON cannot express"),
        (math.inf, "JSON cannot express"),
        (Decimal("NaN"), "JSON cannot express"),
        ("a\x00b", "NUL"),
        ("\ud800", "lone surrogate"),
        ({1: "x"}, "no string"),
        ({"a\x00": 1}, "NUL"),
        (object(), "no JSON form"),
        (b"bytes", "no JSON form"),
        ({"a", "b"}, "no JSON form"),
        (2**64, "64 bits"),
    ],
)
def test_refusal_names_the_field_and_the_reason(value: Any, reason: str) -> None:
    with pytest.raises(InvalidDocument, match=reason) as refused:
        serialise({"person": {"notes": ["fine", value]}}, max_bytes=1_000_000)
    assert "person.notes.1" in str(refused.value)


def test_document_that_contains_itself_is_refused() -> None:
    document: dict[str, Any] = {}
    document["self"] = document
    with pytest.raises(InvalidDocument, match="levels deep"):
        serialise(document, max_bytes=1_000)


def test_document_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(InvalidDocument, match="must be a mapping"):
        serialise([1, 2], max_bytes=1_000)  # type: ignore[arg-type]


def test_document_above_the_limit_is_refused_with_its_size() -> None:
    with pytest.raises(InvalidDocument, match=r"1,008 bytes .* OUTBOX_MAX_DOCUMENT_BYTES=1,000"):
        serialise({"a": "x" * 1_000}, max_bytes=1_000)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")), inner, max_size=4
        )
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")), json_values))
def test_any_json_document_survives_on_one_line(document: dict[str, Any]) -> None:
    text = serialise(document, max_bytes=1_000_000)
    assert json.loads(text) == document
    assert b"\n" not in text
    assert b"\r" not in text


@pytest.mark.parametrize("document_id", ["", "x" * 513, "é" * 257, "a\x00", "\ud800", 7])
def test_illegal_document_id_is_refused(document_id: Any) -> None:
    with pytest.raises(InvalidName, match="document id"):
        check_document_id(document_id)


def test_document_id_of_512_bytes_is_accepted() -> None:
    check_document_id("x" * 512)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "Contacts", "a b", "a/b", "a*", "a,b", "a#", "a:b", "-a", "_a", "+a", ".a", "x" * 250, None]
)
def test_illegal_index_name_is_refused(name: Any) -> None:
    with pytest.raises(InvalidName, match="index name"):
        check_index_name(name)


def test_upper_case_index_name_is_answered_with_the_right_one() -> None:
    with pytest.raises(InvalidName, match="use 'contacts'"):
        check_index_name("Contacts")


@pytest.mark.parametrize("tenant", ["", "x" * 256, "a\nb", 7])
def test_illegal_tenant_is_refused(tenant: Any) -> None:
    with pytest.raises(InvalidName, match="tenant id"):
        check_tenant_id(tenant)
