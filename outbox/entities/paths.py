"""Fields under names of their own, and what of a JSON column a document takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Keys = dict[str, "Keys"]
"""What of a JSON object a document takes, key by key; empty: all of it."""


class Field(NamedTuple):
    """A field of `fields` that is a mapping: its name, and the path that leads to its value."""

    name: str
    relations: tuple[str, ...]
    leaf: str
    keys: tuple[str, ...]  # into a JSON column


def picked(value: Any, keys: Keys) -> Any:
    """The part of a JSON value that these keys lead to, in objects as it has them: what is missing is null, and of a
    list it is the part of each member."""
    if not keys:
        return value
    if isinstance(value, Mapping):
        return {key: picked(value.get(key), below) for key, below in keys.items()}
    return [picked(each, keys) for each in value] if isinstance(value, list) else None


def value_within(value: Any, keys: Sequence[str]) -> Any:
    """The value in a JSON value that keys lead to: null if it is missing, and of a list that of each member."""
    if not keys:
        return value
    if isinstance(value, Mapping):
        return value_within(value.get(keys[0]), keys[1:])
    return flat(value_within(each, keys) for each in value) if isinstance(value, list) else None


def flat(values: Iterable[Any]) -> list[Any]:
    """One list of values, instead of lists of lists."""
    made: list[Any] = []
    for each in values:
        if isinstance(each, list):
            made += each
        else:
            made.append(each)
    return made


def add_keys(keys: Keys, path: Sequence[str]) -> bool:
    """Take one more path. False if it leads to a part of what is taken as a whole, or the other way round."""
    for at, key in enumerate(path, 1):
        if key in keys and bool(keys[key]) == (at == len(path)):
            return False
        keys = keys.setdefault(key, {})
    return True
