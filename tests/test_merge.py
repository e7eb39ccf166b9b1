"""What partial updates make of a document: tables of the rule; the comparison with a real node is elsewhere."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from outbox.destinations.merge import merged


def after(document: Any, *patches: Any) -> Any:
    return orjson.loads(merged(orjson.dumps(document), map(orjson.dumps, patches)))


@pytest.mark.parametrize(
    ("document", "patches", "result"),
    [
        ({"a": 1}, [{"b": 2}], {"a": 1, "b": 2}),
        ({"a": {"x": 1}}, [{"a": {"y": 2}}], {"a": {"x": 1, "y": 2}}),
        ({"a": {"x": {"p": 1, "q": 2}}}, [{"a": {"x": {"q": 3}}}], {"a": {"x": {"p": 1, "q": 3}}}),
        ({"a": [1, 2]}, [{"a": [3]}], {"a": [3]}),
        ({"a": {"x": 1}}, [{"a": None}], {"a": None}),
        ({"a": {"x": 1}}, [{"a": {}}], {"a": {"x": 1}}),
        ({"a": 5}, [{"a": {"x": 1}}], {"a": {"x": 1}}),
        ({"a.b": 1}, [{"a": {"b": 2}}], {"a.b": 1, "a": {"b": 2}}),
        ({}, [{"a": {"x": 1}}, {"a": 5}, {"a": {"y": 2}}], {"a": {"y": 2}}),
    ],
)
def test_patches_apply_one_after_another(document: Any, patches: list[Any], result: Any) -> None:
    assert after(document, *patches) == result


def test_numbers_keep_every_digit() -> None:
    text = b'{"big":123456789012345678901234567890,"exact":0.1234567890123456789,"float":1.0}'
    assert merged(text, [b'{"new":1.10}']) == text[:-1] + b',"new":1.10}'


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"1", b'{"a":NaN}', b'{"a":', b'{"a":"\xff"}', b'{"a":' * 100_000, b"{}\n{}"]
)
def test_what_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        merged(b"{}", [text])


def test_lone_surrogate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"surrogate|UTF-8"):
        merged(b"{}", [b'{"a":"\\ud800"}'])


@pytest.mark.parametrize(("levels", "is_read"), [(250, True), (251, False), (1_010, False), (100_000, False)])
def test_nesting_ends_where_the_stack_is_far_from_its_end(levels: int, is_read: bool) -> None:
    deep = b'{"n":' * levels + b"1" + b"}" * levels
    if is_read:
        assert merged(deep, [b'{"m":1}']).startswith(b'{"n":{"n":')
    else:
        with pytest.raises(ValueError):  # in words of its own, or of orjson
            merged(deep, [])
