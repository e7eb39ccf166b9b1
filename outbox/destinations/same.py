"""Pure: whether two documents are the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson

from outbox.destinations import merge
from outbox.destinations.kept import Kept


def canonical(value: Any) -> bytes:
    """The same bytes for what JSON calls the same: the order of keys does not count, that of arrays does.

    >>> canonical({"b": 1, "a": [True, 1.0]}) == canonical({"a": [True, 1.0], "b": 1})
    True
    >>> canonical({"a": 1}) == canonical({"a": True})
    False
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # integers of more than 64 bits, lone surrogates
        return json.dumps(value, sort_keys=True).encode()


def is_held(document: bytes, held: Mapping[str, Any]) -> bool:
    """Whether the document is the one that is held, which is parsed as by `merge.parsed`: to the last digit.

    >>> is_held(b'{"n": 1.10, "a": 1}', merge.parsed(b'{"a":1,"n":1.10}'))
    True
    >>> is_held(b'{"n": 0.10000000000000000001}', merge.parsed(b'{"n":0.1}'))
    False
    """
    try:
        return canonical(held) == canonical(merge.parsed(document))
    except (TypeError, ValueError):
        return False


def is_same(document: bytes, source: Mapping[str, Any], kept: Kept) -> bool:
    """Whether the document is what an index gives back as `source`, as far as `kept` lets that be compared.

    >>> is_same(b'{"a": true, "n": 1.0}', {"n": 1.0, "a": True}, Kept())
    True
    >>> is_same(b'{"a": true}', {"a": 1}, Kept())
    False
    """
    expected, held = kept.comparable(json.loads(document), source)
    return canonical(expected) == canonical(held)
