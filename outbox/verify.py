"""Does every index hold exactly what the database says of the registered entities? And if not, have it put right.

The database is walked through in the order of its keys and compared with what the index holds, then the index page by
page with the database. Writes go on meanwhile: what looks wrong is looked at again between two looks at the outbox,
and is reported only if no row of that document was on its way.
"""

from __future__ import annotations

import enum
import json
import random
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from outbox.destinations.base import TENANT_FIELD, Destination, Listed, Operation, OutcomeKind, Stored
from outbox.entities.keys import Tenancy, tenant_of
from outbox.entities.registry import Entity, EntityRegistry, Loaded, LoadFailed, Part
from outbox.errors import ConfigurationError, DestinationError, OutboxError
from outbox.store import verifications
from outbox.store.models import now_ms, version
from outbox.store.store import Store

PAGE = 1_000
MOST_FIELDS = 3
MOST_KEYS_AT_ONCE = 20_000
MOST_SHARES = 1_024
"""Elasticsearch cuts a listing into no more parts than that: the smallest sample is one of them."""

STALE_AFTER = 5_000
"""New rows after which the list of unfinished ones is made anew."""

MOST_KEPT = 50_000
"""Documents in flight that are remembered and looked at again in the end; more are only counted."""

PATIENCE_S = 2.0
PAUSE_S = 0.2

_LARGEST_READ = 5_000_000

Place = tuple[str, str]
"""Index name and `_id`."""


class Kind(enum.StrEnum):
    """What can be wrong with a document."""

    MISSING = "missing"  # the database has it, the index has not
    DIFFERENT = "different"
    EXTRA = "extra"  # the index has it, and no row of the database stands for it
    VERSION = "version"  # the same in both, but its version is above any that the outbox has given: it takes no change
    FAILED = "failed"  # the database's own document cannot be made, so that there is nothing to compare


@dataclass(frozen=True, slots=True)
class Drift:
    """One document that is not as it should be."""

    kind: Kind
    entity: str
    index: str
    document_id: str
    tenant_id: str | None
    version: int | None = None  # of the document in the index
    fields: tuple[str, ...] = ()  # the first that differ
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one side of one entity or index is. `total` may be off by what is written meanwhile."""

    side: str  # database, index
    name: str
    done: int
    total: int | None


@dataclass(slots=True)
class Totals:
    """What a verification has found so far."""

    documents: int = 0  # of the database, compared with the index
    listed: int = 0  # of the index, looked up in the database
    found: Counter[Kind] = field(default_factory=Counter)
    in_flight: int = 0  # not compared: rows of theirs are on their way
    repaired: int = 0  # refresh rows that were written
    epoch: int | None = None  # the new one, if versions in the index made one necessary

    @property
    def drift(self) -> int:
        return sum(self.found.values())

    def as_found(self) -> dict[str, int]:
        """By the names of `outbox.models.FOUND`."""
        counted = {name: getattr(self, name) for name in ("documents", "listed", "in_flight", "repaired")}
        return {**counted, **{str(kind): self.found[kind] for kind in Kind}}


class Verification:
    """One walk through the entities and their indexes. `totals` grows while `run` is iterated over.

    `entities`: by name, all by default. `tenant_id`: only documents of that tenant. `sample`: the part of documents
    to look at, drawn by chance. `repair`: write `refresh` rows for what is found, which a relay delivers as any other
    row; nothing is written to an index. `patience`: seconds to wait in the end for documents in flight.
    Memory does not grow with the number of documents.
    """

    def __init__(
        self,
        store: Store,
        destination: Destination,
        registry: EntityRegistry,
        *,
        entities: Sequence[str] = (),
        tenant_id: str | None = None,
        sample: float = 1.0,
        repair: bool = False,
        page: int = PAGE,
        patience: float = PATIENCE_S,
    ) -> None:
        """Raises `ConfigurationError` for entities that are not registered, or have no tenants where one is asked."""
        if not 1 / MOST_SHARES <= sample <= 1:
            raise ConfigurationError(f"the sample must be at least {100 / MOST_SHARES:.1f}% and at most 100%")
        self._store, self._destination, self._registry = store, destination, registry
        chosen = [registry[name] for name in entities] or [
            entity for entity in registry if tenant_id is None or entity.tenant is not None
        ]
        for entity in chosen:
            if tenant_id is not None and entity.tenant is None:
                raise ConfigurationError(f"entity {entity.name!r} has no tenants; leave the tenant out")
        self._entities, self._tenant_id = list(dict.fromkeys(chosen)), tenant_id
        self._sample, self._repairs, self._page, self._patience = sample, repair, page, patience
        self._indexes: dict[str, bool] = {}  # by name: whether it is there
        self._waiting: dict[Place, Entity] = {}
        self._since = 0
        self.totals = Totals()

    def run(self) -> Iterator[Progress | Drift]:
        """Walk through everything, and say how far it is and what is wrong, as soon as it is known.

        Raises `DestinationError` and `DatabaseUnavailable`. May be given up at any time.
        """
        self._since = verifications.note_unfinished(self._store)
        for entity in self._entities:
            yield from self._database(entity)
        for index in self._index_names():
            yield from self._index(index)
        yield from self._look_again()

    def recorded(
        self, by: str, *, unless_scheduled_since: int | None = None
    ) -> Generator[Progress | Drift, None, None]:
        """`run`, and what it found is noted in the table `outbox_verifications`, where `status` looks.

        Nothing happens if another relay has begun with a scheduled one since that instant. Close it to stop early.
        """
        names = [entity.name for entity in self._entities]
        id_ = verifications.begin(
            self._store,
            by,
            names,
            self._tenant_id,
            self._sample,
            now_ms(),
            unless_scheduled_since=unless_scheduled_since,
        )
        if id_ is None:
            return
        error: str | None = "stopped before its end"
        try:
            yield from self.run()
            error = None
        except OutboxError as raised:
            error = str(raised)
            raise
        finally:
            verifications.finish(self._store, id_, self.totals.as_found(), error, now_ms())

    # -- the database against the index -------------------------------------------------------------------------

    def _database(self, entity: Entity) -> Iterator[Progress | Drift]:
        connection, registry = self._store.connection, self._registry
        part = Part(self._tenant_id)
        total = registry.count(connection, entity, part)
        after, done = None, 0
        limit = min(int(self._page / self._sample), MOST_KEYS_AT_ONCE)
        while identities := registry.identities(connection, entity, part, after=after, limit=limit):
            after = identities[-1]
            drawn = identities if self._sample == 1 else [each for each in identities if random.random() < self._sample]
            for start in range(0, len(drawn), self._page):
                loaded = registry.load_rows(connection, entity, drawn[start : start + self._page])
                documents: dict[str, dict[str, bytes]] = {}
                failed: dict[Place, Entity] = {}
                for identity, (key, document) in loaded.items():
                    if isinstance(document, bytes) and key is not None:
                        documents.setdefault(key.index_name, {})[key.document_id] = document
                    elif isinstance(document, LoadFailed) and key is not None:
                        failed[key[:2]] = entity
                    elif isinstance(document, LoadFailed):
                        yield self._found(_placeless(entity, identity, document))
                yield from self._settle(failed)
                yield from self._compare(entity, documents)
            done += len(identities)
            yield Progress("database", entity.name, done, max(total, done))

    def _compare(self, entity: Entity, documents: Mapping[str, Mapping[str, bytes]]) -> Iterator[Drift]:
        suspects: dict[Place, Entity] = {}
        for index, wanted in documents.items():
            for part in _parts(wanted):
                held = self._read(index, list(part))
                issued = self._issued()
                for document_id, document in part.items():
                    stored = held.get(document_id)
                    if stored is None or stored.version > issued or not _same(document, stored.source):
                        suspects[index, document_id] = entity
            self.totals.documents += len(wanted)
        yield from self._settle(suspects)

    # -- the index against the database -------------------------------------------------------------------------

    def _index_names(self) -> Iterator[str]:
        """Where documents of the entities stand, or may have stood when there were some."""
        known = {*self._indexes, *self._store.index_names(), *(entity.index for entity in self._entities)}
        for name in sorted(known):
            if any(self._may_stand_in(entity, name) for entity in self._entities) and self._is_there(name):
                yield name

    def _may_stand_in(self, entity: Entity, index: str) -> bool:
        if self._tenant_id is not None and entity.tenancy is Tenancy.INDEX:
            return tenant_of(entity.tenancy, entity.index, index, "") == self._tenant_id
        return entity.index_names(index)

    def _index(self, index: str) -> Iterator[Progress | Drift]:
        shares = round(1 / self._sample)
        share = (random.randrange(shares), shares)
        entities = self._registry.of_index(index)
        done = 0
        for page in self._destination.pages(index, self._page, share=share, tenants=self._tenant_id is not None):
            asked = [each for each, listed in page.items() if self._is_asked_for(index, each, listed)]
            holders: dict[str, str | None] = {}
            for entity in entities:
                places = [(index, each) for each in asked if each not in holders]
                found = self._registry.holders(self._store.connection, entity, places)
                holders |= {each: key.tenant_id for (_, each), key in found.items()}
            # What has a row was compared when its row was met; unless that is another tenant's by now.
            yield from self._settle(
                {
                    (index, each): self._owner(index, each)
                    for each in asked
                    if each not in holders or self._tenant_id not in (None, holders[each])
                }
            )
            done += len(page)
            self.totals.listed += len(asked)
            yield Progress("index", index, done, None)

    def _is_asked_for(self, index: str, document_id: str, listed: Listed) -> bool:
        if self._tenant_id is None:
            return True
        return _tenant(self._owner(index, document_id), index, document_id, listed.tenant_id) == self._tenant_id

    def _owner(self, index: str, document_id: str) -> Entity:
        """The entity that a document of no row belongs to: one that could have such an `_id`, if any."""
        candidates = [entity for entity in self._entities if entity.index_names(index)]
        likely = (entity for entity in candidates if entity.identity_of(document_id) is not None)
        return next(likely, candidates[0])

    # -- what looks wrong ---------------------------------------------------------------------------------------

    def _settle(self, suspects: Mapping[Place, Entity]) -> Iterator[Drift]:
        """Look again at what looks wrong, and say what is. What is on its way is kept for the end.

        A document of which no row was unfinished before this look, and none was written until after it, is as the
        outbox has left it.
        """
        if not suspects:
            return
        if self._store.highest_id() - self._since > STALE_AFTER:
            self._since = verifications.note_unfinished(self._store)
        expected = self._expected(suspects)
        held = {
            (index, document_id): stored
            for index, ids in _by_index(suspects).items()
            for document_id, stored in self._read(index, ids).items()
        }
        issued = self._issued()
        moving = verifications.moving(self._store, suspects, self._since)
        drifts = []
        for place, entity in suspects.items():
            if place in moving:
                self._keep(place, entity)
                continue
            owner, document = expected.get(place, (entity, None))
            if drift := _judge(owner, place, document, held.get(place), issued):
                drifts.append(self._found(drift))
        self._repair(drifts)
        yield from drifts

    def _expected(self, suspects: Mapping[Place, Entity]) -> dict[Place, tuple[Entity, Loaded]]:
        """What shall stand at the places, and by which of the entities of their index."""
        found: dict[Place, tuple[Entity, Loaded]] = {}
        for index, ids in _by_index(suspects).items():
            for entity in self._registry.of_index(index):
                places = [(index, document_id) for document_id in ids]
                for place, document in self._registry.load_places(self._store.connection, entity, places).items():
                    if document is not None and (place not in found or suspects[place] is entity):
                        found[place] = (entity, document)
        return found

    def _keep(self, place: Place, entity: Entity) -> None:
        if len(self._waiting) < MOST_KEPT:
            self._waiting[place] = entity
        else:
            self.totals.in_flight += 1

    def _look_again(self) -> Iterator[Progress | Drift]:
        """At the documents that were on their way; a few times, for those that still are."""
        deadline = time.monotonic() + self._patience
        beyond = self.totals.in_flight
        while self._waiting:
            self._since = verifications.note_unfinished(self._store)
            again, self._waiting = list(self._waiting.items()), {}
            for start in range(0, len(again), self._page):
                yield from self._settle(dict(again[start : start + self._page]))
            if not self._waiting or time.monotonic() >= deadline:
                break
            time.sleep(PAUSE_S)
        self.totals.in_flight = beyond + len(self._waiting)

    def _found(self, drift: Drift) -> Drift:
        self.totals.found[drift.kind] += 1
        return drift

    # -- repair -------------------------------------------------------------------------------------------------

    def _repair(self, drifts: Sequence[Drift]) -> None:
        """Write a `refresh` row for each; first see to it that the index takes it: versions there may be higher."""
        mendable = [drift for drift in drifts if drift.kind is not Kind.FAILED]
        if not self._repairs or not mendable:
            return
        now = now_ms()
        highest = max([*(drift.version or 0 for drift in mendable), *self._tombstones(mendable)])
        if (epoch := verifications.raise_above(self._store, highest, now)) is not None:
            self.totals.epoch = epoch
        verifications.refresh(
            self._store, [(each.index, each.document_id, each.tenant_id, each.entity) for each in mendable], now
        )
        self.totals.repaired += len(mendable)

    def _tombstones(self, drifts: Sequence[Drift]) -> list[int]:
        """The versions that the index remembers of missing documents: a delete by hand has a version too.

        A delete of version 0 changes nothing where anything is known of the document, and tells what.
        """
        found: list[int] = []
        for index, ids in _by_index((each.index, each.document_id) for each in drifts if each.version is None).items():
            readers = self._destination.inspect_index(index, index).readers
            if readers:
                asked = [Operation(index, readers[0], document_id, 0, None) for document_id in ids]
                outcomes = self._destination.apply(asked)
                found += [each.version for each in outcomes if each.kind is OutcomeKind.CONFLICT and each.version]
        return found

    # -- looking ------------------------------------------------------------------------------------------------

    def _issued(self) -> int:
        """The highest version that the outbox can have given to a document so far."""
        return version(self._store.control().epoch, self._store.highest_id())

    def _read(self, index: str, document_ids: Sequence[str]) -> dict[str, Stored]:
        """What readers of an index get, whatever physical index that is at the moment."""
        return self._destination.read(index, document_ids) if self._is_there(index) else {}

    def _is_there(self, index: str) -> bool:
        if not self._indexes.get(index):  # a relay may have made it meanwhile
            readers = self._destination.inspect_index(index, index).readers
            if len(readers) > 1:
                raise DestinationError(
                    f"alias {index} points to {len(readers)} indexes ({', '.join(readers)}); make it point to one"
                )
            self._indexes[index] = bool(readers)
        return self._indexes[index]


def _judge(entity: Entity, place: Place, document: Loaded, stored: Stored | None, issued: int) -> Drift | None:
    """What is wrong with a document, if anything is."""
    index, document_id = place
    held = None if stored is None else stored.version
    if not isinstance(document, bytes):
        tenant_id = _tenant(entity, index, document_id, stored and stored.source.get(TENANT_FIELD))
        if document is not None:
            return Drift(Kind.FAILED, entity.name, index, document_id, tenant_id, held, error=_said(document))
        return None if stored is None else Drift(Kind.EXTRA, entity.name, index, document_id, tenant_id, held)
    expected = json.loads(document)
    tenant_id = _tenant(entity, index, document_id, expected.get(TENANT_FIELD))
    if stored is None:
        return Drift(Kind.MISSING, entity.name, index, document_id, tenant_id)
    if not _same(document, stored.source):
        fields = tuple(differing(expected, stored.source))[:MOST_FIELDS]
        return Drift(Kind.DIFFERENT, entity.name, index, document_id, tenant_id, held, fields)
    if stored.version > issued:
        return Drift(Kind.VERSION, entity.name, index, document_id, tenant_id, held)
    return None


def _placeless(entity: Entity, identity: Sequence[Any], failure: LoadFailed) -> Drift:
    """A row that has no place for its document."""
    return Drift(Kind.FAILED, entity.name, entity.index, "|".join(map(str, identity)), None, error=_said(failure))


def _said(failure: LoadFailed) -> str:
    return f"{failure.error_type}: {failure.error}"


def _tenant(entity: Entity, index: str, document_id: str, named: Any) -> str | None:
    """Whose document it is: by its place, where the tenant is a part of that, else by the field that names it."""
    if entity.tenant is None:
        return None
    placed = tenant_of(entity.tenancy, entity.index, index, document_id)
    return placed if placed is not None else named if isinstance(named, str) else None


def _same(document: bytes, source: Mapping[str, Any]) -> bool:
    return canonical(json.loads(document)) == canonical(source)


def canonical(value: Any) -> bytes:
    """The same bytes for what JSON calls the same: the order of keys does not count, that of arrays does.

    >>> canonical({"b": 1, "a": [True, 1.0]}) == canonical({"a": [True, 1.0], "b": 1})
    True
    >>> canonical({"a": 1}) == canonical({"a": True})
    False
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # integers of more than 64 bits, lone surrogates
        return json.dumps(value, sort_keys=True).encode()


def differing(expected: Any, actual: Any, path: str = "") -> Iterator[str]:
    """The paths of the fields that differ.

    >>> list(differing({"a": 1, "b": {"c": 1, "d": 2}}, {"a": 1, "b": {"c": 2, "d": 2}, "e": 0}))
    ['b.c', 'e']
    """
    if isinstance(expected, dict) and isinstance(actual, dict):
        for name in [*expected, *(name for name in actual if name not in expected)]:
            below = f"{path}.{name}" if path else name
            if name not in expected or name not in actual:
                yield below
            else:
                yield from differing(expected[name], actual[name], below)
    elif canonical(expected) != canonical(actual):
        yield path


def _by_index(places: Iterable[Place]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for index, document_id in places:
        found.setdefault(index, []).append(document_id)
    return found


def _parts(documents: Mapping[str, bytes]) -> Iterator[dict[str, bytes]]:
    """In parts of a few megabytes: the index answers with about as much."""
    part: dict[str, bytes] = {}
    size = 0
    for document_id, document in documents.items():
        if part and size + len(document) > _LARGEST_READ:
            yield part
            part, size = {}, 0
        part[document_id] = document
        size += len(document)
    if part:
        yield part
