"""What a document, an id and a name may be: checked and serialised once, at write.

The relay splices the stored text into its requests as it is, so nothing may reach the table that means something
else on the wire. The limits of ids and index names are those of Elasticsearch (`MetadataCreateIndexService`,
`IndexRequest`); the ones of JSON text are those of its parser.
"""

from __future__ import annotations

import enum
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import orjson

from outbox.errors import InvalidDocument, InvalidName, shortened

TENANT_FIELD = "tenantId"
"""The field of a document that names its tenant."""

MAX_ID_BYTES = 512
MAX_INDEX_NAME_BYTES = 255
MAX_DEPTH = 100
DEEPEST: Final = 250
"""Levels of JSON that are read, whoever has written them. orjson, which writes what partial updates make, ends after
254; Python's parser, and what walks through documents, after some 990 less the calls above. Elasticsearch: 1,000."""

_ILLEGAL_IN_INDEX = re.compile(r'[\\/*?"<>| ,#:\x00-\x1f\x7f]')
_UUID_DIGITS = re.compile("[0-9a-f]{32}", re.IGNORECASE)
_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_SUBCLASS


class _Unfit(Exception):
    """A value that cannot be stored; `path` is completed on the way out."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path: list[str] = []


def serialise(document: Mapping[str, Any], *, max_bytes: int) -> bytes:
    """The document as JSON on one line, in UTF-8, in the form the relay will send it.

    Accepts mappings, sequences, `str`, `int` (64 bits), `float`, `bool`, `None`, `datetime` and `date` (as ISO
    8601), `time`, `UUID`, `Decimal` (as a number, all digits kept) and `Enum` (its value), and their subclasses.
    Raises `InvalidDocument` that names the field, for NaN and infinities, NUL, lone surrogates, keys that are no
    strings, anything else, and for more than `max_bytes` bytes.
    """
    if not isinstance(document, Mapping):
        raise InvalidDocument(f"a document must be a mapping, this is {shortened(document)}; pass a dict")
    try:
        data = orjson.dumps(document, default=_default, option=_OPTIONS)
    except orjson.JSONEncodeError as error:
        _say_where(document)
        raise InvalidDocument(f"the document cannot become JSON: {error}") from None
    if _may_hide_something(data):
        _say_where(document)
    if b"\n" in data:
        raise InvalidDocument("the document contains a prepared fragment with a line break; pass values, not JSON text")
    if len(data) > max_bytes:
        raise InvalidDocument(
            f"the document has {len(data):,} bytes of JSON, more than OUTBOX_MAX_DOCUMENT_BYTES={max_bytes:,}; "
            "send fewer or shorter fields, or raise the setting"
        )
    return data


def _may_hide_something(data: bytes) -> bool:
    """Whether orjson may have accepted what must be refused: it writes NaN as null, escapes NUL, and nests deeply.

    Looking at the text costs a tenth of a look at every value, which only the few documents that may need it get.
    """
    if b"\\" in data and b"\\u0000" in data:  # the search for one byte costs next to nothing
        return True
    return b"null" in data or data.count(b"{") + data.count(b"[") > MAX_DEPTH


def _say_where(document: Mapping[str, Any]) -> None:
    try:
        _check(document, 0)
    except _Unfit as unfit:
        field = ".".join(reversed(unfit.path))
        raise InvalidDocument(f"document field {shortened(field)}: {unfit}") from None


def _check(value: Any, depth: int) -> None:
    """Raise `_Unfit` for what orjson accepts and changes, or refuses without saying where."""
    if isinstance(value, str):
        if "\x00" in value:
            raise _Unfit("contains NUL (U+0000), which search engines and databases mangle; remove it")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise _Unfit("contains a lone surrogate, which is no Unicode text; decode it properly") from None
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise _Unfit(f"is {value}, which JSON cannot express; use None or leave the field out")
    elif value is None or isinstance(value, int):
        if value is not None and not -(2**63) <= value < 2**64:
            raise _Unfit("is an integer of more than 64 bits; send it as a string")
    elif isinstance(value, Decimal):
        if not value.is_finite():
            raise _Unfit(f"is {value}, which JSON cannot express; use None or leave the field out")
    elif isinstance(value, enum.Enum):
        _check(value.value, depth)
    elif isinstance(value, Mapping):
        if depth >= MAX_DEPTH:
            raise _Unfit(f"is nested more than {MAX_DEPTH} levels deep (or contains itself)")
        for key, item in value.items():
            if not isinstance(key, str):
                raise _Unfit(f"has the key {shortened(key)}, which is no string; use str()")
            try:
                _check(key, depth)
                _check(item, depth + 1)
            except _Unfit as unfit:
                unfit.path.append(key)
                raise
    elif isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        if depth >= MAX_DEPTH:
            raise _Unfit(f"is nested more than {MAX_DEPTH} levels deep (or contains itself)")
        for position, item in enumerate(value):
            try:
                _check(item, depth + 1)
            except _Unfit as unfit:
                unfit.path.append(str(position))
                raise
    elif isinstance(value, time) and value.tzinfo is not None:
        raise _Unfit("is a time with a time zone, which has no JSON form; use a datetime, or text")
    elif not isinstance(value, (date, time, UUID)):  # a datetime is a date
        raise _Unfit(
            f"is of type {type(value).__name__}, which has no JSON form; convert it to str, int, float, list or dict"
        )


def _default(value: Any) -> Any:
    """What orjson does not write by itself."""
    if isinstance(value, Decimal) and value.is_finite():
        return orjson.Fragment(str(value))
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, str):  # subclasses, passed through so that none of them is written in a way of its own
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, date) or (
        isinstance(value, time) and value.tzinfo is None
    ):  # subclasses, as orjson writes them
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return list(value)
    raise TypeError(f"type is not JSON serializable: {type(value).__name__}")


def check_document_id(document_id: str) -> None:
    """Raises `InvalidName` unless it is a non-empty string of at most 512 bytes without NUL or surrogates."""
    if not isinstance(document_id, str):
        raise InvalidName(f"document id {shortened(document_id)} is no string; use str()")
    if not document_id:
        raise InvalidName("the document id is empty; flush the session first if it comes from the database")
    if document_id.isascii() and len(document_id) <= MAX_ID_BYTES and "\x00" not in document_id:
        return
    size = _utf8_size("document id", document_id)
    if size > MAX_ID_BYTES:
        raise InvalidName(
            f"document id {shortened(document_id)} has {size} bytes; Elasticsearch allows {MAX_ID_BYTES}; hash it"
        )


def check_index_name(name: str) -> None:
    """Raises `InvalidName` unless Elasticsearch accepts it as the name of an index."""
    if not isinstance(name, str):
        raise InvalidName(f"index name {shortened(name)} is no string")
    _check_index_name(name)


@lru_cache(maxsize=1_024)  # an application uses a few names again and again
def _check_index_name(name: str) -> None:
    if not name or name in (".", ".."):
        raise InvalidName(f"index name {shortened(name)} is not allowed; use letters, e.g. 'contacts'")
    if name != name.lower():
        raise InvalidName(
            f"index name {shortened(name)} has upper-case letters (Elasticsearch allows lower case only); "
            f"use {shortened(name.lower())}"
        )
    if name[0] in "-_+.":
        raise InvalidName(f"index name {shortened(name)} starts with {name[0]!r}; start it with a letter")
    if illegal := _ILLEGAL_IN_INDEX.search(name):
        raise InvalidName(f"index name {shortened(name)} contains {illegal[0]!r}; use letters, digits and '-'")
    # 11 bytes are left for the "-000001" of the physical index, and for its growth.
    if _utf8_size("index name", name) > MAX_INDEX_NAME_BYTES - 11:
        raise InvalidName(f"index name {shortened(name)} is longer than {MAX_INDEX_NAME_BYTES - 11} bytes")


def check_tenant_id(tenant_id: str | None) -> None:
    """Raises `InvalidName` unless it is None or a printable string of 1 to 255 characters."""
    if tenant_id is None:
        return
    if not isinstance(tenant_id, str):
        raise InvalidName(f"tenant id {shortened(tenant_id)} is no string; use str()")
    if not 0 < len(tenant_id) <= 255 or not tenant_id.isprintable():
        raise InvalidName(f"tenant id {shortened(tenant_id)} must be 1 to 255 printable characters")


def tenant_text(tenant: object) -> str:
    """A tenant as it is written beside a row: a text as it is, a UUID with dashes, an integer in digits, a member of an
    enum by its value. Raises `InvalidName` for anything else, and for a text that is no tenant id."""
    text = _tenant_text(tenant)
    check_tenant_id(text)
    return text


def _tenant_text(tenant: object) -> str:
    if isinstance(tenant, enum.Enum):
        return _tenant_text(tenant.value)
    if isinstance(tenant, UUID) or (isinstance(tenant, int) and not isinstance(tenant, bool)):
        return str(tenant)
    if isinstance(tenant, str):
        return str.__str__(tenant)
    raise InvalidName(
        f"tenant id {shortened(tenant)} is of type {type(tenant).__name__}; pass text, a UUID, an integer or a member "
        "of an enum"
    )


def tenant_spellings(tenant: object) -> tuple[str, ...]:
    """The texts that mean a tenant, first the one that was given: all spellings of a UUID are one tenant, and so are
    the value of an enum's member and its name. Raises `InvalidName` for a value of another type."""
    texts = [_tenant_text(tenant), *([tenant.name] if isinstance(tenant, enum.Enum) else [])]
    return tuple(dict.fromkeys(spelling for text in texts for spelling in (text, *_uuid_spellings(text))))


def same_tenant(text: str) -> str:
    """The same for all spellings of a tenant: the digits of a UUID, any other text as it is."""
    digits = text.removeprefix("urn:uuid:").strip("{}").replace("-", "")
    return digits.lower() if _UUID_DIGITS.fullmatch(digits) else text


def _uuid_spellings(text: str) -> tuple[str, ...]:
    digits = same_tenant(text)
    if not _UUID_DIGITS.fullmatch(digits):
        return ()
    dashed = str(UUID(digits))
    return dashed, digits, dashed.upper(), digits.upper()


def _utf8_size(what: str, text: str) -> int:
    if "\x00" in text:
        raise InvalidName(f"{what} {shortened(text)} contains NUL (U+0000); remove it")
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise InvalidName(f"{what} {shortened(text)} contains a lone surrogate; decode it properly") from None


# -- read back -----------------------------------------------------------------------------------------------------


class Numeral(str):
    """A number of JSON as it was written: no float has all digits of a long decimal."""

    __slots__ = ()


def read_exactly(text: str, number: Callable[[str], Any] = Numeral) -> Any:
    """JSON as Python has it, but for its numbers, which `number` makes of their text. Raises `ValueError`.

    What is too deep is refused before: at the end of the stack, finalizers that happen to be due fail, too.
    """
    if is_too_deep(text):
        raise ValueError(f"nested more than {DEEPEST} levels deep")
    return json.loads(text, parse_float=number, parse_int=number, parse_constant=_refuse_constant)


def is_too_deep(text: str) -> bool:
    """Whether JSON has more than `DEEPEST` levels: one pass for each level, since a call for each could fail.

    Raises `ValueError` for what is no JSON, if it may have as many.
    """
    if text.count("{") + text.count("[") <= DEEPEST:  # as nearly always
        return False
    level = [orjson.loads(text)]
    for _ in range(DEEPEST):
        inner = [item for each in level for item in (each.values() if isinstance(each, dict) else each)]
        level = [each for each in inner if isinstance(each, (dict, list))]
    return bool(level)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def as_json(value: Any, shown: Callable[[str], bool] = str.isprintable, *, below: str = "") -> str:
    """JSON of what `read_exactly` has read, each digit as it was; characters that are not `shown` are escaped.

    `below`: a line break, to have each member on a line of its own.
    """
    if isinstance(value, Numeral):
        return str(value)
    if isinstance(value, str):
        return quoted(value, shown)
    inner = below and f"{below}  "
    if isinstance(value, dict):
        brackets = "{}"
        parts = [f"{quoted(name, shown)}: {as_json(each, shown, below=inner)}" for name, each in value.items()]
    elif isinstance(value, list):
        brackets = "[]"
        parts = [as_json(each, shown, below=inner) for each in value]
    else:
        return json.dumps(value)
    if not (parts and below):
        return f"{brackets[0]}{', '.join(parts)}{brackets[1]}"
    return f"{brackets[0]}{inner}{f',{inner}'.join(parts)}{below}{brackets[1]}"


def quoted(text: str, shown: Callable[[str], bool] = str.isprintable) -> str:
    """A text as JSON has it; characters that are not `shown` are escaped."""
    return "".join(each if shown(each) else json.dumps(each)[1:-1] for each in json.dumps(text, ensure_ascii=False))
