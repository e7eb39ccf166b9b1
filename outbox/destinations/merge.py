"""Pure: what partial updates make of a document, by the rule of Elasticsearch's own `_update`.

Objects are merged key by key, at any depth; arrays, scalars and null replace what was there (`XContentHelper.update`
in Elasticsearch). So patches are applied one after another and never merged with each other: `{"a": {"x": 1}}`,
`{"a": 5}`, `{"a": {"y": 2}}` come to `{"a": {"y": 2}}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import orjson

from outbox.documents import read_exactly


class Upsert(NamedTuple):
    """What a document becomes where there is none, instead of being missing for the patch at the position `at`.

    `version`: from which one on the index may hold what the row of both has brought; None: it was never sent.
    """

    at: int
    document: bytes
    version: int | None


def updated(
    stored: dict[str, Any] | None, version: int, patches: Sequence[bytes], upserts: Sequence[Upsert] = ()
) -> bytes | None:
    """What patches make of the document that is `stored` with this version, parsed as by `parsed`; None: they miss it.

    A patch that was applied before brings nothing new when it is merged again; but its upsert may have been written
    instead, which it must not change: of the first one alone, since what comes after it finds a document. Where the
    stored version is not lower than the row's, one of both was.
    Raises `ValueError` as `merged` does.
    """
    if stored is None:
        first = next((each for each in upserts if each.at == 0), None)
        return None if first is None else merged(first.document, patches[1:])
    applied = any(each.at == 0 and each.version is not None and each.version <= version for each in upserts)
    return merged_into(stored, patches[1:] if applied else patches)


def split(content: bytes) -> tuple[bytes, bytes | None]:
    """The patch and the upsert of a row: `[patch, upsert]`, or the patch alone. What is neither counts as a patch.

    A list, so that a relay that knows no upserts refuses the row, and does not apply one half of it.
    """
    if not content.lstrip().startswith(b"["):
        return content, None
    try:
        patch, upsert = (_written(_object(each)) for each in _read(content))
    except ValueError:
        return content, None
    return patch, upsert


def merged(document: bytes, patches: Iterable[bytes]) -> bytes:
    """`document` after each of the patches in turn. All are JSON objects in UTF-8; so is the result, on one line.

    Numbers stay as they were written, so that no digit is lost.
    Raises `ValueError` when one of them is no JSON object, or the result cannot be written as one.
    """
    return merged_into(parsed(document), patches)


def merged_into(document: dict[str, Any], patches: Iterable[bytes]) -> bytes:
    """The same for a document that is parsed already, its numbers as `orjson.Fragment`; it is changed."""
    for patch in patches:
        _apply(document, parsed(patch))
    return _written(document)


def parsed(text: bytes) -> dict[str, Any]:
    """A JSON object, its numbers as `orjson.Fragment`. Raises `ValueError` for anything else."""
    return _object(_read(text))


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("no JSON object")  # noqa: TRY004  (of the text, whatever its type)
    return value


def _read(text: bytes) -> Any:
    return read_exactly(text.decode(), orjson.Fragment)


def _written(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as error:  # a lone surrogate, which JSON can escape and UTF-8 cannot hold
        raise ValueError(str(error)) from None


def _apply(document: dict[str, Any], patch: dict[str, Any]) -> None:
    for key, value in patch.items():
        held = document.get(key)
        if isinstance(held, dict) and isinstance(value, dict):
            _apply(held, value)
        else:
            document[key] = value
