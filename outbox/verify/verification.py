"""Does every index hold exactly what the database says of the registered entities?

The database is read in the order of its keys and compared with what the index holds, then the index page by page with
the database. Writes go on meanwhile: what looks wrong is looked at again between two looks at the outbox, and is
reported only if no row of that document was on its way.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from loguru import logger

from outbox.destinations.base import Destination, Listed, Stored, portions
from outbox.destinations.kept import Kept
from outbox.destinations.same import is_same
from outbox.entities import loader
from outbox.entities.entity import Entity
from outbox.entities.keys import Tenancy, is_tenant_index
from outbox.entities.loader import Part
from outbox.entities.maker import Loaded, LoadFailed
from outbox.entities.registry import EntityRegistry
from outbox.entities.spelling import is_known, some_tenants, tenant_texts, unknown
from outbox.errors import ConfigurationError, DestinationError, OutboxError
from outbox.store import verifications
from outbox.store.by_index import names as index_names
from outbox.store.drift import DriftKind
from outbox.store.models import now_ms
from outbox.store.store import Store
from outbox.verify import repair
from outbox.verify.drift import Drift, Place, by_index, judge, tenant_named, without_place

PAGE = 1_000
MOST_KEYS_AT_ONCE = 20_000
MOST_SHARES = 1_024
"""Elasticsearch cuts a listing into no more parts than that: the smallest sample is one of them."""

STALE_AFTER = 5_000
"""New rows after which the list of unfinished ones is made anew."""

MOST_KEPT = 50_000
"""Documents in flight that are remembered and looked at again in the end; more are only counted."""

SUSPECTS_AT_ONCE = 100

PATIENCE_S = 2.0
PAUSE_S = 0.2

_LARGEST_READ = 5_000_000
"""Bytes of documents that are compared at a time: the index answers with about as much."""


def share(sample: float) -> str | None:
    """How large a sample is, for the audit; None: it is all of them."""
    return f"{sample:.1%}" if sample < 1 else None


@dataclass(frozen=True, slots=True)
class Checked:
    """How many documents were compared so far. `total` may be off by what is written meanwhile."""

    side: str  # database, index
    name: str
    done: int
    total: int | None


@dataclass(slots=True)
class Totals:
    """What a verification has found so far."""

    documents: int = 0  # of the database, compared with the index
    listed: int = 0  # of the index, looked up in the database
    found: Counter[DriftKind] = field(default_factory=Counter)
    in_flight: int = 0  # not compared: rows of theirs are on their way
    repaired: int = 0  # refresh rows that were written
    epoch: int | None = None  # the new one, if versions in the index made one necessary

    @property
    def drift(self) -> int:
        return sum(self.found.values())

    def as_found(self) -> dict[str, int]:
        """By the names of `outbox.models.FOUND`."""
        counted = {name: getattr(self, name) for name in ("documents", "listed", "in_flight", "repaired")}
        return {**counted, **{str(kind): self.found[kind] for kind in DriftKind}}


class Verification:
    """One comparison of entities with their indexes. `totals` grows while `run` is iterated over.

    `entities`: by name, all by default. `tenant_id`: only documents of that tenant, however it is spelled. `sample`:
    the part of documents to look at, drawn by chance. `repair`: write `refresh` rows for what is found, which a relay
    delivers as any other row; nothing is written to an index. `patience`: seconds to wait in the end for documents in
    flight.
    Memory does not grow with the number of documents.
    """

    def __init__(
        self,
        store: Store,
        destination: Destination,
        registry: EntityRegistry,
        *,
        entities: Sequence[str] = (),
        tenant_id: object = None,
        sample: float = 1.0,
        repair: bool = False,
        page: int = PAGE,
        patience: float = PATIENCE_S,
    ) -> None:
        """Raises `ConfigurationError` for entities that are not registered, or have no tenants where one is given;
        `UnknownTenant` if there is neither row nor document of it; then also `DestinationError`."""
        if not 1 / MOST_SHARES <= sample <= 1:
            raise ConfigurationError(f"the sample must be at least {100 / MOST_SHARES:.1f}% and at most 100%")
        self._store, self._destination, self._registry = store, destination, registry
        chosen = [registry[name] for name in entities] or [
            entity for entity in registry if tenant_id is None or entity.tenant is not None
        ]
        for entity in chosen:
            if tenant_id is not None and entity.tenant is None:
                raise ConfigurationError(f"entity {entity.name!r} has no tenants; leave the tenant out")
        self._entities = list(dict.fromkeys(chosen))
        self._tenants = None if tenant_id is None else _spellings(store, destination, self._entities, tenant_id)
        self._tenant_id = None if self._tenants is None else self._tenants[0]
        self._sample, self._repairs, self._page, self._patience = sample, repair, page, patience
        self._indexes: dict[str, bool] = {}  # by name: whether it is there
        self._waiting: dict[Place, Entity] = {}
        self._since, self._said = 0, set[str]()  # of which indexes it was said that not all can be compared
        self.totals = Totals()
        self.number: int | None = None
        """Of what is recorded of it, once `recorded` has begun."""

    def run(self) -> Iterator[Checked | Drift]:
        """Walk through everything; yields how far it is, and each document that is wrong as soon as it is known.

        Raises `DestinationError` and `DatabaseUnavailable`. May be given up at any time.
        """
        self._since = verifications.note_unfinished(self._store)
        for entity in self._entities:
            yield from self._database(entity)
        for index in self._index_names():
            yield from self._index(index)
        yield from self._look_again()

    def recorded(self, by: str, *, unless_scheduled_since: int | None = None) -> Generator[Checked | Drift, None, None]:
        """`run`, and what it found is noted in the table `outbox_verifications`, where `status` looks.

        Nothing happens if another relay has begun with a scheduled one since that instant. Close it to stop early.
        """
        names = [entity.name for entity in self._entities]
        given = names, self._tenant_id, self._sample, now_ms()
        id_ = verifications.begin(self._store, by, *given, unless_scheduled_since=unless_scheduled_since)
        if id_ is None:
            return
        self.number = id_
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

    def _database(self, entity: Entity) -> Iterator[Checked | Drift]:
        connection = self._store.connection
        part = Part(self._tenant_id)
        total = loader.count(connection, entity, part)
        after, done = None, 0
        limit = min(int(self._page / self._sample), MOST_KEYS_AT_ONCE)
        while identities := loader.identities(connection, entity, part, after=after, limit=limit):
            after = identities[-1]
            drawn = identities if self._sample == 1 else [each for each in identities if random.random() < self._sample]
            for loaded in loader.load_rows(connection, entity, drawn, self._page):
                documents: dict[str, dict[str, bytes]] = {}
                failed: dict[Place, Entity] = {}
                for identity, (key, document) in loaded.items():
                    if isinstance(document, bytes) and key is not None:
                        documents.setdefault(key.index_name, {})[key.document_id] = document
                    elif isinstance(document, LoadFailed) and key is not None:
                        failed[key[:2]] = entity
                    elif isinstance(document, LoadFailed):
                        yield self._found(without_place(entity, identity, document))
                yield from self._settle(failed)
                yield from self._compare(entity, documents)
            done += len(identities)
            yield Checked("database", entity.name, done, max(total, done))

    def _compare(self, entity: Entity, documents: Mapping[str, Mapping[str, bytes]]) -> Iterator[Drift]:
        for index, wanted in documents.items():
            for part in portions(wanted.items(), lambda item: len(item[1]), _LARGEST_READ):
                suspects: dict[Place, Entity] = {}
                ids = [document_id for document_id, _ in part]
                held, kept, issued = self._read(index, ids), self._kept(index), self._store.highest_version()
                for document_id, document in part:
                    stored = held.get(document_id)
                    if stored is None or stored.version > issued or not is_same(document, stored.source, kept):
                        suspects[index, document_id] = entity
                yield from self._settle(suspects)
            self.totals.documents += len(wanted)

    # -- the index against the database -------------------------------------------------------------------------

    def _index_names(self) -> Iterator[str]:
        """Where documents of the entities are, or may have been when there were some."""
        known = {*self._indexes, *index_names(self._store), *(entity.index for entity in self._entities)}
        for name in sorted(known):
            if any(_may_be_in(entity, name, self._tenants) for entity in self._entities) and self._is_there(name):
                yield name

    def _index(self, index: str) -> Iterator[Checked | Drift]:
        shares = round(1 / self._sample)
        share = (random.randrange(shares), shares)
        entities = self._registry.of_index(index)
        done = 0
        for page in self._destination.pages(index, self._page, share=share, tenants=self._tenant_id is not None):
            owners = {each: _owner(entities, self._entities, each) for each in page}
            asked = [each for each, listed in page.items() if self._is_asked_for(owners[each], index, each, listed)]
            holders: dict[str, str | None] = {}
            for entity in entities:
                places = [(index, each) for each in asked if each not in holders]
                found = loader.holders(self._store.connection, entity, places)
                holders |= {each: key.tenant_id for (_, each), key in found.items()}
            # A document with a row was compared with that row; unless the row is another tenant's by now.
            yield from self._settle(
                {
                    (index, each): owners[each]
                    for each in asked
                    if each not in holders or (self._tenants is not None and holders[each] not in self._tenants)
                }
            )
            done += len(page)
            self.totals.listed += len(asked)
            yield Checked("index", index, done, None)

    def _is_asked_for(self, owner: Entity, index: str, document_id: str, listed: Listed) -> bool:
        if owner not in self._entities:
            return False
        if self._tenants is None:
            return True
        return tenant_named(owner, index, document_id, listed.tenant_id) in self._tenants

    # -- what looks wrong ---------------------------------------------------------------------------------------

    def _settle(self, suspects: Mapping[Place, Entity]) -> Iterator[Drift]:
        """Look again at what looks wrong, some at a time: their documents may be large, on either side."""
        for some in portions(suspects.items(), lambda _: 1, SUSPECTS_AT_ONCE):
            yield from self._judged(dict(some))

    def _judged(self, suspects: Mapping[Place, Entity]) -> Iterator[Drift]:
        """What is wrong indeed. What is on its way is kept for the end.

        A document of which no row was unfinished before this look, and none was written until after it, is as the
        outbox has left it.
        """
        if self._store.highest_id() - self._since > STALE_AFTER:
            self._since = verifications.note_unfinished(self._store)
        expected = self._expected(suspects)
        held = {
            (index, document_id): stored
            for index, ids in by_index(suspects).items()
            for document_id, stored in self._read(index, ids).items()
        }
        issued = self._store.highest_version()
        moving = verifications.moving(self._store, suspects, self._since)
        drifts = []
        for place, entity in suspects.items():
            if place in moving:
                self._keep(place, entity)
                continue
            owner, document = expected[place]
            if drift := judge(owner or entity, place, document, held.get(place), issued, self._kept(place[0])):
                drifts.append(self._found(drift))
        if self._repairs:
            repaired, epoch = repair.repair(self._store, self._destination, drifts)
            self.totals.repaired += repaired
            self.totals.epoch = self.totals.epoch if epoch is None else epoch
        yield from drifts

    def _expected(self, suspects: Mapping[Place, Entity]) -> dict[Place, tuple[Entity | None, Loaded]]:
        """What the places should hold, and which entity of their index makes it."""
        found: dict[Place, tuple[Entity | None, Loaded]] = {}
        for index, ids in by_index(suspects).items():
            places = [(index, document_id) for document_id in ids]
            found |= loader.load_first(self._store.connection, self._registry.of_index(index), places)
        return found

    def _keep(self, place: Place, entity: Entity) -> None:
        if len(self._waiting) < MOST_KEPT:
            self._waiting[place] = entity
        else:
            self.totals.in_flight += 1

    def _look_again(self) -> Iterator[Checked | Drift]:
        """Compare the documents that were on their way; several times, those that still are."""
        deadline = time.monotonic() + self._patience
        beyond = self.totals.in_flight
        while self._waiting:
            self._since = verifications.note_unfinished(self._store)
            again, self._waiting = self._waiting, {}
            yield from self._settle(again)
            if not self._waiting or time.monotonic() >= deadline:
                break
            time.sleep(PAUSE_S)
        self.totals.in_flight = beyond + len(self._waiting)

    def _found(self, drift: Drift) -> Drift:
        self.totals.found[drift.kind] += 1
        return drift

    # -- looking ------------------------------------------------------------------------------------------------

    def _read(self, index: str, document_ids: Sequence[str]) -> dict[str, Stored]:
        """What readers of an index get, from the physical index that it leads to now."""
        return self._destination.read(index, document_ids) if self._is_there(index) else {}

    def _kept(self, index: str) -> Kept:
        """What an index gives back of its documents; said once where that is not all of them."""
        kept = self._destination.kept(index) if self._indexes.get(index) else Kept()
        if (without := kept.compared_without) and index not in self._said:
            self._said.add(index)
            logger.warning("index {index}: {without}", index=index, without=without)
        return kept

    def _is_there(self, index: str) -> bool:
        there = self._indexes[index] = self._indexes.get(index) or _has_a_reader(self._destination, index)
        return there


def _has_a_reader(destination: Destination, index: str) -> bool:
    """Asked again where it had none: a relay may have made it meanwhile. Raises `DestinationError` for several."""
    readers = destination.inspect_index(index, index).readers
    if len(readers) > 1:
        raise DestinationError(
            f"alias {index} points to {len(readers)} indexes ({', '.join(readers)}); make it point to one"
        )
    return bool(readers)


def _spellings(store: Store, destination: Destination, entities: Sequence[Entity], tenant: object) -> tuple[str, ...]:
    """All spellings of a tenant. Raises `UnknownTenant` if there is neither row nor document of it."""
    spelled = tenant_texts(tenant, entities)
    if not is_known(store, entities, spelled[0]):
        indexes = {*store.targets(), *(entity.index for entity in entities)}
        if not any(destination.has_tenant(name, spelled) for name in indexes):
            raise unknown(spelled[0], some_tenants(store, entities))
    return spelled


def _may_be_in(entity: Entity, index: str, tenants: Collection[str] | None) -> bool:
    """Whether documents of the entity, and of the tenant if one is given (in all spellings), can be in the index."""
    if tenants is not None and entity.tenancy is Tenancy.INDEX:
        return is_tenant_index(index, entity.index, tenants)
    return entity.index_names(index)


def _owner(of_index: Sequence[Entity], chosen: Sequence[Entity], document_id: str) -> Entity:
    """The entity that a document of an index belongs to if it has no row: one that could have such an `_id`, a chosen
    one rather than others; if there is none, a chosen one."""
    likely = [entity for entity in of_index if entity.identity_of(document_id) is not None] or of_index
    return next((entity for entity in likely if entity in chosen), likely[0])
