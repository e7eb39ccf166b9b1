"""Pure: what an index gives back of a document, and how that compares with the document that was sent."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

HIDDEN: Final = "_inference_fields"
"""What an index that is asked for its vectors adds to a document by itself."""

_NOTHING: Final = object()
_TINY: Final = 1e-37  # below it float32 has fewer digits


@dataclass(frozen=True, slots=True)
class Kept:
    """What an index gives back of the documents that were sent to it: by default each of them, as it was sent.

    Patterns of fields are those of Elasticsearch's `_source`: full paths, `*` for anything.
    """

    includes: tuple[str, ...] = ()  # nothing but these comes back, if any are given
    excludes: tuple[str, ...] = ()
    vectors: Mapping[str, float] = field(default_factory=dict)  # how far numbers may be off, by the path of the field
    asks_for_vectors: bool = False  # they come back only when they are asked for
    embedded_texts: frozenset[str] = frozenset()  # fields where text comes back as an object that holds it
    stores_none: bool = False  # no content comes back at all
    synthetic: bool = False  # content is made anew from what was indexed
    pipelines: tuple[str, ...] = ()  # what every document passes first, and may be changed by

    @property
    def lost(self) -> str | None:
        """What does not come back, so that a partial update would lose it; None if everything does."""
        if self.stores_none:
            return "the index stores no _source"
        left_out = [*(f"all but {each}" for each in self.includes), *self.excludes]
        return f"the _source of the index leaves out {', '.join(left_out)}" if left_out else None

    @property
    def changed(self) -> str | None:
        """Why content comes back otherwise than it was sent; None if it does not."""
        if self.synthetic:
            return "the _source of the index is synthetic"
        if self.pipelines:
            return f"every document passes pipeline {' and '.join(self.pipelines)}"
        return None

    @property
    def uncertain(self) -> str | None:
        """Why what comes back does not say for certain what was sent; None if it does, to the last digit."""
        if self.vectors:
            return f"vectors do not come back digit by digit: {', '.join(self.vectors)}"
        if self.embedded_texts:
            return f"texts come back as objects: {', '.join(sorted(self.embedded_texts))}"
        return self.lost or self.changed

    @property
    def compared_without(self) -> str | None:
        """What of the documents cannot be compared, in one line; None if all of it can."""
        if self.stores_none or self.changed:
            return f"documents are compared by id and version alone, since {self.changed or self.lost}"
        return f"documents are compared without what cannot be read back: {self.lost}" if self.lost else None

    def as_sent(self, source: Mapping[str, Any]) -> dict[str, Any]:
        """A document as it was sent, of the one that came back."""
        found = {name: value for name, value in source.items() if name != HIDDEN}
        return _texts(found, "", self.embedded_texts) if self.embedded_texts else found

    def comparable(self, sent: Any, held: Mapping[str, Any]) -> tuple[Any, Any]:
        """Both documents, reduced to what can be compared: they are equal if the index holds what was sent."""
        if self.stores_none or self.changed:
            return {}, {}
        reduced, found = sent, dict(held)
        if self.includes or self.excludes:
            visible = _Visible(self.includes, self.excludes)
            reduced, found = visible.of(reduced), visible.of(found)
        return (_aligned(reduced, found, "", self.vectors) if self.vectors else reduced), found


class _Visible:
    """Documents without what a `_source` leaves out, and without the objects that are empty for it."""

    def __init__(self, includes: Iterable[str], excludes: Iterable[str]) -> None:
        self._included, self._excluded = _pattern(includes), _pattern(excludes)

    def of(self, document: Any) -> Any:
        found = self._of(document, "", included=self._included is None)
        return {} if found is _NOTHING else found

    def _of(self, value: Any, path: str, *, included: bool) -> Any:
        if isinstance(value, list):
            found = [self._of(each, path, included=included) for each in value]
            return [each for each in found if each is not _NOTHING] if found else value if included else _NOTHING
        if not isinstance(value, Mapping):
            return value if included else _NOTHING
        parts: dict[str, Any] = {}
        for name, part in value.items():
            at = f"{path}.{name}" if path else name
            if self._excluded and self._excluded.fullmatch(at):
                continue
            within = included or (self._included is not None and self._included.fullmatch(at) is not None)
            if (kept := self._of(part, at, included=within)) is not _NOTHING:
                parts[name] = kept
        return parts or _NOTHING


def _pattern(patterns: Iterable[str]) -> re.Pattern[str] | None:
    """What a path, or one above it, must be; None for no patterns."""
    parts = "|".join(re.escape(each).replace(r"\*", ".*") for each in patterns)
    return re.compile(f"(?:{parts})(?:\\..*)?", re.DOTALL) if parts else None


def _below(path: str, value: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for name, part in value.items():
        yield name, f"{path}.{name}" if path else name, part


def _texts(value: Any, path: str, embedded: frozenset[str]) -> Any:
    """Texts in place of the objects that hold them together with what was made of them."""
    if isinstance(value, list):
        return [_texts(each, path, embedded) for each in value]
    if not isinstance(value, Mapping):
        return value
    found = {}
    for name, at, part in _below(path, value):
        if at not in embedded or not isinstance(part, Mapping):
            found[name] = _texts(part, at, embedded)
        elif "text" in part:  # without it, all of it was made of other fields
            found[name] = part["text"]
    return found


def _aligned(sent: Any, held: Any, path: str, vectors: Mapping[str, float]) -> Any:
    """`sent` with the vectors of `held`, wherever these are as near as the index keeps them."""
    if (tolerance := vectors.get(path)) is not None:
        return held if _near(sent, held, tolerance) else sent
    if isinstance(sent, list) and isinstance(held, list) and len(sent) == len(held):
        return [_aligned(one, other, path, vectors) for one, other in zip(sent, held, strict=True)]
    if isinstance(sent, Mapping) and isinstance(held, Mapping):
        return {name: _aligned(part, held.get(name), at, vectors) for name, at, part in _below(path, sent)}
    return sent


def _near(sent: Any, held: Any, tolerance: float) -> bool:
    if isinstance(sent, str) and isinstance(held, list):  # hexadecimal digits of signed bytes
        try:
            return [each - 256 * (each > 127) for each in bytes.fromhex(sent)] == held
        except ValueError:
            return False
    if isinstance(sent, Mapping) and isinstance(held, Mapping):
        return sent.keys() == held.keys() and all(_near(value, held[name], tolerance) for name, value in sent.items())
    if isinstance(sent, list) and isinstance(held, list):
        return len(sent) == len(held) and all(_near(*each, tolerance) for each in zip(sent, held, strict=True))
    if _is_number(sent) and _is_number(held):
        return math.isclose(sent, held, rel_tol=tolerance, abs_tol=_TINY)
    return bool(sent == held)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
