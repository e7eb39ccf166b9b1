"""Pure: what partial updates make of a document, by the rule of Elasticsearch's own `_update`.

Objects are merged key by key, at any depth; arrays, scalars and null replace what was there (`XContentHelper.update`
in Elasticsearch). So patches are applied one after another and never merged with each other: `{"a": {"x": 1}}`,
`{"a": 5}`, `{"a": {"y": 2}}` come to `{"a": {"y": 2}}`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import orjson


def merged(document: bytes, patches: Iterable[bytes]) -> bytes:
    """`document` after each of the patches in turn. All are JSON objects in UTF-8; so is the result, on one line.

    Numbers stay as they were written, so that no digit is lost.
    Raises `ValueError` when one of them is no JSON object, or the result cannot be written as one.
    """
    return merged_into(_parse(document), patches)


def merged_into(document: dict[str, Any], patches: Iterable[bytes]) -> bytes:
    """The same for a document that is parsed already, its numbers as `orjson.Fragment`; it is changed."""
    for patch in patches:
        _apply(document, _parse(patch))
    try:
        return orjson.dumps(document)
    except orjson.JSONEncodeError as error:  # a lone surrogate, which JSON can escape and UTF-8 cannot hold
        raise ValueError(str(error)) from None


def _parse(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(
            text.decode(), parse_float=orjson.Fragment, parse_int=orjson.Fragment, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("no JSON object")  # noqa: TRY004  (of the text, whatever its type)
    return value


def _apply(document: dict[str, Any], patch: dict[str, Any]) -> None:
    for key, value in patch.items():
        held = document.get(key)
        if isinstance(held, dict) and isinstance(value, dict):
            _apply(held, value)
        else:
            document[key] = value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
