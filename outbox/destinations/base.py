"""The contract of a destination: one operation in, one outcome out, and nothing about tables."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, TypeVar, Unpack, overload

from outbox.destinations.kept import Kept
from outbox.destinations.merge import Upsert
from outbox.destinations.query import Options
from outbox.documents import TENANT_FIELD as TENANT_FIELD
from outbox.errors import IndexMissing


@dataclass(slots=True)
class Operation:
    """What one document is to become.

    It becomes `document`, JSON on one line; or, where there are `patches`, the stored document with these merged into
    it one after another, or what `upserts` say where none is stored (see `outbox.destinations.merge.updated`); or it is
    deleted, where there is neither.
    """

    index: str  # the alias, for messages and breakers
    target: str  # the physical index
    document_id: str
    version: int
    document: bytes | None
    patches: tuple[bytes, ...] = ()
    upserts: tuple[Upsert, ...] = ()
    or_equal: bool = False  # applied over its own version too
    unless_held: int | None = None  # not applied where `document` is there already, of this version or a higher one

    @property
    def is_delete(self) -> bool:
        return self.document is None and not self.patches


class OutcomeKind(enum.StrEnum):
    """What a destination can say of an operation; `docs/reference/outcomes.md` says what follows from each."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"  # it holds the document, see `Operation.unless_held`; nothing was written
    CONFLICT = "conflict"  # it holds `Outcome.version`, which is not lower than the operation's
    REJECTED = "rejected"  # the document's fault, no retry can help
    FAILED = "failed"  # the document's failure, a retry may help
    OVERLOADED = "overloaded"  # not now
    BLOCKED = "blocked"  # the index takes nothing at present
    UNAVAILABLE = "unavailable"  # no answer about this operation
    SPLIT = "split"  # the request as a whole was refused; smaller ones may pass


T = TypeVar("T")

DOCUMENT_MISSING: Final = "document_missing"
"""Error type of a partial update whose document the destination does not hold."""

ILLEGAL_DOCUMENT: Final = "illegal_document"
"""Error type of stored content that is no JSON object on one line."""

SOURCE_MISSING: Final = "source_missing"
"""Error type of a partial update where the index does not give back all of the document."""

FAILURE_STORE: Final = "failure_store"
"""Error type of a document that a data stream has put aside instead of taking it."""

NOT_IN_THE_INDEX: Final = "not_in_the_index"
"""Error type of a document that a pipeline of the index dropped, or made another one of."""

MAX_ID_BYTES: Final = 512

_LF, _CR = b"\n\r"  # as numbers, which are found by memchr: in 20 times less time than as bytes

LINE_BYTES: Final = 200
"""What one row may add to a request beside its document."""

FOREVER: Final = "forever"
"""`IndexFacts.gc_deletes` of a destination that never forgets a delete."""


class Outcome(NamedTuple):
    """What became of one operation. `version` is the one a conflict reports."""

    kind: OutcomeKind
    error_type: str | None = None
    error: str | None = None
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A document as a destination has it."""

    version: int
    source: dict[str, Any]


class Listed(NamedTuple):
    """A document as a listing has it: without its content, so that a page of large ones weighs no more."""

    version: int
    tenant_id: str | None = None  # what its field `tenantId` says, if that was asked for


@dataclass(frozen=True, slots=True)
class Hit:
    """One document that a search found; a higher score is a better match."""

    document_id: str
    score: float
    source: dict[str, Any]
    highlights: Mapping[str, str] = field(default_factory=dict)
    """By field, as HTML: a passage in which what was found is in `<mark>`, and all else is escaped."""


@dataclass(frozen=True, slots=True)
class Found(Sequence[Hit]):
    """What a search found: some hits of all that there are. It can be used as the sequence of its hits."""

    hits: tuple[Hit, ...]
    total: int
    """How many documents match, however few of them `hits` holds."""

    @overload
    def __getitem__(self, at: int) -> Hit: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, at: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[at]

    def __len__(self) -> int:
        return len(self.hits)


@dataclass(frozen=True, slots=True)
class Health:
    """What a destination says of itself."""

    product: str
    version: str
    status: str


@dataclass(frozen=True, slots=True)
class IndexFacts:
    """What a destination says of a physical index and of the name that readers use."""

    exists: bool
    readers: tuple[str, ...]  # the physical indexes that the name leads to
    gc_deletes: str  # how long deletes are remembered, e.g. 24h, or FOREVER


@dataclass(frozen=True, slots=True)
class IndexDefinition:
    """How a physical index takes documents, in the form of Elasticsearch: see `outbox.destinations.differences`."""

    mappings: Mapping[str, Any]  # defaults may be left out
    defaults: Mapping[str, Mapping[str, Any]]  # all parameters of some fields, by full path
    settings: Mapping[str, Any] | None  # by full names, defaults too; None: it has none


class Destination(Protocol):
    """A search engine that keeps the highest version of each document. Used from several threads at once."""

    def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Carry out the operations, each of another document, together. Returns one outcome for each, in their order.

        Raises nothing. An operation is applied if its version is higher (`or_equal`: not lower) than the one the
        destination holds, or remembers of a deleted document; else it is a conflict that reports that version. Patches
        are rejected as `document_missing` where the document is not there, and the first of them has no upsert. With
        `unless_held` it may be unchanged instead of applied, wherever it is certain that nothing would change. What
        does not fit into one request beside the others, see `weight`, is left out: `SPLIT`.
        """

    def ensure_index(
        self, name: str, mappings: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> str:
        """The physical index for `name`, created (with `name` as alias) if nothing has that name.

        `mappings` and `settings`, in the form of Elasticsearch, are used only when it is created: an index that is
        there stays as it is. Raises `DestinationError`.
        """

    def read(self, target: str, document_ids: Sequence[str]) -> dict[str, Stored]:
        """The documents that are there, by id, as last applied. Raises `DestinationError`.

        What an index does not give back as it was sent, `kept` says.
        """

    def read_texts(self, target: str, document_ids: Sequence[str]) -> dict[str, bytes]:
        """The same documents as JSON, with every digit of their numbers. Raises `DestinationError`."""

    def kept(self, target: str) -> Kept:
        """What a physical index gives back of its documents. Raises `DestinationError`."""

    def pages(
        self, name: str, size: int, *, share: tuple[int, int] = (0, 1), tenants: bool = False
    ) -> Iterator[dict[str, Listed]]:
        """What an index holds, page by page, each document once; nothing if there is no such index.

        A document that is there from the first page to the last is listed; one that comes or goes meanwhile may be.
        `tenants`: also the tenant of each, for which the documents themselves are read.
        `share` is (k, n): about every n-th document, the k-th such part of `n` that have none in common. Closing the
        iterator early is fine. Raises `DestinationError`.
        """

    def refresh(self, name: str) -> None:
        """Make what was applied so far visible to searches. Raises `DestinationError`."""

    def has_tenant(self, name: str, tenants: tuple[str, ...]) -> bool:
        """Whether the field `tenantId` of a document is one of these texts; False if there is no such index.

        Raises `DestinationError`.
        """

    def search(self, name: str, words: str | None, **options: Unpack[Options]) -> Found:
        """The best matches, best first: words, beginnings of words, misspelt words; None: all documents.

        The `options` are those of `outbox.Search`. `tenant` is compared with the field `tenantId`, in all spellings,
        see `outbox.documents.tenant_spellings`. Raises `InvalidInput`, `IndexMissing`, else `DestinationError`.
        """

    def client(self) -> Any:
        """A new client of the search engine's own library, for its whole API. Raises `ConfigurationError` where there
        is none."""

    def ping(self) -> str | None:
        """None if it answers a harmless call, else why not."""

    def health(self) -> Health:
        """Product, version and state. Raises `DestinationError`."""

    def inspect_index(self, name: str, target: str) -> IndexFacts:
        """The state of a physical index and of its name. Changes nothing. Raises `DestinationError`."""

    def definition(self, target: str, mappings: Mapping[str, Any]) -> IndexDefinition:
        """What a physical index was made with, to be compared with those mappings. Raises `DestinationError`, also
        where it is missing."""

    def amend_index(self, target: str, mappings: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Add to the mappings and settings of a physical index. Raises `DestinationError`, and changes nothing of
        either, where that takes a rebuild."""

    def highest_version(self, name: str) -> int:
        """The highest version found in the index, 0 if it is empty or missing. Raises `DestinationError`."""

    def newest_version(self, name: str) -> int:
        """The highest version of what was written last, as far as a quick look shows; 0 for none. Raises
        `DestinationError`."""

    def count(self, target: str) -> int:
        """How many documents are there. Raises `DestinationError`."""

    def create_index(self, target: str, mappings: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Create a physical index that no reader reaches yet, cheap to fill; it need not be fit for searches.

        Raises `DestinationError`, also where something has that name already.
        """

    def finish_index(self, target: str, settings: Mapping[str, Any]) -> None:
        """Make a filled index fit for readers: with all of its settings, and with all that was applied visible.

        Raises `DestinationError`.
        """

    def swap(self, name: str, old: str | None, new: str, *, adopt: bool = False) -> None:
        """Lead the readers of `name` to the index `new` instead of `old`, in one step. None: it leads nowhere so far.

        `adopt`: `name` is no alias, but the index `old` itself, which is removed in the same step. Raises
        `DestinationError` and changes nothing if `name` does not lead to `old`, or no longer does.
        """

    def drop_index(self, target: str) -> None:
        """Remove a physical index with all documents; one that is missing is fine. Raises `DestinationError`."""

    def close(self) -> None: ...


def ensured(destination: Destination, name: str, *options: Mapping[str, Any]) -> tuple[str, bool]:
    """As `Destination.ensure_index`, and whether the index was there before: others may have filled it then."""
    found = bool(destination.inspect_index(name, name).readers)
    return destination.ensure_index(name, *options), found


def remembered(destination: Destination, name: str, document_ids: Sequence[str]) -> list[int]:
    """The versions that an index knows of documents, deleted ones too, of those that it knows.

    A delete of version 0 changes nothing where anything is known of the document, and its answer says what.
    """
    readers = destination.inspect_index(name, name).readers
    asked = [Operation(name, readers[0], document_id, 0, None) for document_id in document_ids if readers]
    outcomes = destination.apply(asked) if asked else ()
    return [each.version for each in outcomes if each.kind is OutcomeKind.CONFLICT and each.version]


def apply_halved(destination: Destination, operations: Sequence[Operation]) -> list[Outcome]:
    """The outcomes of operations; what is too much for one request is halved until it fits."""
    outcomes = destination.apply(operations)
    split = [at for at, outcome in enumerate(outcomes) if outcome.kind is OutcomeKind.SPLIT]
    middle = (len(split) + 1) // 2
    for half in (split[:middle], split[middle:]) if len(operations) > 1 else ():
        if half:
            again = apply_halved(destination, [operations[at] for at in half])
            for at, outcome in zip(half, again, strict=True):
                outcomes[at] = outcome
    return outcomes


def fitting(items: Sequence[T], size_of: Callable[[T], int | None], room: int, unknown: int) -> Sequence[T]:
    """The first of them that there is room for, as far as one can tell: at least one, and no more than `unknown` once
    one comes whose size is None."""
    for end, item in enumerate(items):
        size = size_of(item)
        if end and (room <= 0 or (size is None and end >= unknown)):
            return items[:end]
        room -= size or 0
    return items


def portions(items: Iterable[T], size_of: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """All of them, in order, in parts of at most so many bytes; what is larger by itself is a part of its own."""
    portion: list[T] = []
    filled = 0
    for item in items:
        size = size_of(item)
        if portion and filled + size > most:
            yield portion
            portion, filled = [], 0
        portion.append(item)
        filled += size
    if portion:
        yield portion


def weight(operation: Operation) -> int:
    """How many bytes of a request's limit an operation takes up: its document, and what else is above `LINE_BYTES`."""
    document, name = operation.document, operation.document_id
    size = len(document) if document else 0
    if operation.patches:
        size += sum(map(len, operation.patches)) + sum(len(each.document) for each in operation.upserts)
    # The rest of its line has 100 bytes at most; a character of its id six, escaped in JSON.
    line = 100 + len(operation.target) + 6 * len(name)
    if line > LINE_BYTES and name.isascii() and name.isprintable():
        line -= 4 * len(name)
    return size if line <= LINE_BYTES else size + line - LINE_BYTES


def unsendable(operation: Operation) -> Outcome | None:
    """Why an operation is rejected without being sent, if it is: it would spoil the whole request, or forge another."""
    try:
        size = len(operation.document_id.encode())
    except UnicodeEncodeError:
        return rejected("illegal_argument_exception", "the document id is no valid Unicode text")
    if not 0 < size <= MAX_ID_BYTES:
        return rejected("illegal_argument_exception", f"the document id has {size} bytes, allowed are 1 to 512")
    if operation.document is None:
        return None  # a delete, or patches, which are parsed before they are sent
    if _LF in operation.document or _CR in operation.document:
        return rejected(ILLEGAL_DOCUMENT, "the stored document contains a line break; store JSON on one line")
    if not operation.document.startswith(b"{"):
        return rejected(ILLEGAL_DOCUMENT, "the stored document is missing or no JSON object")
    return None


def index_missing(name: str) -> IndexMissing:
    """What a search raises for an index that is not there."""
    return IndexMissing(f"there is no index {name}: its name is misspelt, or nothing was delivered to it yet")


def rejected(error_type: str, error: str) -> Outcome:
    """An outcome that is the document's fault."""
    return Outcome(OutcomeKind.REJECTED, error_type, error)
