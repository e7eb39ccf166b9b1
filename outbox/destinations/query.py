"""Pure: what a search asks of an index, checked once and for every destination."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypedDict

import orjson

from outbox import documents
from outbox.errors import InvalidInput, shortened

DEEPEST: Final = 10_000
"""How many matches one can page through: the default of a cluster's `index.max_result_window`."""

BOUNDS: Final = ("gt", "gte", "lt", "lte")

_LONGEST_VALUE: Final = 32_766
"""Bytes of a value to filter by, as JSON: a longer one is in no index."""

Scalar = str | int | float | bool


class Options(TypedDict, total=False):
    """What a search may be told beside its words; `outbox.Search` says what each of them means."""

    tenant: object
    offset: int
    limit: int
    where: Mapping[str, Any] | None
    sort: str | Sequence[str]
    fields: Iterable[str] | None
    highlight: str | Iterable[str]


@dataclass(frozen=True, slots=True)
class Filter:
    """What a field must hold: one of `values`; or, where they are None, something within all of `bounds`."""

    path: str
    values: tuple[Scalar, ...] | None
    bounds: tuple[tuple[str, Scalar], ...] = ()


@dataclass(frozen=True, slots=True)
class Query:
    """A search of one index. `words` is None for all of its documents."""

    words: str | None
    tenants: tuple[str, ...] | None  # all spellings of one
    offset: int
    limit: int
    filters: tuple[Filter, ...]
    sort: tuple[tuple[str, bool], ...]  # field, and whether the largest come first
    fields: tuple[str, ...] | None  # of the document that come back; None: all
    highlight: tuple[str, ...]

    @property
    def compared(self) -> set[str]:
        """The fields that are filtered or sorted by."""
        return {each.path for each in self.filters} | {path for path, _ in self.sort}


def query(words: str | None, options: Options) -> Query:
    """What is asked. Raises `InvalidInput`."""
    tenant, fields = options.get("tenant"), options.get("fields")
    offset, limit = options.get("offset", 0), options.get("limit", 10)
    for name, number in (("offset", offset), ("limit", limit)):
        if not isinstance(number, int) or number < 0:
            raise InvalidInput(f"{name} {shortened(number)} must be a whole number of 0 or more")
    if offset + limit > DEEPEST:
        raise InvalidInput(
            f"offset {offset:,} and limit {limit:,} reach beyond the first {DEEPEST:,} matches; narrow the search"
        )
    return Query(
        words=words,
        tenants=None if tenant is None else documents.tenant_spellings(tenant),
        offset=offset,
        limit=limit,
        filters=tuple(_filter(_path(path), wanted) for path, wanted in (options.get("where") or {}).items()),
        sort=tuple((_path(each.removeprefix("-")), each.startswith("-")) for each in _listed(options.get("sort", ()))),
        fields=None if fields is None else tuple(map(_path, _listed(fields))),
        highlight=tuple(map(_path, _listed(options.get("highlight", ())))),
    )


def _listed(names: str | Iterable[str]) -> list[str]:
    listed = [names] if isinstance(names, str) else list(names)
    if other := next((each for each in listed if not isinstance(each, str)), None):
        raise InvalidInput(f"{shortened(other)} is no name of a field")
    return listed


def _path(name: str) -> str:
    if not isinstance(name, str) or not name.strip(".") or name[0] == "_" or {"*", ","} & set(name):
        raise InvalidInput(
            f"{shortened(name)} is no name of a field; name one, e.g. 'address.city', "
            "or ask in the search engine's own words with search.client(…)"
        )
    return name


def _filter(path: str, wanted: Any) -> Filter:
    if isinstance(wanted, Mapping):
        if not wanted or not set(wanted) <= set(BOUNDS):
            raise InvalidInput(f"field {path!r}: {shortened(wanted)} is no range; use {', '.join(BOUNDS)}")
        return Filter(path, None, tuple((name, _value(path, wanted[name])) for name in BOUNDS if name in wanted))
    if isinstance(wanted, Collection) and not isinstance(wanted, (str, bytes, bytearray)):
        return Filter(path, tuple(_value(path, each) for each in wanted))
    return Filter(path, (_value(path, wanted),))


def _value(path: str, value: Any) -> Scalar:
    """A value as documents hold it."""
    written: Scalar | None
    try:
        written = orjson.loads(documents.serialise({path: value}, max_bytes=_LONGEST_VALUE))[path]
    except orjson.JSONDecodeError:
        raise InvalidInput(
            f"field {path!r} cannot be compared with {shortened(value)}: no field holds such a number"
        ) from None
    if not isinstance(written, Scalar):
        raise InvalidInput(
            f"field {path!r} cannot be compared with {shortened(value)}; pass a value, or a list of them"
        )
    return written


def words_alone(path: str) -> str:
    """Why a text cannot be filtered or sorted by."""
    return (
        f"field {path!r} is of type text, which can be searched for words alone: to filter or sort by it, map it as "
        "keyword, or give it a subfield 'keyword' of that type"
    )


def nested_part(path: str, above: str) -> str:
    """Why a field of nested objects cannot be filtered or sorted by."""
    return (
        f"field {path!r} is part of the nested objects {above!r}, of which each would have to match as a whole: map "
        "them as plain objects, or ask in the search engine's own words with search.client(…)"
    )


def no_text(path: str) -> str:
    """Why the words of a field cannot be marked."""
    return f"field {path!r} is not of type text: in others no words can be highlighted"
