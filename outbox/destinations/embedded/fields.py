"""Pure: fields of documents compared with values and with each other, as Elasticsearch does by the type of the field.

Without a mapping a field holds what documents have there: numbers are compared as numbers, dates as dates, other texts
as texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import itemgetter
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import orjson

from outbox.destinations.embedded import dates
from outbox.destinations.embedded.mapping import number
from outbox.destinations.passages import values_at
from outbox.destinations.query import Filter, Query, nested_part, no_text, words_alone
from outbox.errors import InvalidInput, shortened

_LONGEST_GUESSED: Final = 256
"""Characters of a text that Elasticsearch still takes for a value where it has no mapping for the field."""

_TEXTS: Final = frozenset({"text"})
_WHOLE: Final = frozenset({"long", "integer", "short", "byte"})
_KEPT_ALONE: Final[Mapping[str, Any]] = {"enabled": False}


class Span(NamedTuple):
    """A value as it is compared; a date without its time is all of a day, anything else begins where it ends."""

    low: Any
    high: Any


class Field(NamedTuple):
    """Where a document holds a field, and how its values are compared: `span` gives None for what is none of them."""

    path: str
    span: Callable[[Any], Span | None] | None  # None: by each value
    kind: str


def field_of(mappings: Mapping[str, Any], path: str) -> Field:
    """How a field is compared under these mappings. Raises `InvalidInput` where it cannot be."""
    found = _asked(mappings, path)
    if found is None:
        name, dot, last = path.rpartition(".")
        if dot and last == "keyword" and _find(mappings, name) is None:
            raise InvalidInput(f"field {path!r} has no mapping: say {name!r}, and texts are compared as a whole")
        return Field(path, None, "")
    rule, held_at = found
    if _is_off(rule.get("enabled")):
        return Field(held_at, lambda _: None, "")
    kind = rule.get("type", "object")
    if kind in _TEXTS:
        rule = rule.get("fields", {}).get("keyword", {})
        if rule.get("type") != "keyword":
            raise InvalidInput(words_alone(path))
        kind = "keyword"
    if kind not in _SPANS or "normalizer" in rule or (kind == "date" and "format" in rule):
        raise InvalidInput(
            f"field {path!r} is of type {kind}{' with a format' if 'format' in rule else ''}"
            f"{' with a normalizer' if 'normalizer' in rule else ''}, which cannot be filtered or sorted by in the "
            "embedded destination"
        )
    if not _is_indexed(rule):
        raise InvalidInput(f"field {path!r} is neither indexed nor in doc_values: it cannot be filtered or sorted by")
    span = _SPANS[kind]
    if kind == "keyword" and "ignore_above" in rule:
        return Field(held_at, lambda value: _keyword(value, int(rule["ignore_above"])), kind)
    return Field(held_at, span, kind)


def marked_of(mappings: Mapping[str, Any], asked: Query) -> tuple[str, ...]:
    """The fields of a search in which words are marked. Raises `InvalidInput` for one that is no text."""
    rules = {path: found[0] if (found := _asked(mappings, path)) else {"type": "text"} for path in asked.highlight}
    for path, rule in rules.items():
        if rule.get("type") not in _TEXTS and not _is_off(rule.get("enabled")):
            raise InvalidInput(no_text(path))
    return tuple(path for path, rule in rules.items() if _is_indexed(rule))


def has_words(mappings: Mapping[str, Any], path: str) -> bool:
    """Whether a document is found by the words that it holds at a path."""
    found = _find(mappings, path)
    if found is None:
        return True
    rule, _ = found
    # What is nested is indexed as documents of its own, which a search for words does not ask.
    return rule.get("type") != "nested" and any(map(_is_indexed, (rule, *(rule.get("fields") or {}).values())))


def _is_indexed(rule: Mapping[str, Any]) -> bool:
    """Whether what a field holds is found: without an index, other fields than texts are by their doc_values."""
    in_doc_values = rule.get("type") not in _TEXTS and not _is_off(rule.get("doc_values"))
    return not _is_off(rule.get("enabled")) and (in_doc_values or not _is_off(rule.get("index")))


def _is_off(parameter: Any) -> bool:
    return str(parameter).lower() == "false"


def _asked(mappings: Mapping[str, Any], path: str) -> tuple[Mapping[str, Any], str] | None:
    """As `_find`. Raises `InvalidInput` for a part of nested objects."""
    found = _find(mappings, path)
    if found and found[0].get("type") == "nested" and found[1] != path:
        raise InvalidInput(nested_part(path, found[1]))
    return found


def _find(
    rule: Mapping[str, Any], path: str, above: str = "", dynamic: Any = True
) -> tuple[Mapping[str, Any], str] | None:
    """The rule of a field, and the path under which documents hold it; of what is in nested objects, that of these.

    It is `_KEPT_ALONE` for what is not looked into, and None for what has no mapping and may be anything.
    """
    if _is_off(rule.get("enabled")):
        return _KEPT_ALONE, f"{above}{path}"
    dynamic = rule.get("dynamic", dynamic)
    properties = rule.get("properties") or {}
    if path in properties:
        return properties[path], f"{above}{path}"
    for name, below in properties.items():
        if path.startswith(f"{name}."):
            rest = path[len(name) + 1 :]
            if below.get("type") == "nested":
                return below, f"{above}{name}"
            if rest in (below.get("fields") or {}):
                return below["fields"][rest], f"{above}{name}"
            return _find(below, rest, f"{above}{name}.", dynamic)
    return (_KEPT_ALONE, f"{above}{path}") if _is_off(dynamic) else None


class Keyed(Protocol):
    """Something that `Comparison.keys` were made for."""

    @property
    def keys(self) -> tuple[Any, ...]: ...


KeyedT = TypeVar("KeyedT", bound=Keyed)


class Comparison:
    """The filters and the order of a search, for documents of one index. Raises `InvalidInput`."""

    def __init__(self, mappings: Mapping[str, Any], asked: Query) -> None:
        fields = {path: field_of(mappings, path) for path in asked.compared}
        self._filters = [(fields[each.path], each) for each in asked.filters]
        self._sort = [(fields[path], largest_first) for path, largest_first in asked.sort]
        for field, wanted in self._filters:
            for value in (*(wanted.values or ()), *(value for _, value in wanted.bounds)):
                if field.kind and field.span and field.span(value) is None:
                    raise InvalidInput(f"field {wanted.path!r} is of type {field.kind}: {shortened(value)} is none")

    @property
    def is_needed(self) -> bool:
        return bool(self._filters or self._sort)

    def passes(self, document: Mapping[str, Any]) -> bool:
        """Whether a document passes all filters."""
        return all(_holds(document, field, wanted) for field, wanted in self._filters)

    def keys(self, document: Mapping[str, Any]) -> tuple[Any, ...]:
        """What a document is sorted by."""
        return tuple(_key(document, field, largest_first) for field, largest_first in self._sort)

    def sorted(self, found: list[KeyedT]) -> list[KeyedT]:
        """In the order that was asked for; what lacks a field comes last, and ties stay as they are."""
        for at, (_, largest_first) in reversed(list(enumerate(self._sort))):
            there = [(each.keys[at], each) for each in found if each.keys[at] is not None]
            there.sort(key=itemgetter(0), reverse=largest_first)
            found = [*(each for _, each in there), *(each for each in found if each.keys[at] is None)]
        return found


def _spans(document: Mapping[str, Any], field: Field) -> Iterator[tuple[Any, Callable[[Any], Span | None], Span]]:
    for value in values_at(document, field.path):
        span = field.span or _guessed(value)
        if span and (held := span(value)):
            if field.kind in _WHOLE:
                held = Span(int(held.low), int(held.low))  # as it is kept there, without its fraction
            yield value, span, held


def _holds(document: Mapping[str, Any], field: Field, wanted: Filter) -> bool:
    for value, span, held in _spans(document, field):
        if wanted.values is not None:
            if any(_equal(value, held, each, span(each), guessed=field.span is None) for each in wanted.values):
                return True
        elif all(_within(held, bound, span(limit)) for bound, limit in wanted.bounds):
            return True
    return False


def _equal(value: Any, held: Span, wanted: Any, meant: Span | None, *, guessed: bool) -> bool:
    if meant and meant.low <= held.low <= meant.high:
        return True
    return guessed and isinstance(wanted, str) != isinstance(value, str) and _text(value) == _text(wanted)


def _within(held: Span, bound: str, limit: Span | None) -> bool:
    if limit is None:
        return False
    if bound == "gt":
        return bool(held.low > limit.high)
    if bound == "gte":
        return bool(held.low >= limit.low)
    return bool(held.low < limit.low if bound == "lt" else held.low <= limit.high)


def _key(document: Mapping[str, Any], field: Field, largest_first: bool) -> Any:
    keys = [(0 if field.span else _rank(value, held), held.low) for value, _, held in _spans(document, field)]
    return (max if largest_first else min)(keys, default=None)


def _rank(value: Any, held: Span) -> int:
    """Numbers, dates and texts in one field, which no mapping keeps apart, come one kind after another."""
    return 2 if isinstance(held.low, str) else int(isinstance(value, str))


def _guessed(value: Any) -> Callable[[Any], Span | None] | None:
    if isinstance(value, bool):
        return _boolean
    if isinstance(value, (int, float)):
        return _guessed_number
    if isinstance(value, str):
        return _date if "-" in value and _date(value) else _guessed_keyword
    return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _keyword(value: Any, longest: int | None = None) -> Span | None:
    if isinstance(value, Mapping):
        return None
    text = _text(value)
    return Span(text, text) if longest is None or len(text) <= longest else None


def _guessed_keyword(value: Any) -> Span | None:
    return _keyword(value, _LONGEST_GUESSED)


def _boolean(value: Any) -> Span | None:
    meant = {True: True, False: False, "true": True, "false": False, "": False}
    if isinstance(value, (bool, str)) and value in meant:
        return Span(meant[value], meant[value])
    return None


def _number(kind: str, value: Any) -> Span | None:
    found = number(kind, value)
    return None if found is None else Span(found, found)


def _guessed_number(value: Any) -> Span | None:
    whole = number("long", value)  # exact, where a double has 53 bits
    return Span(whole, whole) if whole is not None and whole == int(whole) else _number("double", value)


def _date(value: Any) -> Span | None:
    if isinstance(value, (bool, Mapping)):
        return None
    found = dates.milliseconds(_text(value))
    return None if found is None else Span(*found)


_SPANS: Final[Mapping[str, Callable[[Any], Span | None]]] = {
    **{kind: partial(_number, kind) for kind in (*_WHOLE, "double", "float")},
    "boolean": _boolean,
    "date": _date,
    "keyword": _keyword,
}
