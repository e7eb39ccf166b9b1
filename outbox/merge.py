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


def parse(text: bytes) -> dict[str, Any]:
    """A stored document or patch, its numbers kept as they were written, so that no digit is lost.

    Raises `ValueError` for anything but one JSON object in UTF-8.
    """
    try:
        value = json.loads(
            text.decode(), parse_float=orjson.Fragment, parse_int=orjson.Fragment, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("no JSON object")  # noqa: TRY004  (of the text, whatever its type)
    return value


def merged(document: dict[str, Any], patches: Iterable[bytes]) -> bytes:
    """`document` after each of the patches in turn, as JSON on one line. Changes the dict that it is given.

    Raises `ValueError` when a patch is no JSON object, or the result cannot be written as one.
    """
    for patch in patches:
        _apply(document, parse(patch))
    try:
        return orjson.dumps(document)
    except orjson.JSONEncodeError as error:  # a lone surrogate, which JSON can escape and UTF-8 cannot hold
        raise ValueError(str(error)) from None


def _apply(document: dict[str, Any], patch: dict[str, Any]) -> None:
    for key, value in patch.items():
        held = document.get(key)
        if isinstance(held, dict) and isinstance(value, dict):
            _apply(held, value)
        else:
            document[key] = value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
