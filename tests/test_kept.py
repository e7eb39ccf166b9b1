"""What an index gives back of a document, and how that compares with the one that was sent."""

from __future__ import annotations

from typing import Any

import pytest

from outbox.destinations.cluster.keeping import of_index
from outbox.destinations.kept import Kept


def equal(kept: Kept, sent: Any, held: Any) -> bool:
    one, other = kept.comparable(sent, held)
    return bool(one == other)


@pytest.mark.parametrize(
    ("patterns", "held"),
    [
        (["body"], {"title": "a", "m": {"x": {"a": 1}, "y": 2}, "list": [{"x": 1}, {"y": 2}], "body2": 1}),
        (["bod*"], {"title": "a", "m": {"x": {"a": 1}, "y": 2}, "list": [{"x": 1}, {"y": 2}]}),
        (["m"], {"title": "a", "body": "b", "list": [{"x": 1}, {"y": 2}], "body2": 1}),
        (["m.*"], {"title": "a", "body": "b", "list": [{"x": 1}, {"y": 2}], "body2": 1, "m": {}}),
        (["*.x"], {"title": "a", "body": "b", "m": {"y": 2}, "list": [{}, {"y": 2}], "body2": 1}),
    ],
)
def test_fields_that_a_source_excludes_are_not_compared_and_all_others_are(patterns: list[str], held: Any) -> None:
    sent = {"title": "a", "body": "b", "m": {"x": {"a": 1}, "y": 2}, "list": [{"x": 1}, {"y": 2}], "body2": 1}
    kept = of_index({"mappings": {"_source": {"excludes": patterns}}})
    assert equal(kept, sent, held)
    assert not equal(kept, {**sent, "title": "another"}, held)
    assert not equal(kept, sent, {**held, "new": 1})


def test_only_what_a_source_includes_is_compared() -> None:
    sent = {"title": "a", "o": {"p": 1, "q": 2}, "m": {"x": {"a": 1}, "y": 2}, "w": {"a": 1}}
    held = {"title": "a", "o": {"p": 1}, "m": {"x": {"a": 1}, "y": 2}}
    kept = of_index({"mappings": {"_source": {"includes": ["title", "o.p", "m"]}}})
    assert equal(kept, sent, held)
    assert equal(kept, {**sent, "w": 2}, held)
    assert not equal(kept, {**sent, "o": {"p": 2}}, held)


VECTORS = of_index(
    {
        "mappings": {
            "properties": {
                "v": {"type": "dense_vector"},
                "bits": {"type": "dense_vector", "element_type": "bit"},
                "rough": {"type": "dense_vector", "element_type": "bfloat16"},
                "weights": {"type": "sparse_vector"},
                "parts": {"type": "nested", "properties": {"v": {"type": "dense_vector"}}},
            }
        },
        "defaults": {"index": {"mapping": {"exclude_source_vectors": "true"}}},
    }
)


@pytest.mark.parametrize(
    ("sent", "held", "same"),
    [
        ({"v": [0.1, 0.30000000000000004]}, {"v": [0.1, 0.3]}, True),
        ({"v": [3, 4]}, {"v": [3.0, 4.0]}, True),
        ({"v": [0.1, 0.3]}, {"v": [0.1, 0.30001]}, False),
        ({"v": [0.1, 0.3]}, {"v": [0.1]}, False),
        ({"v": [0.1, 0.3]}, {}, False),
        ({"v": None}, {"v": None}, True),
        ({"bits": "7fff"}, {"bits": [127, -1]}, True),
        ({"bits": "7ffe"}, {"bits": [127, -1]}, False),
        ({"rough": [0.123456]}, {"rough": [0.123047]}, True),
        ({"weights": {"a": 0.123456, "b": 3.7777}}, {"weights": {"b": 3.7734375, "a": 0.123291016}}, True),
        ({"weights": {"a": 0.123456}}, {"weights": {"a": 0.2}}, False),
        ({"weights": {"a": 1.0}}, {"weights": {"b": 1.0}}, False),
        ({"parts": [{"v": [0.1], "k": 1}, {"k": 2}]}, {"parts": [{"k": 1, "v": [0.1]}, {"k": 2}]}, True),
        ({"parts": [{"v": [0.1], "k": 1}]}, {"parts": [{"k": 1, "v": [0.2]}]}, False),
        ({"n": 0.30000000000000004}, {"n": 0.3}, False),  # no vector
    ],
)
def test_vectors_compare_as_the_index_keeps_them(sent: Any, held: Any, same: bool) -> None:
    assert equal(VECTORS, sent, held) is same


def test_vectors_that_an_index_does_not_hide_compare_to_the_last_digit() -> None:
    mappings = {"properties": {"v": {"type": "dense_vector"}}}
    for shown in ({}, {"settings": {"index": {"mapping": {"exclude_source_vectors": "false"}}}}):
        kept = of_index({"mappings": mappings, **shown})
        assert not kept.asks_for_vectors
        assert not equal(kept, {"v": [0.30000000000000004]}, {"v": [0.3]})


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ({"settings": {"index": {"mapping": {"source": {"mode": "synthetic"}}}}}, "synthetic"),
        ({"mappings": {"_source": {"mode": "synthetic"}}}, "synthetic"),
        ({"settings": {"index": {"default_pipeline": "embed"}}}, "pipeline embed"),
        ({"settings": {"index": {"default_pipeline": "_none", "final_pipeline": "stamp"}}}, "pipeline stamp"),
        ({"mappings": {"_source": {"enabled": False}}}, "no _source"),
        ({"settings": {"index": {"mapping": {"source": {"mode": "disabled"}}}}}, "no _source"),
    ],
)
def test_content_that_never_comes_back_as_sent_is_not_compared_and_says_why(index: Any, why: str) -> None:
    kept = of_index(index)
    assert why in (kept.compared_without or "")
    assert equal(kept, {"n": 1}, {"n": 2})


def test_ordinary_index_gives_everything_back() -> None:
    index = {"mappings": {"properties": {"n": {"type": "long", "copy_to": "all"}}}, "settings": {"index": {}}}
    assert of_index(index) == Kept()
    assert Kept().compared_without is None


def test_semantic_text_comes_back_as_the_text_that_was_sent() -> None:
    mappings = {
        "properties": {"body": {"type": "semantic_text"}, "o": {"properties": {"b": {"type": "semantic_text"}}}}
    }
    assert of_index({"mappings": mappings}).as_sent({"body": "text", "_inference_fields": {"body": {}}}) == {
        "body": "text"
    }
    legacy = {"settings": {"index": {"mapping": {"semantic_text": {"use_legacy_format": "true"}}}}}
    made = {"inference": {"inference_id": "my-elser", "chunks": []}}
    held = {"body": {"text": "text", **made}, "o": {"b": made, "n": 1}}  # o.b was copied from another field
    assert of_index({"mappings": mappings, **legacy}).as_sent(held) == {"body": "text", "o": {"n": 1}}
