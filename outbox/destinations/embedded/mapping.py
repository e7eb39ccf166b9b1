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
_LONGEST_TERM = 32_766

# The two parsers behind Elasticsearch's numbers: BigDecimal's for long, Double's for the others.
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,9})?")
_DOUBLE = re.compile(r"\s*([+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,9})?)[fFdD]?\s*")


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


def _takes_whole(kind: str) -> Callable[[Mapping[str, Any], Any], bool]:
    least, most = -(2 ** _WHOLE[kind]), 2 ** _WHOLE[kind] - 1

    def takes(_rule: Mapping[str, Any], value: Any) -> bool:
        if isinstance(value, (bool, dict)):
            return False
        if isinstance(value, str):
            if value == "" or (kind != "long" and value.strip() == "NaN"):
                return True
            match = _DECIMAL.fullmatch(value) if kind == "long" else _DOUBLE.fullmatch(value)
            if not match:
                return False
            value = Decimal(match[0] if kind == "long" else match[1])
            if value.adjusted() > 20:  # never make an integer of 1e999999999
                return False
        return bool(math.isfinite(value) and least <= int(value) <= most)

    return takes


def _takes_fraction(kind: str) -> Callable[[Mapping[str, Any], Any], bool]:
    infinite = _FRACTIONS[kind]

    def takes(_rule: Mapping[str, Any], value: Any) -> bool:
        if isinstance(value, (bool, dict)):
            return False
        if isinstance(value, str):
            if value == "":
                return True
            match = _DOUBLE.fullmatch(value)
            if not match:
                return False
            value = float(match[1])
        return bool(abs(value) < infinite)

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
    **{kind: _takes_whole(kind) for kind in _WHOLE},
    **{kind: _takes_fraction(kind) for kind in _FRACTIONS},
    "boolean": _takes_boolean,
    "date": _takes_date,
    "keyword": _takes_keyword,
    "text": _takes_text,
}
