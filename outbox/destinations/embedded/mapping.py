"""Pure: what the fields of a mapping take, for destinations that have to check it themselves.

As lenient as Elasticsearch: a number may come as a string, whole numbers lose their fraction, any field may be null,
missing or an array. What is not checked is taken: types other than those below, and dates with a `format` of their
own. `dynamic: strict`, `enabled: false`, `ignore_malformed` and `ignore_above` mean what they mean there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final

import orjson

from outbox.destinations.embedded import dates

_PARSING: Final = "document_parsing_exception"
_STRICT: Final = "strict_dynamic_mapping_exception"

_WHOLE = {"long": 63, "integer": 31, "short": 15, "byte": 7}
_FRACTIONS = {"double": math.inf, "float": 3.4028235677973366e38}  # from which on it is infinite
_OF_NAN = {"integer", "short", "byte"}  # which take it for no value
_LONGEST_TERM = 32_766

# The two parsers behind Elasticsearch's numbers: BigDecimal's for long, Double's for the others.
_DECIMAL = re.compile(r"(?P<number>[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,9})?)")
_DOUBLE = re.compile(r"\s*(?P<number>[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,9})?)[fFdD]?\s*")


def fault(mappings: Mapping[str, Any], document: Mapping[str, Any]) -> tuple[str, str] | None:
    """Why Elasticsearch would refuse the document under these mappings, as (error type, reason); None if it would not.

    >>> fault({"properties": {"age": {"type": "long"}}}, {"age": "36"})
    >>> fault({"properties": {"age": {"type": "long"}}}, {"age": "old"})[0]
    'document_parsing_exception'
    """
    return _object(mappings, document, "", mappings.get("dynamic", True))


def _object(rule: Mapping[str, Any], value: Mapping[str, Any], path: str, dynamic: Any) -> tuple[str, str] | None:
    if rule.get("enabled") is False:
        return None
    fields = rule.get("properties") or {}
    for key, item in value.items():
        name, dot, rest = key.partition(".")
        content = {rest: item} if dot else item  # "a.b": 1 means the same as "a": {"b": 1}
        field = f"{path}{name}"
        if name not in fields:
            if str(dynamic).lower() == "strict":
                return _STRICT, f"mapping set to strict, dynamic introduction of [{field}] is not allowed"
            continue
        found = _field(fields[name], content, field, dynamic)
        if found:
            return found
    return None


def _field(rule: Mapping[str, Any], value: Any, path: str, dynamic: Any) -> tuple[str, str] | None:
    """One field's value; arrays are as many values, at any depth."""
    if value is None:
        return None
    if isinstance(value, list):
        return next((found for item in value if (found := _field(rule, item, path, dynamic))), None)
    kind = rule.get("type", "object")
    if kind in ("object", "nested"):
        if isinstance(value, dict):
            return _object(rule, value, f"{path}.", rule.get("dynamic", dynamic))
        if rule.get("enabled") is False:
            return None
        return _PARSING, f"object mapping for [{path}] tried to parse field [{path}] as object, but found a value"
    takes = _TAKES.get(kind)
    if takes is None or takes(rule, value):
        return None
    if rule.get("ignore_malformed") in (True, "true") and not isinstance(value, dict):
        return None
    return _PARSING, f"failed to parse field [{path}] of type [{kind}]: {_preview(value)}"


def _preview(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def number(kind: str, value: Any) -> Decimal | float | None:
    """What a field of that kind of numbers takes a value for, its fraction included; None: for no number of the kind.

    >>> number("double", "19.990"), number("long", "36.7"), number("long", "3_6")
    (19.99, Decimal('36.7'), None)
    """
    if isinstance(value, str):
        match = _DECIMAL.fullmatch(value) if kind == "long" else _DOUBLE.fullmatch(value)
        if not match:
            return None
        value = Decimal(match["number"])
    if isinstance(value, (bool, dict)):
        return None
    if kind in _FRACTIONS:
        value = float(value)
        return value if abs(value) < _FRACTIONS[kind] else None
    # Never make an integer of 1e999999999, which is infinite as a float.
    return value if math.isfinite(value) and -(2 ** _WHOLE[kind]) <= int(value) < 2 ** _WHOLE[kind] else None


def _takes_number(kind: str) -> Callable[[Mapping[str, Any], Any], bool]:
    def takes(_rule: Mapping[str, Any], value: Any) -> bool:
        if isinstance(value, str) and (value == "" or (kind in _OF_NAN and value.strip() == "NaN")):
            return True
        return number(kind, value) is not None

    return takes


def _takes_boolean(_rule: Mapping[str, Any], value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value in ("true", "false", ""))


def _takes_date(rule: Mapping[str, Any], value: Any) -> bool:
    """strict_date_optional_time||epoch_millis, the default format."""
    if isinstance(value, (bool, dict)):
        return False
    if "format" in rule:
        return True
    text = value if isinstance(value, str) else str(value) if isinstance(value, int) else orjson.dumps(value).decode()
    return dates.milliseconds(text) is not None


def _takes_text(_rule: Mapping[str, Any], value: Any) -> bool:
    return not isinstance(value, dict)


def _takes_keyword(rule: Mapping[str, Any], value: Any) -> bool:
    if isinstance(value, str) and len(value) > _LONGEST_TERM // 4 and "ignore_above" not in rule:
        return len(value.encode()) <= _LONGEST_TERM
    return not isinstance(value, dict)


_TAKES: Final[dict[str, Callable[[Mapping[str, Any], Any], bool]]] = {
    **{kind: _takes_number(kind) for kind in (*_WHOLE, *_FRACTIONS)},
    "boolean": _takes_boolean,
    "date": _takes_date,
    "keyword": _takes_keyword,
    "text": _takes_text,
}
