"""Which rows are meant, in one line of text: the filter of the dashboard, the API and the addresses of pages."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from outbox.documents import quoted
from outbox.errors import InvalidInput, shortened
from outbox.store.models import State


class Qualifier(NamedTuple):
    """What a word of the filter begins with. `parameter`: its name in addresses, `argument`: in statements."""

    name: str
    parameter: str
    argument: str
    example: str


QUALIFIERS: Final = (
    Qualifier("index", "index", "index", "contacts"),
    Qualifier("tenant", "tenant", "tenant", '"Acme Ltd"'),
    Qualifier("error", "errorType", "error_type", "poison"),
    Qualifier("field", "errorField", "error_field", "age"),
    Qualifier("id", "id", "id", "42"),
    Qualifier("document", "document", "document", "contact-123"),
    Qualifier("state", "state", "state", "dead"),
)
_NAMED: Final = {each.name: each for each in QUALIFIERS}
_ALL: Final = ", ".join(f"{name}:" for name in _NAMED)
_HIGHEST_ID: Final = 10**12

_NAME: Final = re.compile(r'[^\s:"]*:')
_IN_QUOTES: Final = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_WORD: Final = re.compile(r"\S*")
_PLAIN: Final = re.compile(r'[^\s"]\S*')


@dataclass(frozen=True, slots=True)
class RowFilter:
    """Rows must fit all that is given."""

    index: str | None = None
    tenant: str | None = None
    error: str | None = None  # its type; (none): of no type
    field: str | None = None  # which the error names; (none): it names none
    id: int | None = None
    document: str | None = None
    state: State | None = None

    @property
    def parameters(self) -> dict[str, str]:
        """For an address of the rows that fit."""
        return {each.parameter: str(value) for each, value in self._given()}

    @property
    def narrowing(self) -> dict[str, Any]:
        """As the tables are asked; without the state, which chooses the statement, and the tenant, which has many
        spellings."""
        return {each.argument: value for each, value in self._given() if each.name not in ("state", "tenant")}

    @property
    def words(self) -> list[str]:
        """What is written of it, word by word; without the state."""
        return [f"{each.name}:{_written(str(value))}" for each, value in self._given() if each.name != "state"]

    def _given(self) -> list[tuple[Qualifier, Any]]:
        return [(each, value) for each in QUALIFIERS if (value := getattr(self, each.name)) is not None]


def as_text(given: Mapping[str, str]) -> str:
    """The text of a filter whose parts come as parameters of an address; an empty one counts as not given.

    Raises `InvalidInput` for any other parameter.
    """
    names = {each.parameter: each.name for each in QUALIFIERS}
    if unknown := given.keys() - names:
        raise InvalidInput(f"there is no filter {shortened(min(unknown))}; there are {', '.join(names)}")
    return " ".join(f"{names[each]}:{_written(value)}" for each, value in given.items() if value)


def _written(value: str) -> str:
    return value if _PLAIN.fullmatch(value) and value.isprintable() else quoted(value)


def parse(text: str) -> RowFilter:
    """What a text such as `state:dead tenant:"Acme Ltd"` means. In quotes a value is as JSON has it.

    Raises `InvalidInput`, which says what is right, for a qualifier that there is not or that stands there twice, and
    for a value that it cannot have.
    """
    found: dict[str, Any] = {}
    rest = text.strip()
    while rest:
        named = _NAME.match(rest)
        if named is None:
            word = shortened(_first(rest))
            raise InvalidInput(f"say what {word} is, e.g. document:contact-123 for a document's id; there are {_ALL}")
        name = named[0][:-1].lower()
        if name not in _NAMED:
            raise InvalidInput(f"there is no qualifier {shortened(named[0])}; there are {_ALL}")
        if name in found:
            raise InvalidInput(f"{name}: stands there twice, and a row must fit all that is given: leave one out")
        value, rest = _value(_NAMED[name], rest[named.end() :])
        found[name] = _checked(name, value)
    return RowFilter(**found)


def _first(text: str) -> str:
    word = _WORD.match(text)
    return word[0] if word else ""


def _value(of: Qualifier, text: str) -> tuple[str, str]:
    """The value that a text begins with, and what is behind it."""
    example = f"{of.name}:{of.example}"
    if not text.startswith('"'):
        word = _first(text)
        if not word:
            raise InvalidInput(f"{of.name}: has no value; write it right behind the colon, e.g. {example}")
        return word, text[len(word) :].lstrip()
    in_quotes = _IN_QUOTES.match(text)
    if in_quotes is None:
        raise InvalidInput(f'the quotes of {of.name}: have no end; write {of.name}:"…", and \\" for a quote within')
    behind = text[in_quotes.end() :]
    if behind and not behind[0].isspace():
        raise InvalidInput(f"put a space between {shortened(in_quotes[0])} and {shortened(_first(behind))}")
    try:
        value: str = json.loads(in_quotes[0], strict=False)
        value.encode()
    except ValueError:
        raise InvalidInput(f"{of.name}: in quotes \\ begins an escape as in JSON: for itself write \\\\") from None
    if not value:
        raise InvalidInput(f"{of.name}: has no value, e.g. {example}")
    return value, behind.lstrip()


def _checked(name: str, value: str) -> str | int | State:
    if name == "state":
        if value not in list(State):
            raise InvalidInput(f"there is no state {shortened(value)}; there are {', '.join(State)}")
        return State(value)
    if name == "id":
        if not (value.isascii() and value.isdigit() and len(value) < 14 and 0 < int(value) <= _HIGHEST_ID):
            raise InvalidInput(f"id: takes the number of a row, e.g. id:42, not {shortened(value)}; for the id of a"
                               " document there is document:")  # fmt: skip
        return int(value)
    return value
