"""Pure: passages of texts in which what was found is marked, and fields of documents by their paths."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

BEGIN: Final = "\ufdd0"
END: Final = "\ufdd1"
"""Around what was found, in a marked text: no characters, and not of those that OpenSearch cuts off at both ends."""

LONGEST: Final = 200
"""Characters of a passage: a longer text is cut."""

_BEFORE: Final = 60
_NOTHING: Final = object()


def passage(marked: Iterable[str]) -> str:
    """Of marked texts, one passage as HTML: from a little before the first mark on, if not all of the text fits.

    >>> passage(["\\ufdd0Ada\\ufdd1 & Grace"])
    '<mark>Ada</mark> &amp; Grace'
    """
    text = next((each for each in marked if BEGIN in each), "")
    if len(text) - text.count(BEGIN) - text.count(END) > LONGEST:
        text = _cut(text)
    escaped = html.escape(text)
    return escaped.replace(BEGIN, "<mark>").replace(END, "</mark>")


def _cut(text: str) -> str:
    first = text.index(BEGIN)
    begin = 0 if first <= _BEFORE else first - _BEFORE
    if begin and " " in text[begin:first]:
        begin = text.index(" ", begin, first) + 1
    end = begin + LONGEST
    if end < len(text) and " " in text[first + 1 : end]:
        end = text.rindex(" ", first + 1, end)
    cut = text[begin:end]
    if cut.count(BEGIN) > cut.count(END):
        cut += END
    return f"{'…' if begin else ''}{cut}{'…' if end < len(text) else ''}"


def values_at(document: Any, path: str) -> Iterator[Any]:
    """What a document holds at a path, each member of lists by itself; a name may hold dots, too."""
    if isinstance(document, list):
        for each in document:
            yield from values_at(each, path)
    elif not path:
        if document is not None:
            yield document
    elif isinstance(document, dict):
        for name, value in document.items():
            if path == name:
                yield from values_at(value, "")
            elif path.startswith(f"{name}."):
                yield from values_at(value, path[len(name) + 1 :])


def chosen(document: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """A document with the fields at these paths alone, and what is below them."""
    found = _chosen(document, "", tuple(paths))
    return {} if found is _NOTHING else dict(found)


def _chosen(value: Any, at: str, paths: tuple[str, ...]) -> Any:
    if any(at == path or at.startswith(f"{path}.") for path in paths):
        return value
    if not at or any(path.startswith(f"{at}.") for path in paths):
        if isinstance(value, list):
            members = [part for each in value if (part := _chosen(each, at, paths)) is not _NOTHING]
            return members or _NOTHING
        if isinstance(value, Mapping):
            parts = {
                name: part
                for name, each in value.items()
                if (part := _chosen(each, f"{at}.{name}" if at else name, paths)) is not _NOTHING
            }
            return parts or _NOTHING
    return _NOTHING
