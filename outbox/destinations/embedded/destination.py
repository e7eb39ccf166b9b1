"""The contract of a destination in one SQLite file, with full-text search: no server, no cluster.

It holds documents and their versions as Elasticsearch does, with two differences. Deletes are remembered for good.
And an index without mappings takes any JSON object: nothing is guessed from the first documents, so there a number
may follow a text; an index with mappings checks their fields (see `mapping`) and takes all others. Duplicate keys in
an object, which Elasticsearch refuses, are taken.

`apply` writes documents only. Their words are taken up, 1,000 documents a transaction, by `refresh` or by the next
`search`, whichever comes first: cutting a document into words costs several times as much as storing it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Unpack

from outbox.destinations import misled
from outbox.destinations.base import (
    FOREVER,
    Found,
    Health,
    IndexDefinition,
    IndexFacts,
    Listed,
    Operation,
    Outcome,
    OutcomeKind,
    Stored,
)
from outbox.destinations.differences import differences
from outbox.destinations.embedded import documents, indexes, search
from outbox.destinations.embedded.file import MAKES_IT, File, FileMissing, describe, probe
from outbox.destinations.kept import Kept
from outbox.destinations.query import Options, query
from outbox.errors import ConfigurationError, DestinationError

DROPPED_AT_ONCE: Final = 1_000


class EmbeddedDestination:
    """See `outbox.destinations.base.Destination` for what it promises.

    The file is made by `ensure_index` or `create_index`; everything else leaves a missing file missing. Any number of
    processes and threads may use it at once; `timeout` is how many seconds a call waits for the others.
    """

    def __init__(self, path: str | Path, *, timeout: float = 20.0) -> None:
        self._file = File(Path(path).absolute(), timeout)

    def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        contents = [documents.parsed(operation) for operation in operations]  # before the file is locked
        try:
            with self._file.writing() as connection:
                return documents.apply(connection, operations, contents)
        except FileMissing:
            return [
                misled.outcome(operation.index, operation.target, exists=False, readers=()) for operation in operations
            ]
        except (sqlite3.Error, OSError) as error:
            return [_unavailable(error)] * len(operations)

    def ensure_index(
        self, name: str, mappings: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> str:
        with self._file.failing_as(f"index {name} cannot be prepared"), self._file.writing(create=True) as connection:
            if found := indexes.find(connection, name):
                return found
            target = f"{name}-000001"
            if indexes.find(connection, target):
                raise DestinationError(f"index {target} cannot be created: its name is taken")
            indexes.make(connection, target, mappings, settings)
            indexes.lead(connection, name, target)
            return target

    def read(self, target: str, document_ids: Sequence[str]) -> dict[str, Stored]:
        return documents.stored(self._find(target, document_ids))

    def read_texts(self, target: str, document_ids: Sequence[str]) -> dict[str, bytes]:
        return documents.texts(self._find(target, document_ids))

    def kept(self, target: str) -> Kept:  # noqa: ARG002  (every document comes back as it was sent)
        return Kept()

    def _find(self, target: str, document_ids: Sequence[str]) -> dict[str, documents.Held]:
        with self._file.failing_as(f"documents of index {target} cannot be read"), self._file.reading() as connection:
            index = indexes.find(connection, target)
            return documents.find(connection, index, document_ids) if index else {}

    def pages(
        self, name: str, size: int, *, share: tuple[int, int] = (0, 1), tenants: bool = False
    ) -> Iterator[dict[str, Listed]]:
        after = ""
        while True:
            # A transaction a page: a caller that takes long to look at one keeps no other waiting.
            with self._file.failing_as(f"index {name} cannot be listed"):
                try:
                    with self._file.reading() as connection:
                        index = indexes.find(connection, name)
                        found = documents.page(connection, index, after, size, share, tenants=tenants) if index else {}
                except FileMissing:
                    return
            if not found:
                return
            yield found
            after = next(reversed(found))

    def refresh(self, name: str) -> None:
        with self._file.failing_as(f"index {name} cannot be refreshed"):
            self._require(name)
            search.take_up_words(self._file)

    def has_tenant(self, name: str, tenants: tuple[str, ...]) -> bool:
        with self._file.failing_as(f"index {name} cannot be searched"):
            try:
                with self._file.reading() as connection:
                    index = indexes.find(connection, name)
                    return index is not None and search.has_tenant(connection, index, tenants)
            except FileMissing:
                return False

    def search(self, name: str, words: str | None, **options: Unpack[Options]) -> Found:
        asked = query(words, options)
        with self._file.failing_as(f"index {name} cannot be searched"):
            self._require(name)
            search.take_up_words(self._file)
            with self._file.reading() as connection:
                target = indexes.require(connection, name)
                return search.search(connection, target, asked, indexes.mappings_of(connection, target))

    def client(self) -> Any:
        raise ConfigurationError(
            f"file {self._file.path} has no client: the embedded destination is searched with outbox.Search alone"
        )

    def _require(self, name: str) -> None:
        with self._file.reading() as connection:
            indexes.require(connection, name)

    def ping(self) -> str | None:
        try:
            with self._file.writing() as connection:  # a file that can be read may still be locked for all writers
                probe(connection)
            return None
        except FileMissing:
            directory = self._file.path.parent
            return None if directory.is_dir() else f"directory {directory} does not exist"
        except (sqlite3.Error, OSError) as error:
            return describe(error)

    def health(self) -> Health:
        with self._file.failing_as("the embedded destination does not answer"):
            if why := self.ping():
                raise DestinationError(f"file {self._file.path} cannot be used: {why}")
            there = "ok" if self._file.path.exists() else f"no file yet, {MAKES_IT}"
            return Health("embedded", f"SQLite {sqlite3.sqlite_version}", there)

    def inspect_index(self, name: str, target: str) -> IndexFacts:
        with self._file.failing_as(f"index {name} cannot be looked at"):
            try:
                with self._file.reading() as connection:
                    exists, reader = indexes.exists(connection, target), indexes.find(connection, name)
            except FileMissing:
                exists, reader = False, None
            return IndexFacts(exists, (reader,) if reader else (), FOREVER)

    def definition(self, target: str, mappings: Mapping[str, Any]) -> IndexDefinition:  # noqa: ARG002  (kept as given)
        what = f"mappings of index {target} cannot be read"
        with self._file.failing_as(what), self._file.reading() as connection:
            return IndexDefinition(indexes.mappings_of(connection, target), {}, None)

    def amend_index(self, target: str, mappings: Mapping[str, Any], settings: Mapping[str, Any]) -> None:  # noqa: ARG002
        what = f"index {target} cannot be changed"
        with self._file.failing_as(what), self._file.writing() as connection:
            held = indexes.mappings_of(connection, target)
            for each in differences(mappings, {}, IndexDefinition(held, {}, None)):
                if not each.additive:
                    raise DestinationError(f"{what}: {each}")
            indexes.amend(connection, target, mappings)

    def highest_version(self, name: str) -> int:
        with self._file.failing_as(f"versions of index {name} cannot be read"):
            try:
                with self._file.reading() as connection:
                    index = indexes.find(connection, name)
                    return documents.highest_version(connection, index) if index else 0
            except FileMissing:
                return 0

    def newest_version(self, name: str) -> int:
        return self.highest_version(name)

    def count(self, target: str) -> int:
        what = f"documents of index {target} cannot be counted"
        with self._file.failing_as(what), self._file.reading() as connection:
            return documents.count(connection, indexes.require(connection, target))

    def create_index(self, target: str, mappings: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        what = f"index {target} cannot be created"
        with self._file.failing_as(what), self._file.writing(create=True) as connection:
            if indexes.find(connection, target):
                raise DestinationError(f"{what}: its name is taken")
            indexes.make(connection, target, mappings, settings)

    def finish_index(self, target: str, settings: Mapping[str, Any]) -> None:  # noqa: ARG002  (none was held back)
        self.refresh(target)

    def swap(self, name: str, old: str | None, new: str, *, adopt: bool = False) -> None:
        what = f"alias {name} cannot be moved from {old or 'nothing'} to {new}"
        with self._file.failing_as(what), self._file.writing() as connection:
            if not indexes.exists(connection, new):
                raise DestinationError(f"{what}: index {new} is missing")
            reader = indexes.find(connection, name)
            if reader != old or adopt != (name == old):
                raise DestinationError(f"{what}: it leads to {reader or 'nothing'}")
            if adopt and old:
                indexes.drop(connection, old, None)
            indexes.lead(connection, name, new)

    def drop_index(self, target: str) -> None:
        left = self._file.exists()
        while left:  # some documents a transaction, so that no other caller waits long for the file
            with self._file.failing_as(f"index {target} cannot be removed"), self._file.writing() as connection:
                left = indexes.drop(connection, target, DROPPED_AT_ONCE)

    def close(self) -> None:
        self._file.close()


def _unavailable(error: Exception) -> Outcome:
    name = getattr(error, "sqlite_errorname", None)
    return Outcome(OutcomeKind.UNAVAILABLE, name.lower() if name else type(error).__name__, describe(error))
