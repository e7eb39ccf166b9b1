"""Where a document of an entity belongs: its index and its `_id`, made of tenant and primary key.

Both are made twice, in Python and in SQL, and must agree to the letter: captured objects take the first way,
`INSERT … SELECT` and database triggers the second. An `_id` leads back to the primary key.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Enum,
    Integer,
    LargeBinary,
    String,
    Text,
    Uuid,
    and_,
    case,
    cast,
    func,
    literal,
    not_,
    or_,
    tuple_,
    type_coerce,
)
from sqlalchemy.dialects import registry
from sqlalchemy.engine import Dialect
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

from outbox import documents
from outbox.errors import ConfigurationError, InvalidName, shortened

MOST_PARAMETERS: Final = 30_000
"""In one statement. SQLite takes 32,766."""

SEPARATOR: Final = "|"
ESCAPE: Final = "\\"

_INDEX_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
_INDEX_TENANT_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789-"
_INTEGER = "-0123456789"
_UUID = "-0123456789abcdef"
_PREFIX = re.compile(r"([1-9][0-9]{0,2}):")


class Tenancy(enum.StrEnum):
    """How documents of several tenants are kept apart."""

    SHARED = "shared"  # the primary key alone is the _id
    PREFIXED = "prefixed"  # length of the tenant, tenant and primary key: 2:t1:7
    INDEX = "index"  # an index for each tenant: t1_contacts


# To look a member up in its class costs ten times as much, at each row.
SHARED: Final = Tenancy.SHARED
PREFIXED: Final = Tenancy.PREFIXED


class DocumentKey(NamedTuple):
    """Where a document belongs."""

    index_name: str
    document_id: str
    tenant_id: str | None


_SOME_UUID: Final = UUID(int=10)


@dataclass(frozen=True, slots=True)
class TextForm:
    """One column's values as text, and back. `sql` makes the same text of a column in the database."""

    to_text: Callable[[Any], str]
    from_text: Callable[[str], Any]  # ValueError for what it never made
    sql: Callable[[ColumnElement[Any]], ColumnElement[str]]
    short: bool = False  # nothing but digits, letters and dashes, and few of them
    members: type[enum.Enum] | None = None  # of an enum
    characters: str = ""  # all that the text may be made of; empty: any


def text_form(type_: TypeEngine[Any], what: str) -> TextForm:
    """The text form of a column's type. Raises `ConfigurationError` for types that have no obvious one."""
    if isinstance(type_, (TypeDecorator, Enum)):
        impl = type_.impl_instance if isinstance(type_, TypeDecorator) else type_
        if isinstance(type_, TypeDecorator) and not isinstance(impl, (Integer, String, Uuid)):
            raise _unsupported(type_, what)
        return _as_stored(type_, impl)
    if isinstance(type_, Integer):
        return TextForm(_int_text, _int_value, _text_sql, short=True, characters=_INTEGER)
    if isinstance(type_, Uuid):
        read = UUID if type_.as_uuid else _uuid_text
        return TextForm(_uuid_text, read, _uuid_sql, short=True, characters=_UUID)
    if isinstance(type_, String):
        return TextForm(_string_text, str, _text_sql)
    raise _unsupported(type_, what)


def text_meant(form: TextForm, value: object) -> str | None:
    """The text of what a person or a program means by a value of a column: a UUID with or without dashes, a member of
    an enum by its value, 007. None if the column has no such value."""
    for reading in (_stored_text, _value, lambda _, given: UUID(str(given)), _member):
        try:
            text = form.to_text(reading(form, value))
            form.from_text(text)  # some types write what they cannot read
        except Exception:  # whatever a type of the application raises for what is none of its values
            continue
        return text
    return None


def _stored_text(form: TextForm, value: object) -> Any:
    if isinstance(value, str) and form.to_text(made := form.from_text(value)) == value:
        return made
    raise ValueError


def _value(form: TextForm, value: object) -> Any:
    return documents.tenant_text(value) if form.from_text is str else value


def _member(form: TextForm, value: object) -> Any:
    if form.members is None:
        raise ValueError
    return next(each for each in form.members if value in (each.value, str(each.value)))


def _unsupported(type_: TypeEngine[Any], what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what} is of type {type_!r}, which has no text form for an _id; integers, strings, enums and UUIDs have one"
    )


def _as_stored(type_: TypeEngine[Any], impl: TypeEngine[Any]) -> TextForm:
    """Types that translate values: the text is what they write to the database (to one without types of its own)."""
    dialect = DefaultDialect()
    write: Callable[[Any], Any] = type_.dialect_impl(dialect).bind_processor(dialect) or _unchanged
    read: Callable[[Any], Any] = type_.dialect_impl(dialect).result_processor(dialect, None) or _unchanged

    def from_text(text: str) -> Any:
        try:
            return read(_int_value(text) if isinstance(impl, Integer) else text)
        except LookupError as error:  # an enum without that name
            raise ValueError(str(error)) from None

    members = type_.enum_class if isinstance(type_, Enum) else None
    sql = _digits_sql if isinstance(impl, Uuid) or _is_native_uuid_of_digits(type_, write) else _text_sql
    return TextForm(lambda value: _string_text(write(value)), from_text, sql, members=members)


def _is_native_uuid_of_digits(type_: TypeEngine[Any], write: Callable[[Any], Any]) -> bool:
    """Of a type that writes UUIDs without dashes, and to PostgreSQL native ones, which are read with dashes: as in the
    recipe of SQLAlchemy's documentation ("Backend-agnostic GUID Type")."""
    if not isinstance(type_, TypeDecorator):
        return False
    native: type[Dialect] = registry.load("postgresql")  # only now: it takes memory that few need
    if not isinstance(type_.load_dialect_impl(native()), Uuid):
        return False
    try:
        return bool(write(_SOME_UUID) == _SOME_UUID.hex)
    except Exception:  # whatever a type of the application raises for what is none of its values
        return False


def _unchanged(value: Any) -> Any:
    return value


def _string_text(value: Any) -> str:
    # As drivers write it: an enum that is a text as well has another one for `str`.
    return value if type(value) is str else str.__str__(value) if isinstance(value, str) else str(value)


def _int_text(value: Any) -> str:
    return str(int(value))


def _int_value(text: str) -> int:
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise ValueError("more than 64 bits")
    return value


def _uuid_text(value: Any) -> str:
    return str(value if isinstance(value, UUID) else UUID(str(value)))


def _uuid_sql(column: ColumnElement[Any]) -> ColumnElement[str]:
    """With dashes, from a column of 32 hexadecimal digits (SQLite) as well as from a native one."""
    digits = _digits_sql(column)
    groups = [func.substr(digits, start, length) for start, length in ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))]
    return _joined("-", groups)


def _digits_sql(column: ColumnElement[Any]) -> ColumnElement[str]:
    return func.lower(func.replace(cast(column, Text), "-", ""), type_=Text)


def _text_sql(column: ColumnElement[Any]) -> ColumnElement[str]:
    return cast(column, Text)


def _joined(separator: str, parts: Sequence[ColumnElement[Any]]) -> ColumnElement[str]:
    return reduce(lambda left, right: left.concat(literal(separator, Text)).concat(right), parts)


def join(parts: Sequence[str]) -> str:
    """The text of a primary key: of one column as it is, of several joined by `|`."""
    if len(parts) == 1:
        return parts[0]
    return SEPARATOR.join(part.replace(ESCAPE, ESCAPE * 2).replace(SEPARATOR, ESCAPE + SEPARATOR) for part in parts)


def split(text: str, number: int) -> list[str] | None:
    """What `join` made the text of; None if it made it of no `number` parts."""
    if number == 1:
        return [text]
    parts, part, characters = [], "", iter(text)
    for character in characters:
        if character == SEPARATOR:
            parts.append(part)
            part = ""
        elif character == ESCAPE:
            part += next(characters, "")
        else:
            part += character
    parts.append(part)
    return parts if len(parts) == number and join(parts) == text else None


def join_sql(parts: Sequence[ColumnElement[str]]) -> ColumnElement[str]:
    """What `join` does, in SQL."""
    if len(parts) == 1:
        return parts[0]
    escaped = [
        func.replace(func.replace(part, ESCAPE, ESCAPE * 2), SEPARATOR, ESCAPE + SEPARATOR, type_=Text)
        for part in parts
    ]
    return _joined(SEPARATOR, escaped)


def place(index: str, tenancy: Tenancy, tenant_id: str | None, id_text: str, *, short: bool = False) -> DocumentKey:
    """Index and `_id` of a document. Raises `InvalidName` for a tenant or an id that Elasticsearch does not take.

    A tenant that becomes part of an index name must match `^[a-z0-9][a-z0-9-]{0,62}$`. `short`: the text of the key is
    always legal, see `TextForm`.
    """
    if tenancy is not SHARED:
        if tenant_id is None:
            raise InvalidName(f"a document of {index} has no tenant, which is part of its place; set one")
        if tenancy is Tenancy.INDEX:
            _check_index_tenant(tenant_id)
            index = f"{tenant_id}_{index}"
            documents.check_index_name(index)
        else:
            _check_tenant(tenant_id)
            id_text, short = f"{len(tenant_id)}:{tenant_id}:{id_text}", False
    elif tenant_id is not None:
        _check_tenant(tenant_id)
    if not short:
        documents.check_document_id(id_text)
    return DocumentKey(index, id_text, tenant_id)


_check_tenant = lru_cache(maxsize=4_096)(documents.check_tenant_id)


@lru_cache(maxsize=4_096)
def _check_index_tenant(tenant_id: str) -> None:
    documents.check_tenant_id(tenant_id)
    if not _INDEX_TENANT.match(tenant_id):
        raise InvalidName(
            f"tenant id {shortened(tenant_id)} cannot be part of an index name: 1 to 63 lower-case letters, digits "
            "and '-', beginning with a letter or digit; use tenancy 'prefixed' for other tenants"
        )


def is_tenant_index(name: str, index: str, tenants: Collection[str] | None = None) -> bool:
    """Whether `name` is the index of some tenant, or of one of those, for entities of `index`."""
    its = name[: -len(index) - 1]
    return name.endswith(f"_{index}") and bool(_INDEX_TENANT.match(its)) and (tenants is None or its in tenants)


def tenant_of(tenancy: Tenancy, index: str, index_name: str, document_id: str) -> str | None:
    """The tenant that is part of a document's place; None if the tenancy makes it none of it."""
    if tenancy is Tenancy.INDEX:
        return index_name[: -len(index) - 1] if is_tenant_index(index_name, index) else None
    text = id_text_of(tenancy, document_id) if tenancy is Tenancy.PREFIXED else None
    return None if text is None else document_id[document_id.index(":") + 1 : -len(text) - 1]


def id_text_of(tenancy: Tenancy, document_id: str) -> str | None:
    """The text of the primary key in an `_id`; None if the tenancy makes no such `_id`."""
    if tenancy is not PREFIXED:
        return document_id
    found = _PREFIX.match(document_id)
    end = found.end() + int(found[1]) if found else 0
    return document_id[end + 1 :] if found and document_id[end : end + 1] == ":" else None


def among(columns: Sequence[Any], wanted: Sequence[tuple[Any, ...]]) -> ColumnElement[bool]:
    """Rows with one of these keys, in SQL."""
    compared = [wide(column) for column in columns]
    if len(compared) == 1:
        condition: ColumnElement[bool] = compared[0].in_([identity[0] for identity in wanted])
    else:
        condition = tuple_(*compared).in_(wanted)
    return condition


def wide(column: Any) -> ColumnElement[Any]:
    """A column to be compared with integers of any size: PostgreSQL refuses those that are too large for its type."""
    return type_coerce(column, BigInteger) if isinstance(column.type, Integer) else column


def portions(
    wanted: Sequence[tuple[Any, ...]], width: int, most: int = MOST_PARAMETERS
) -> Iterator[Sequence[tuple[Any, ...]]]:
    """Keys of `width` columns, as many at a time as one statement takes, and `most` at most."""
    step = min(most, MOST_PARAMETERS // width)
    return (wanted[start : start + step] for start in range(0, len(wanted), step))


def index_sql(index: str, tenancy: Tenancy, tenant: ColumnElement[str] | None) -> ColumnElement[str]:
    """The index name, in SQL. NULL where the tenant must not become part of one."""
    if tenancy is not Tenancy.INDEX or tenant is None:
        return literal(index, Text)
    legal = and_(
        func.length(tenant).between(1, 63),
        func.ltrim(tenant, _INDEX_TENANT_CHARACTERS) == "",
        func.substr(tenant, 1, 1) != "-",
    )
    return case((legal, tenant.concat(literal(f"_{index}", Text))))


def document_id_sql(
    tenancy: Tenancy, tenant: ColumnElement[str] | None, id_text: ColumnElement[str]
) -> ColumnElement[str]:
    """The `_id`, in SQL."""
    if tenancy is not Tenancy.PREFIXED or tenant is None:
        return id_text
    return _joined(":", [cast(func.length(tenant), Text), tenant, id_text])


def refused_sql(
    tenancy: Tenancy,
    index: ColumnElement[str],
    document_id: ColumnElement[str],
    tenant: ColumnElement[str] | None,
    *,
    short_key: bool,
    short_tenant: bool,
) -> ColumnElement[bool]:
    """Whether a row can have no place, in SQL: what `place` refuses, but of the unprintable characters in a tenant only
    the control characters of ASCII. Short keys and tenants are those of types whose text is always legal."""
    refused: list[ColumnElement[bool]] = [document_id.is_(None)]
    if tenancy is Tenancy.INDEX:
        refused.append(index.is_(None))
    elif tenant is not None and not short_tenant:
        refused += [not_(func.length(tenant).between(1, 255)), _HasControlCharacters(tenant)]
    if not short_key or not (short_tenant or tenancy is not Tenancy.PREFIXED):
        refused += [not_(_Size(document_id).between(1, documents.MAX_ID_BYTES)), _HasNul(document_id)]
    return or_(*refused)


class _Size(FunctionElement[int]):
    """Of a text in bytes of UTF-8."""

    type = Integer()
    inherit_cache = True


class _HasNul(FunctionElement[bool]):
    """Whether there is U+0000 in a text, which PostgreSQL takes into none."""

    type = Boolean()
    inherit_cache = True


class _HasControlCharacters(FunctionElement[bool]):
    """Whether there is one of ASCII in a text."""

    type = Boolean()
    inherit_cache = True


@compiles(_Size)
def _size(element: _Size, compiler: Any, **options: Any) -> str:
    return str(compiler.process(func.length(cast(_only(element), LargeBinary)), **options))


@compiles(_Size, "postgresql")
def _size_of_postgresql(element: _Size, compiler: Any, **options: Any) -> str:
    return str(compiler.process(func.octet_length(_only(element)), **options))


@compiles(_HasNul)
def _has_nul(element: _HasNul, compiler: Any, **options: Any) -> str:
    return str(compiler.process(func.instr(_only(element), func.char(0)) > 0, **options))


@compiles(_HasNul, "postgresql")
def _has_nul_of_postgresql(*_: Any, **__: Any) -> str:
    return "false"


@compiles(_HasControlCharacters)
def _has_control_characters(element: _HasControlCharacters, compiler: Any, **options: Any) -> str:
    column = _only(element)
    some = literal("*[", Text).concat(func.char(1, type_=Text)).concat("-").concat(func.char(31, 127)).concat("]*")
    either = or_(column.op("GLOB", is_comparison=True)(some), func.instr(column, func.char(0)) > 0)
    return str(compiler.process(either, **options))


@compiles(_HasControlCharacters, "postgresql")
def _has_control_characters_of_postgresql(element: _HasControlCharacters, compiler: Any, **options: Any) -> str:
    return str(
        compiler.process(_only(element).op("~", is_comparison=True)(literal("[\x01-\x1f\x7f]", Text)), **options)
    )


def _only(element: FunctionElement[Any]) -> ColumnElement[Any]:
    (column,) = element.clauses
    return column
