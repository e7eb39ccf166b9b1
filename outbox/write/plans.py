"""What a change of an object of some class means: found out once from the registry, for all sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Insert,
    Text,
    bindparam,
    func,
    insert,
    inspect,
    literal,
    literal_column,
    select,
    text,
)
from sqlalchemy.orm import InstrumentedAttribute, Mapper, RelationshipDirection, RelationshipProperty

from outbox.entities.columns import is_respelt
from outbox.entities.entity import Entity
from outbox.entities.keys import SHARED
from outbox.entities.kinds import kind_attributes, same_hierarchy
from outbox.entities.links import Link, counted, links, settled, with_writers, written_by
from outbox.entities.registry import EntityRegistry
from outbox.entities.secondaries import with_secondaries
from outbox.store import models
from outbox.store.ddl import IsOwn
from outbox.store.models import Action


class Own(NamedTuple):
    """An entity, as its own objects see it."""

    entity: Entity
    counts: frozenset[str] | None  # attributes whose change makes the document anew; None: all
    moves: frozenset[str] | None
    """Attributes that say where the document belongs, beside what the identity map knows. None: any change may move
    it, also one that a listener or the database makes of it."""

    @property
    def may_move(self) -> bool:
        return self.moves is None or bool(self.moves)


class Collection(NamedTuple):
    """A relationship whose flush changes its members: those that come, maybe from another object, and that go."""

    name: str
    own: tuple[Own, ...]  # whose documents it moves
    links: tuple[Link, ...]  # that lead to others from then on


@dataclass(eq=False)
class Plan:
    """What a change of an object of some class means."""

    own: tuple[Own, ...]
    relatives: tuple[Own, ...]  # that the row may be of now or later, other than by the class of the object
    kinds: frozenset[str]  # attributes that say of which of them it is …
    kind: Any  # … and what they say of an object of the class itself
    links: tuple[Link, ...]
    collections: tuple[Collection, ...]
    orphans: Mapping[str, InstrumentedAttribute[Any]]  # relationships whose former members a flush may delete …
    parents: Mapping[str, InstrumentedAttribute[Any]]  # … and those without which it is deleted itself: the other end
    relationships: frozenset[str]
    equal: Mapping[str, Callable[[Any, Any], bool]]  # of each attribute that is a column

    @cached_property
    def is_empty(self) -> bool:
        return not (self.own or self.relatives or self.links or self.collections or self.orphans or self.parents)

    @cached_property
    def looks_before(self) -> bool:
        """Whether a flush may overwrite what says where documents are."""
        followed = self.relatives or self.links or self.collections or self.orphans or self.parents
        return bool(followed or any(own.may_move for own in self.own))


class Memo(dict[type[Any], Plan | None]):
    """What a change of an object of a class means, found out once. None: nothing."""

    def __init__(self, find: Callable[[type[Any]], Plan | None]) -> None:
        self._find = find

    def __missing__(self, class_: type[Any]) -> Plan | None:
        found = self[class_] = self._find(class_)
        return found


class Known:
    """What follows from a registry as it is: made anew when an entity is added, never changed under a thread."""

    def __init__(self, registry: EntityRegistry) -> None:
        self.generation = registry.generation
        self.own = [
            Own(entity, with_secondaries(entity.mapper, counted(entity)), _moves(entity)) for entity in registry
        ]
        self._of_kinds = [own for own in self.own if own.entity.mapper.inherits is not None]
        self.links = links(registry)
        self.looks_before = bool(self.links or self._of_kinds) or any(own.may_move for own in self.own)
        self.plans = Memo(self._plan)
        self._reduced: dict[frozenset[Entity], Memo] = {}
        self._inserts: dict[Link, Insert] = {}

    def _plan(self, class_: type[Any]) -> Plan | None:
        mapper: Mapper[Any] = inspect(class_)
        relationships = mapper.relationships
        plan = Plan(
            tuple(own for own in self.own if mapper.isa(own.entity.mapper)),
            tuple(each for each in self._of_kinds if is_relative(mapper, each.entity.mapper)),
            kind_attributes(mapper),
            mapper.polymorphic_identity,
            tuple(link for link in self.links if mapper.isa(link.target) or is_relative(mapper, link.target)),
            tuple(self._collections(mapper)),
            {
                each.key: each.class_attribute
                for each in relationships
                if each.cascade.delete_orphan and self._looks_at(each.mapper)
            },
            {each.key: other for each in relationships if (other := deletes_orphans(each))}
            if self._looks_at(mapper)
            else {},
            frozenset(relationships.keys()),
            {each.key: each.columns[0].type.compare_values for each in mapper.column_attrs},
        )
        return None if plan.is_empty else plan

    def _collections(self, mapper: Mapper[Any]) -> Iterator[Collection]:
        for prop in mapper.relationships:
            if prop.direction is RelationshipDirection.ONETOMANY:
                found = Collection(
                    prop.key,
                    tuple(
                        own for own in self.own if own.may_move and _sets(prop, own.entity.mapper, _place(own.entity))
                    ),
                    tuple(link for link in self.links if _sets(prop, link.target, link.linking)),
                )
                if found.own or found.links:
                    yield found

    def _looks_at(self, mapper: Mapper[Any]) -> bool:
        """Whether the deletion of such an object takes away what says where documents are."""
        looking = [*self._of_kinds, *(own for own in self.own if own.may_move)]
        looked = [own.entity.mapper for own in looking] + [link.target for link in self.links]
        return any(related(gone, each) for gone in cascade_deleted(mapper) for each in looked)

    def plans_without(self, aside: frozenset[Entity]) -> Memo:
        """The plans where triggers note the changes of these entities."""
        if not aside:
            return self.plans
        found = self._reduced.get(aside)
        if found is None:
            found = self._reduced[aside] = Memo(lambda class_: without(self.plans[class_], aside))
        return found

    def insert_of(self, link: Link) -> Insert:
        """The statement that notes all documents of a link."""
        found = self._inserts.get(link)
        if found is None:
            found = self._inserts[link] = _insert_of(link)
        return found


def without(plan: Plan | None, aside: frozenset[Entity]) -> Plan | None:
    """A plan without what concerns these entities."""
    if plan is None:
        return None
    reduced = replace(
        plan,
        own=tuple(own for own in plan.own if own.entity not in aside),
        relatives=tuple(own for own in plan.relatives if own.entity not in aside),
        links=tuple(link for link in plan.links if link.entity not in aside),
        collections=tuple(
            each._replace(
                own=tuple(own for own in each.own if own.entity not in aside),
                links=tuple(link for link in each.links if link.entity not in aside),
            )
            for each in plan.collections
        ),
    )
    return None if reduced.is_empty else reduced


def _moves(entity: Entity) -> frozenset[str] | None:
    if entity.id_key != entity.key or any(is_respelt(entity.column(name).type) for name in entity.placed_by):
        return None
    if entity.tenancy is SHARED or entity.tenant is None:
        return frozenset()
    return with_writers(entity.mapper, _place(entity))


def _place(entity: Entity) -> frozenset[str] | None:
    """The attributes that say where a document belongs. None: one of them changes without being set."""
    names = {*entity.key, *entity.id_key} | kinds_of(entity)
    if entity.tenant is not None and entity.tenancy is not SHARED:
        names.add(entity.tenant)
    return settled(entity.mapper, names)


def _sets(collection: RelationshipProperty[Any], mapper: Mapper[Any], names: frozenset[str] | None) -> bool:
    """Whether a flush of a collection may set one of these attributes of its members, which are of the class."""
    written = written_by(collection, mapper) if same_hierarchy(collection.mapper, mapper) else None
    return bool(written) and intersects(names, written)


def kinds_of(entity: Entity) -> frozenset[str]:
    """The attributes that say whether a row of its table is one of the entity."""
    return kind_attributes(entity.mapper) if entity.mapper.inherits is not None else frozenset()


def intersects(counts: frozenset[str] | None, names: Iterable[str] | None) -> bool:
    """Whether one of the attributes counts; None: all."""
    return counts is None or names is None or not counts.isdisjoint(names)


def deletes_orphans(relationship: RelationshipProperty[Any]) -> InstrumentedAttribute[Any] | None:
    """The other end of a relationship, if it deletes what leaves it."""
    name = relationship.back_populates
    other = relationship.mapper.relationships[name] if name else None
    return other.class_attribute if other and other.cascade.delete_orphan else None


def cascade_deleted(mapper: Mapper[Any]) -> set[Mapper[Any]]:
    """What a session deletes with an object."""
    found, new = set[Mapper[Any]](), [mapper]
    while new:
        found.add(each := new.pop())
        below = [*each.self_and_descendants, *(prop.mapper for prop in each.relationships if prop.cascade.delete)]
        new += [other for other in below if other not in found]
    return found


def related(mapper: Mapper[Any], other: Mapper[Any]) -> bool:
    """Whether an object of one may be one of the other."""
    return mapper.isa(other) or other.isa(mapper)


def is_relative(mapper: Mapper[Any], other: Mapper[Any]) -> bool:
    """Whether the row of an object of one may be of the other, although the object is not."""
    return not mapper.isa(other) and same_hierarchy(mapper, other)


def _insert_of(link: Link) -> Insert:
    """A row for each document whose last row of this transaction, whose rows begin with the id `:since`, is none of the
    entity, or waits no longer.

    A row of another transaction says nothing: it may be delivered before this one is committed.
    """
    name = link.entity.name
    columns: dict[str, Any] = {
        "action": literal(Action.REFRESH.value, Text),
        "entity": literal(name, Text),
        "document_bytes": literal(0),
        "created_at": bindparam("created_at", type_=BigInteger),  # what has no type is text behind DISTINCT
    }
    # By the index of unfinished rows, found by its condition to the letter; by their ids, all rows of a transaction
    # would be looked at for each flush, and so these are hidden from the planner.
    events, id_ = models.events, literal_column("+outbox_events.id", BigInteger)
    last = (
        select(events.c.entity)
        .where(
            events.c.index_name == link.entity.index_sql(),
            events.c.document_id == link.entity.document_id_sql(),
            text(f"({models.unfinished('outbox_events')})"),
            id_ >= bindparam("since", type_=BigInteger),
            IsOwn(),
        )
        .order_by(id_.desc())
        .limit(literal_column("1"))
        .correlate_except(events)
        .scalar_subquery()
    )
    documents = link.documents.add_columns(*columns.values()).where(func.coalesce(last, "") != name)
    return insert(events).from_select(["index_name", "document_id", "tenant_id", *columns], documents)
