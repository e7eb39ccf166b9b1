"""The contract of a destination in one SQLite file, with full-text search: no server, no cluster.

It holds documents and their versions as Elasticsearch does, with two differences. Deletes are remembered for good.
And an index without mappings takes any JSON object: nothing is guessed from the first documents, so there a number
may follow a text; an index with mappings checks their fields (see `outbox.destinations.mapping`) and takes all others.
Duplicate keys in an object, which Elasticsearch refuses, are taken.

`apply` writes documents only. Their words are taken up, 1,000 documents a transaction, by `refresh` or by the next
`search`, whichever comes first: cutting a document into words costs several times as much as storing it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from outbox.destinations import merge
from outbox.destinations.base import (
    DOCUMENT_MISSING,
    FOREVER,
    ILLEGAL_DOCUMENT,
    TENANT_FIELD,
    Health,
    Hit,
    IndexFacts,
    Listed,
    Operation,
    Outcome,
    OutcomeKind,
    Stored,
    index_missing,
    rejected,
    unsendable,
)
from outbox.destinations.embedded import mapping
from outbox.destinations.embedded.words import edits, errors_allowed, folded, words_of
from outbox.errors import DestinationError, DestinationUnanswered, IndexMissing

APPLICATION_ID = 0x6F627872  # "obxr": marks the file as one of ours, so that no other database is taken for it
WORDS_AT_ONCE = 1_000
MOST_MISSPELT = 50

_TABLES = (
    """
    CREATE TABLE indexes (
        name TEXT PRIMARY KEY,
        mappings TEXT,                  -- JSON, as registered when the index was made
        settings TEXT,
        created_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
    )""",
    """
    CREATE TABLE aliases (
        name TEXT PRIMARY KEY,          -- what readers ask for
        index_name TEXT NOT NULL REFERENCES indexes (name)
    )""",
    """
    CREATE TABLE documents (
        number INTEGER PRIMARY KEY,
        index_name TEXT NOT NULL,
        document_id TEXT NOT NULL,
        version INTEGER NOT NULL,       -- only a higher one replaces it, or its tombstone
        deleted INTEGER NOT NULL,       -- 1: a tombstone, kept for good
        source TEXT,                    -- JSON as it came; NULL in a tombstone
        UNIQUE (index_name, document_id)
    )""",
    """
    CREATE TABLE words_due (            -- what changed since its words were taken up
        document INTEGER PRIMARY KEY    -- documents.number
    )""",
    """
    CREATE VIRTUAL TABLE words USING fts5 (text, tokenize = 'unicode61 remove_diacritics 2', prefix = '2 3')""",
    """
    CREATE VIRTUAL TABLE vocabulary USING fts5vocab (words, 'row')""",
)

_STORE = """
INSERT INTO documents (number, index_name, document_id, version, deleted, source) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (number) DO UPDATE SET version = excluded.version, deleted = excluded.deleted, source = excluded.source
"""

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
WHERE index_name = :index AND NOT deleted AND (:tenant IS NULL OR EXISTS (
    SELECT 1 FROM json_each(source, :tenant_field) WHERE atom = :tenant OR CAST(atom AS TEXT) = :tenant
))
GROUP BY number ORDER BY score DESC, document_id LIMIT :limit
"""


# By its own index: whatever else is in the file is not looked at.
_LIST = """
SELECT document_id, version, json_extract(source, :tenant_field) FROM documents
WHERE index_name = :index AND document_id > :after AND NOT deleted AND number % :parts = :part
ORDER BY document_id LIMIT :size
"""


class _Held(NamedTuple):
    """What the file says of a document. `source` is None for a tombstone."""

    number: int
    version: int
    source: str | None


class _FileMissing(Exception):
    """There is no file yet, or an empty one, and this call must not make it."""


class EmbeddedDestination:
    """See `outbox.destinations.base.Destination` for what it promises.

    The file is made by the first `ensure_index`; everything else leaves a missing file missing. Any number of
    processes and threads may use it at once; `timeout` is how many seconds a call waits for the others.
    """

    # One connection under a lock, not one a thread: SQLite has one writer anyway, and threads that wait for a lock
    # get it the moment it is free, while connections that find the file locked only look again now and then.
    def __init__(self, path: str | Path, *, timeout: float = 20.0) -> None:
        self._path, self._timeout = Path(path), timeout
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None

    def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        contents = [_content(operation) for operation in operations]  # parsed before the file is locked
        try:
            with self._writing() as connection:
                return _apply(connection, operations, contents)
        except _FileMissing:
            return [_index_missing(operation.target) for operation in operations]
        except (sqlite3.Error, OSError) as error:
            return [_unavailable(error)] * len(operations)

    def ensure_index(
        self, name: str, mappings: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> str:
        with self._or_error(f"index {name} cannot be prepared"), self._writing(create=True) as connection:
            if found := _find(connection, name):
                return found
            target = f"{name}-000001"
            if _find(connection, target):
                raise DestinationError(f"index {target} cannot be created: something else has that name")
            _make(connection, target, mappings, settings)
            connection.execute("INSERT INTO aliases (name, index_name) VALUES (?, ?)", (name, target))
            return target

    def read(self, target: str, document_ids: Sequence[str]) -> dict[str, Stored]:
        with self._or_error(f"documents of index {target} cannot be read"), self._reading() as connection:
            index = _find(connection, target)
            held = {each: _held(connection, index, each) for each in document_ids} if index else {}
        return {
            document_id: Stored(each.version, json.loads(each.source))
            for document_id, each in held.items()
            if each and each.source is not None
        }

    def pages(
        self, name: str, size: int, *, share: tuple[int, int] = (0, 1), tenants: bool = False
    ) -> Iterator[dict[str, Listed]]:
        part, parts = share
        field = f"$.{TENANT_FIELD}" if tenants else None
        asked = {"after": "", "part": part, "parts": parts, "size": size, "tenant_field": field}
        while True:
            # A transaction a page: whoever takes long to look at one holds up nobody.
            with self._or_error(f"index {name} cannot be listed"):
                try:
                    with self._reading() as connection:
                        asked["index"] = _find(connection, name)
                        rows = connection.execute(_LIST, asked).fetchall()
                except _FileMissing:
                    return
            if not rows:
                return
            yield {
                document_id: Listed(version, None if tenant is None else str(tenant))
                for document_id, version, tenant in rows
            }
            asked["after"] = rows[-1][0]

    def refresh(self, name: str) -> None:
        with self._or_error(f"index {name} cannot be refreshed"):
            with self._reading() as connection:
                _require(connection, name)
            self._take_up_words()

    def search(self, name: str, query: str, *, tenant: str | None = None, limit: int = 10) -> list[Hit]:
        with self._or_error(f"index {name} cannot be searched"):
            with self._reading() as connection:
                _require(connection, name)
            self._take_up_words()
            with self._reading() as connection:
                found = _search(connection, _require(connection, name), words_of(query), tenant, limit)
        return [Hit(document_id, score, json.loads(source)) for document_id, score, source in found]

    def ping(self) -> str | None:
        try:
            with self._writing():  # a file that can be read may still be locked for all writers
                return None
        except _FileMissing:
            directory = self._path.absolute().parent
            return None if directory.is_dir() else f"directory {directory} does not exist"
        except (sqlite3.Error, OSError) as error:
            return _describe(error)

    def health(self) -> Health:
        with self._or_error("the embedded destination does not answer"):
            if why := self.ping():
                raise DestinationError(f"file {self._path} cannot be used: {why}")
            there = "ok" if self._path.exists() else "no file yet, the first row makes it"
            return Health("embedded", f"SQLite {sqlite3.sqlite_version}", there)

    def inspect_index(self, name: str, target: str) -> IndexFacts:
        with self._or_error(f"index {name} cannot be looked at"):
            try:
                with self._reading() as connection:
                    exists, reader = _mappings_of(connection, target) is not None, _find(connection, name)
            except _FileMissing:
                exists, reader = False, None
            return IndexFacts(exists, (reader,) if reader else (), FOREVER)

    def highest_version(self, name: str) -> int:
        """Those of tombstones count: they refuse lower versions for good."""
        with self._or_error(f"versions of index {name} cannot be read"):
            try:
                with self._reading() as connection:
                    (highest,) = connection.execute(
                        "SELECT max(version) FROM documents WHERE index_name = ?", (_find(connection, name),)
                    ).fetchone()
            except _FileMissing:
                return 0
            return highest or 0

    def count(self, target: str) -> int:
        with self._or_error(f"documents of index {target} cannot be counted"), self._reading() as connection:
            index = _require(connection, target)
            found = "SELECT count(*) FROM documents WHERE index_name = ? AND NOT deleted"
            return int(connection.execute(found, (index,)).fetchone()[0])

    def create_index(self, target: str, mappings: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        what = f"index {target} cannot be created"
        with self._or_error(what), self._writing(create=True) as connection:
            if _find(connection, target):
                raise DestinationError(f"{what}: something else has that name")
            _make(connection, target, mappings, settings)

    def finish_index(self, target: str, settings: Mapping[str, Any]) -> None:  # noqa: ARG002  (none was held back)
        self.refresh(target)

    def swap(self, name: str, old: str, new: str, *, adopt: bool = False) -> None:
        what = f"alias {name} cannot be moved from {old} to {new}"
        with self._or_error(what), self._writing() as connection:
            if _mappings_of(connection, new) is None:
                raise DestinationError(f"{what}: index {new} is missing")
            if _find(connection, name) != old or adopt != (name == old):
                raise DestinationError(f"{what}: it does not lead to {old}")
            if adopt:
                _drop(connection, old, None)
            connection.execute("INSERT OR REPLACE INTO aliases (name, index_name) VALUES (?, ?)", (name, new))

    def drop_index(self, target: str) -> None:
        left = self._file() is not None
        while left:  # some documents a transaction, so that nobody waits long for the file
            with self._or_error(f"index {target} cannot be removed"), self._writing() as connection:
                left = _drop(connection, target, WORDS_AT_ONCE)

    def close(self) -> None:
        with self._lock:
            self._disconnect()

    def _take_up_words(self) -> None:
        """Bring the full-text table up to date with what is due now, in transactions that hold nobody up for long."""
        with self._reading() as connection:
            (due,) = connection.execute("SELECT count(*) FROM words_due").fetchone()
        for _ in range(0, due, WORDS_AT_ONCE):
            with self._writing() as connection:
                _take_up_words(connection)

    # -- the connection -----------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction that holds the write lock from its beginning: kept as a whole, or not at all."""
        with self._connected(create) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """One state of the file, whatever others write meanwhile."""
        with self._connected(create=False) as connection:
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")

    @contextmanager
    def _connected(self, create: bool) -> Iterator[sqlite3.Connection]:
        deadline = time.monotonic() + self._timeout
        if not self._lock.acquire(timeout=self._timeout):
            raise TimeoutError("other threads of this process keep the file busy")
        try:
            if self._connection is None or self._identity != self._file():
                self._disconnect()
                self._connection = self._connect(create)
                self._identity = self._file()
            left_ms = max(0, int((deadline - time.monotonic()) * 1000))
            self._connection.execute(f"PRAGMA busy_timeout = {left_ms}")  # for other processes
            try:
                yield self._connection
            except BaseException:
                self._roll_back(self._connection)
                raise
        finally:
            self._lock.release()

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._disconnect()  # the next call starts with a new connection

    def _file(self) -> tuple[int, int] | None:
        """Which file the path leads to: one that was replaced or removed must not be written to any longer."""
        try:
            found = os.stat(self._path)  # noqa: PTH116  (a call for every batch)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _connect(self, create: bool) -> sqlite3.Connection:
        if not create and self._file() is None:
            raise _FileMissing
        connection = sqlite3.connect(
            self._path, timeout=self._timeout, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            _prepare(connection, create=create)
        except BaseException:
            connection.close()
            raise
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._identity = None

    @contextmanager
    def _or_error(self, what: str) -> Iterator[None]:
        try:
            yield
        except _FileMissing:
            raise IndexMissing(f"{what}: file {self._path} does not exist; the first row makes it") from None
        except (sqlite3.Error, OSError) as error:
            busy = isinstance(error, TimeoutError) or getattr(error, "sqlite_errorname", "") == "SQLITE_BUSY"
            kind = DestinationUnanswered if busy else DestinationError
            raise kind(f"{what}: file {self._path}: {_describe(error)}") from error


def _prepare(connection: sqlite3.Connection, *, create: bool) -> None:
    """Tables for a new file; nothing for one that has them. Raises `sqlite3.DatabaseError` for any other database."""
    connection.execute("BEGIN")  # one state of the file: another process may be making its tables at this moment
    application, tables = _identified(connection)
    connection.execute("COMMIT")
    if application == tables == 0:
        if not create:
            raise _FileMissing
        connection.execute("BEGIN IMMEDIATE")
        if _identified(connection) == (0, 0):  # nobody was faster
            for statement in _TABLES:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
        application, _ = _identified(connection)
    if application != APPLICATION_ID:
        raise sqlite3.DatabaseError("it is another database; let OUTBOX_EMBEDDED_PATH name a file of its own")
    # Readers and the writer do not wait for each other then. Whoever finds the file busy leaves it to the next: this
    # switch does not wait, and the file remembers it.
    with suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA journal_mode = WAL")
    # The relay calls a row done once `apply` has answered: what it answered must be on disk.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 10000")


def _identified(connection: sqlite3.Connection) -> tuple[int, int]:
    """Whose file it is, and how many tables and indexes it has."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return application, tables


# -- documents -----------------------------------------------------------------------------------------------------


def _content(operation: Operation) -> dict[str, Any] | Outcome | None:
    """The document as it is to be stored, parsed; None for deletes and patches; or why it cannot be stored."""
    if refused := unsendable(operation):
        return refused
    if operation.document is None:
        return None
    try:
        parsed = orjson.loads(operation.document)
    except orjson.JSONDecodeError as error:
        return rejected("document_parsing_exception", f"failed to parse: {error}")
    return parsed if isinstance(parsed, dict) else rejected(ILLEGAL_DOCUMENT, "the stored document is no JSON object")


def _apply(
    connection: sqlite3.Connection, operations: Sequence[Operation], contents: Sequence[dict[str, Any] | Outcome | None]
) -> list[Outcome]:
    indexes = {(operation.index, operation.target) for operation in operations}
    usable = {each: _usable(connection, *each) for each in indexes}
    (last,) = connection.execute("SELECT max(number) FROM documents").fetchone()
    next_number = (last or 0) + 1
    written: dict[tuple[str, str], _Held] = {}
    outcomes: list[Outcome] = []
    for operation, content in zip(operations, contents, strict=True):
        mappings = usable[operation.index, operation.target]
        if isinstance(mappings, Outcome) or isinstance(content, Outcome):
            outcomes.append(mappings if isinstance(mappings, Outcome) else content)  # type: ignore[arg-type]
            continue
        key = (operation.target, operation.document_id)
        held = written.get(key) or _held(connection, *key)
        outcome = _decide(operation, content, held, mappings)
        if isinstance(outcome, Outcome):
            outcomes.append(outcome)
            continue
        written[key] = _Held(held.number if held else next_number, operation.version, outcome.source)
        next_number += held is None
        outcomes.append(_APPLIED)
    connection.executemany(
        _STORE,
        [
            (each.number, index, document_id, each.version, each.source is None, each.source)
            for (index, document_id), each in written.items()
        ],
    )
    connection.executemany(
        "INSERT OR IGNORE INTO words_due (document) VALUES (?)", [(each.number,) for each in written.values()]
    )
    return outcomes


class _Source(NamedTuple):
    """What is to be stored; None for a tombstone."""

    source: str | None


def _decide(
    operation: Operation, content: dict[str, Any] | None, held: _Held | None, mappings: Mapping[str, Any]
) -> _Source | Outcome:
    """What to store for an operation, or what became of it. As in Elasticsearch, faults come before versions."""
    document = operation.document
    if operation.patches:
        if held is None or held.source is None:
            return rejected(DOCUMENT_MISSING, "there is no document to update; write the full document")
        try:
            document = merge.merged(held.source.encode(), operation.patches)
        except ValueError as error:
            return rejected(ILLEGAL_DOCUMENT, f"the stored update is no JSON object: {error}")
        content = orjson.loads(document) if mappings else None
    if content and mappings and (fault := mapping.fault(mappings, content)):
        return rejected(*fault)
    if held and held.version >= operation.version + operation.or_equal:
        return Outcome(OutcomeKind.CONFLICT, "version_conflict", "the stored document is newer", held.version)
    return _Source(None if document is None else document.decode())


def _held(connection: sqlite3.Connection, index: str, document_id: str) -> _Held | None:
    found = connection.execute(
        "SELECT number, version, source FROM documents WHERE index_name = ? AND document_id = ?", (index, document_id)
    ).fetchone()
    return _Held(*found) if found else None


# -- indexes -------------------------------------------------------------------------------------------------------


def _find(connection: sqlite3.Connection, name: str) -> str | None:
    """The physical index of an alias, or of its own name."""
    found = connection.execute(
        "SELECT index_name FROM aliases WHERE name = :name UNION ALL SELECT name FROM indexes WHERE name = :name",
        {"name": name},
    ).fetchone()
    return found[0] if found else None


def _make(
    connection: sqlite3.Connection, target: str, mappings: Mapping[str, Any] | None, settings: Mapping[str, Any] | None
) -> None:
    connection.execute(
        "INSERT INTO indexes (name, mappings, settings) VALUES (?, ?, ?)",
        (target, *(None if each is None else json.dumps(each) for each in (mappings, settings))),
    )


def _drop(connection: sqlite3.Connection, target: str, most: int | None) -> bool:
    """Remove documents of an index, and the index with the last of them. Whether some are left."""
    numbers = connection.execute(
        "SELECT number FROM documents WHERE index_name = ? LIMIT ?", (target, -1 if most is None else most)
    ).fetchall()
    for table, key in (("words", "rowid"), ("words_due", "document"), ("documents", "number")):
        connection.executemany(f"DELETE FROM {table} WHERE {key} = ?", numbers)
    if numbers and most is not None:
        return True
    connection.execute("DELETE FROM aliases WHERE index_name = ?", (target,))
    connection.execute("DELETE FROM indexes WHERE name = ?", (target,))
    return False


def _require(connection: sqlite3.Connection, name: str) -> str:
    found = _find(connection, name)
    if found is None:
        raise index_missing(name)
    return found


def _mappings_of(connection: sqlite3.Connection, target: str) -> dict[str, Any] | None:
    """The mappings of a physical index, empty if it has none; None if there is no such index."""
    found = connection.execute("SELECT coalesce(mappings, '{}') FROM indexes WHERE name = ?", (target,)).fetchone()
    return json.loads(found[0]) if found else None


def _usable(connection: sqlite3.Connection, name: str, target: str) -> Mapping[str, Any] | Outcome:
    """The mappings of the index that rows of `name` go to; or why they must wait."""
    mappings = _mappings_of(connection, target)
    if mappings is None:
        return _index_missing(target)
    if _find(connection, name) != target:
        why = f"alias {name} does not point to index {target}"
        return Outcome(OutcomeKind.BLOCKED, "alias_not_found_exception", why)
    return mappings


# -- words ---------------------------------------------------------------------------------------------------------


def _take_up_words(connection: sqlite3.Connection) -> None:
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


def _search(
    connection: sqlite3.Connection, index: str, words: Sequence[str], tenant: str | None, limit: int
) -> list[tuple[str, float, str]]:
    if not words:
        return []
    near = sorted({term for word in words for term in _misspelt(connection, word)})
    return connection.execute(
        _SEARCH,
        {
            "exact": " OR ".join(f'"{word}"' for word in words),
            "beginnings": " OR ".join(f'"{word}"*' for word in words),
            "misspelt": " OR ".join(f'"{term}"' for term in near) or '""',
            "index": index,
            "tenant": tenant,
            "tenant_field": f"$.{TENANT_FIELD}",
            "limit": limit,
        },
    ).fetchall()


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


# -- outcomes ------------------------------------------------------------------------------------------------------

_APPLIED = Outcome(OutcomeKind.APPLIED)


def _index_missing(target: str) -> Outcome:
    return Outcome(OutcomeKind.BLOCKED, "index_not_found_exception", f"index {target} is missing from the file")


def _unavailable(error: Exception) -> Outcome:
    name = getattr(error, "sqlite_errorname", None)
    return Outcome(OutcomeKind.UNAVAILABLE, name.lower() if name else type(error).__name__, _describe(error))


def _describe(error: Exception) -> str:
    return str(error) or type(error).__name__
