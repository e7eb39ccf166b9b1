"""Full-text search in the file: the words of documents, and the documents that match some words."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import orjson

from outbox.destinations.base import TENANT_FIELD, Found, Hit
from outbox.destinations.embedded import fields, indexes
from outbox.destinations.embedded.documents import content_of
from outbox.destinations.embedded.file import File
from outbox.destinations.embedded.words import Marker, edits, errors_allowed, folded, words_of
from outbox.destinations.passages import chosen, passage, values_at
from outbox.destinations.query import Query
from outbox.documents import is_too_deep

WORDS_AT_ONCE = 1_000
MOST_MISSPELT = 50

# Each way of matching has its own range of scores, so that a word beats its misspelling however rare that one is:
# bm25 is squeezed into 0 to 1, which keeps its order.
_MATCHES = """
    SELECT rowid AS number, 4.0 AS weight, -bm25(words) AS bm25 FROM words WHERE words MATCH :exact
    UNION ALL SELECT rowid, 2.0, -bm25(words) FROM words WHERE words MATCH :beginnings
    UNION ALL SELECT rowid, 1.0, -bm25(words) FROM words WHERE words MATCH :misspelt
"""
_ALL = "SELECT number, 0.0 AS weight, 0.0 AS bm25 FROM documents WHERE index_name = :index"
_SEARCH = """
WITH matches (number, weight, bm25) AS MATERIALIZED ({matches})
SELECT number, document_id, sum(weight * (1 + bm25 / (1 + bm25))) AS score, CASE WHEN :compared THEN source END
FROM matches JOIN documents USING (number)
WHERE index_name = :index AND NOT deleted AND (:tenants IS NULL OR EXISTS (
    SELECT 1 FROM json_each(source, :tenant_field) WHERE CAST(atom AS TEXT) IN (SELECT value FROM json_each(:tenants))
))
GROUP BY number ORDER BY score DESC, document_id
"""
_HAS_TENANT = """
SELECT EXISTS (
    SELECT 1 FROM documents, json_each(source, :tenant_field)
    WHERE index_name = :index AND NOT deleted AND CAST(atom AS TEXT) IN (SELECT value FROM json_each(:tenants))
)
"""


def take_up_words(file: File) -> None:
    """Bring the full-text table up to date with what is due now, in several short transactions."""
    with file.reading() as connection:
        (due,) = connection.execute("SELECT count(*) FROM words_due").fetchone()
    for _ in range(0, due, WORDS_AT_ONCE):
        with file.writing() as connection:
            _take_up(connection)


def _take_up(connection: sqlite3.Connection) -> None:
    due = connection.execute(
        "SELECT document, index_name, source FROM words_due JOIN documents ON number = document "
        "ORDER BY document LIMIT ?",
        (WORDS_AT_ONCE,),
    ).fetchall()
    numbers = [(number,) for number, *_ in due]
    has_words = {
        index: cache(partial(fields.has_words, indexes.mappings_of(connection, index)))
        for index in {row[1] for row in due}
    }
    connection.executemany("DELETE FROM words WHERE rowid = ?", numbers)
    connection.executemany(
        "INSERT INTO words (rowid, text) VALUES (?, ?)",
        [
            (number, "\n".join(_texts(_readable(source), has_words[index])))
            for number, index, source in due
            if source is not None
        ],
    )
    connection.executemany("DELETE FROM words_due WHERE document = ?", numbers)


def _readable(source: str) -> dict[str, Any]:
    """A document; empty if it cannot be read: earlier versions took some, and one must not fail all searches."""
    try:
        content: dict[str, Any] = orjson.loads(source)
    except orjson.JSONDecodeError:
        return {}
    return {} if is_too_deep(source) else content


def _texts(value: Any, has_words: Callable[[str], bool], path: str = "") -> Iterator[str]:
    """The strings among the values of a document, at all paths that have words."""
    if isinstance(value, str):
        if has_words(path):
            yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, has_words, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, has_words, path)


def has_tenant(connection: sqlite3.Connection, index: str, tenants: tuple[str, ...]) -> bool:
    """Whether a document is of a tenant, in one of these spellings."""
    given = {"index": index, "tenants": json.dumps(tenants), "tenant_field": f"$.{TENANT_FIELD}"}
    return bool(connection.execute(_HAS_TENANT, given).fetchone()[0])


def search(connection: sqlite3.Connection, index: str, asked: Query, mappings: Mapping[str, Any]) -> Found:
    """The best matches among the documents whose words are taken up, best first. Raises `InvalidInput`."""
    comparison = fields.Comparison(mappings, asked)
    asked = replace(asked, highlight=fields.marked_of(mappings, asked))
    words = None if asked.words is None else words_of(asked.words)
    if words == []:
        return Found((), 0)
    near = sorted({term for word in words or () for term in _misspelt(connection, word)})
    rows = connection.execute(
        _SEARCH.format(matches=_ALL if words is None else _MATCHES),
        {
            "exact": " OR ".join(f'"{word}"' for word in words or ()),
            "beginnings": " OR ".join(f'"{word}"*' for word in words or ()),
            "misspelt": " OR ".join(f'"{term}"' for term in near) or '""',
            "index": index,
            "tenants": None if asked.tenants is None else json.dumps(asked.tenants),
            "tenant_field": f"$.{TENANT_FIELD}",
            "compared": comparison.is_needed,
        },
    )
    matching = [
        _Match(number, document_id, score, comparison.keys(document))
        for number, document_id, score, source in rows
        if comparison.passes(document := _readable(source) if source else {})
    ]
    page = comparison.sorted(matching)[asked.offset : asked.offset + asked.limit]
    marker = Marker(words or (), near)
    return Found(tuple(_hit(connection, each, asked, marker) for each in page), len(matching))


class _Match(NamedTuple):
    number: int
    document_id: str
    score: float
    keys: tuple[Any, ...]


def _hit(connection: sqlite3.Connection, match: _Match, asked: Query, marker: Marker) -> Hit:
    (source,) = connection.execute("SELECT source FROM documents WHERE number = ?", (match.number,)).fetchone()
    document = content_of(source)
    marked = {path: [marker.marked(text) for text in _texts_at(document, path)] for path in asked.highlight}
    return Hit(
        match.document_id,
        match.score,
        document if asked.fields is None else chosen(document, asked.fields),
        {path: found for path, texts in marked.items() if (found := passage(texts))},
    )


def _texts_at(document: Any, path: str) -> Iterator[str]:
    return (value for value in values_at(document, path) if isinstance(value, str))


def _misspelt(connection: sqlite3.Connection, word: str) -> list[str]:
    """Words of documents that `word` may have been meant for, the nearest first. Their first letter is the same."""
    word = folded(word)  # as they are
    most = errors_allowed(word)
    if not most:
        return []
    terms = connection.execute(
        "SELECT term, doc FROM vocabulary WHERE term >= ? AND term < ?", (word[0], f"{word[0]}\U0010ffff")
    )
    near = [
        (errors, -documents, term)
        for term, documents in terms
        if term != word and (errors := edits(word, term, most)) <= most
    ]
    return [term for _, _, term in sorted(near)[:MOST_MISSPELT]]
