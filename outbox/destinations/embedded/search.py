"""Full-text search in the file: the words of documents, and the documents that match some words."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from typing import Any

import orjson

from outbox import documents
from outbox.destinations.base import TENANT_FIELD, Hit
from outbox.destinations.embedded.file import File
from outbox.destinations.embedded.words import edits, errors_allowed, folded, words_of

WORDS_AT_ONCE = 1_000
MOST_MISSPELT = 50

# Each way of matching has its own range of scores, so that a word beats its misspelling however rare that one is:
# bm25 is squeezed into 0 to 1, which keeps its order.
_SEARCH = """
WITH matches (number, weight, bm25) AS MATERIALIZED (
    SELECT rowid, 4.0, -bm25(words) FROM words WHERE words MATCH :exact
    UNION ALL SELECT rowid, 2.0, -bm25(words) FROM words WHERE words MATCH :beginnings
    UNION ALL SELECT rowid, 1.0, -bm25(words) FROM words WHERE words MATCH :misspelt
)
SELECT document_id, sum(weight * (1 + bm25 / (1 + bm25))) AS score, source
FROM matches JOIN documents USING (number)
WHERE index_name = :index AND NOT deleted AND (:tenants IS NULL OR EXISTS (
    SELECT 1 FROM json_each(source, :tenant_field) WHERE CAST(atom AS TEXT) IN (SELECT value FROM json_each(:tenants))
))
GROUP BY number ORDER BY score DESC, document_id LIMIT :limit
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
        "SELECT document, source FROM words_due JOIN documents ON number = document ORDER BY document LIMIT ?",
        (WORDS_AT_ONCE,),
    ).fetchall()
    numbers = [(number,) for number, _ in due]
    connection.executemany("DELETE FROM words WHERE rowid = ?", numbers)
    connection.executemany(
        "INSERT INTO words (rowid, text) VALUES (?, ?)",
        [(number, "\n".join(_texts(orjson.loads(source)))) for number, source in due if source is not None],
    )
    connection.executemany("DELETE FROM words_due WHERE document = ?", numbers)


def _texts(value: Any) -> Iterator[str]:
    """All strings among the values of a document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def has_tenant(connection: sqlite3.Connection, index: str, tenants: tuple[str, ...]) -> bool:
    """Whether a document is of a tenant, in one of these spellings."""
    given = {"index": index, "tenants": json.dumps(tenants), "tenant_field": f"$.{TENANT_FIELD}"}
    return bool(connection.execute(_HAS_TENANT, given).fetchone()[0])


def search(connection: sqlite3.Connection, index: str, query: str, tenant: object, limit: int) -> list[Hit]:
    """The best matches among the documents whose words are taken up, best first."""
    words = words_of(query)
    if not words:
        return []
    near = sorted({term for word in words for term in _misspelt(connection, word)})
    found = connection.execute(
        _SEARCH,
        {
            "exact": " OR ".join(f'"{word}"' for word in words),
            "beginnings": " OR ".join(f'"{word}"*' for word in words),
            "misspelt": " OR ".join(f'"{term}"' for term in near) or '""',
            "index": index,
            "tenants": None if tenant is None else json.dumps(documents.tenant_spellings(tenant)),
            "tenant_field": f"$.{TENANT_FIELD}",
            "limit": limit,
        },
    )
    return [Hit(document_id, score, json.loads(source)) for document_id, score, source in found]


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
