"""Pure: words of a text, and which other words one of them may have been meant for."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from outbox.destinations.passages import BEGIN, END

_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """The different words, in lower case and in their order: letters and digits, as SQLite's unicode61 cuts them."""
    return list(dict.fromkeys(_WORD.findall(unicodedata.normalize("NFC", text.lower()))))


def folded(word: str) -> str:
    """Without diacritics.

    >>> folded("jürgen")
    'jurgen'
    """
    return "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))


class Marker:
    """Marks what a search has found in a text: words that begin with one of `words`, and those of `near`, folded."""

    def __init__(self, words: Iterable[str], near: Iterable[str]) -> None:
        self._beginnings, self._near = tuple(map(folded, words)), frozenset(near)

    def marked(self, text: str) -> str:
        """The text with `BEGIN` and `END` around each such word."""
        return _WORD.sub(self._mark, unicodedata.normalize("NFC", text))

    def _mark(self, match: re.Match[str]) -> str:
        word = folded(match[0].lower())
        found = word.startswith(self._beginnings) if self._beginnings else False
        return f"{BEGIN}{match[0]}{END}" if found or word in self._near else match[0]


def errors_allowed(word: str) -> int:
    """How many letters of a word may be wrong for it still to be understood, by Elasticsearch's rule (`AUTO`)."""
    return 0 if len(word) < 3 else 1 if len(word) <= 5 else 2


def edits(one: str, other: str, most: int) -> int:
    """Letters to insert, drop, change or swap with their neighbour to make one word the other; `most` + 1 if more.

    >>> edits("lovelace", "lovlaec", 2), edits("ada", "adm", 1), edits("ada", "bob", 1)
    (2, 1, 2)
    """
    if abs(len(one) - len(other)) > most:
        return most + 1
    before_last: list[int] = []
    last = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, candidate in enumerate(other, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != candidate))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == candidate:
                cost = min(cost, before_last[j - 2] + 1)
            row.append(cost)
        if min(row) > most:
            return most + 1
        before_last, last = last, row
    return min(last[-1], most + 1)
