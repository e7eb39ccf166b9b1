"""Documents that are made of rows of other models too: what leads from a changed row to them, in one SELECT.

A path of `fields` (`account.owner.name`) is a link to each model on it, and so are those of `depends_on`. A class that
is mapped to the table between two of them is one more, for sessions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Select, UnaryExpression, bindparam, inspect, null, select, tuple_
from sqlalchemy.orm import (
    ColumnProperty,
    CompositeProperty,
    Mapper,
    MapperProperty,
    RelationshipDirection,
    RelationshipProperty,
    aliased,
)
from sqlalchemy.sql import visitors
from sqlalchemy.sql.schema import Column
from sqlalchemy.sql.util import ClauseAdapter

from outbox.entities.columns import alike
from outbox.entities.entity import Branch, Dependency, Entity, key_of
from outbox.entities.kinds import kind_attributes, same_hierarchy
from outbox.entities.mappers import mappers_beside
from outbox.entities.reads import check_reads, resolved
from outbox.entities.refusals import nearest
from outbox.entities.secondaries import check_collections, with_secondaries
from outbox.errors import ConfigurationError

_Path = tuple[RelationshipProperty[Any], ...]


@dataclass(frozen=True, eq=False)
class Link:
    """Documents of `entity` are made of rows of `target` too."""

    entity: Entity
    target: Mapper[Any]
    key: tuple[str, ...]  # attributes of its primary key
    counts: frozenset[str] | None  # attributes of the target whose change makes the documents anew; None: all
    linking: frozenset[str] | None  # attributes of the target that say which documents are made of it; None: all
    documents: Select[Any]  # index, _id and tenant of the documents made of the rows `:identities`
    columns: tuple[str, ...] = ()  # attributes of the entity that hold the key of the target …
    path: _Path = ()  # … or the relationships that lead to it


def links(entities: Iterable[Entity]) -> list[Link]:
    """All links of all entities, as sessions see them."""
    found: list[Link] = []
    for entity in entities:
        ways = list(links_of(entity))
        mappers = mappers_beside([entity.mapper, *(way.target for way in ways)])
        found += [*ways, *_associations(entity, ways, mappers), *_second_classes(entity, ways, mappers)]
    return [_as_sessions_see(link) for link in found]


def _as_sessions_see(link: Link) -> Link:
    """With the relationships that a session sets where triggers see columns and many-to-many tables."""
    return replace(
        link,
        counts=with_secondaries(link.target, link.counts, link.path),
        linking=with_writers(link.target, with_secondaries(link.target, link.linking, link.path)),
    )


def counted(entity: Entity) -> frozenset[str] | None:
    """The attributes of an entity whose change makes its document anew. None: all of them."""
    if entity.watch is None and (entity.when is not None or entity.to_document is not None):
        return None
    names = {*entity.key, *entity.id_key, *(entity.watch or ())}
    if entity.tenant:
        names.add(entity.tenant)
    for via in (dependency.via for dependency in entity.depends_on.values()):
        names |= _leading_attributes(entity.mapper, via)
    if entity.mapper.inherits is not None:
        names |= kind_attributes(entity.mapper)
    return settled(entity.mapper, names | _attributes_of(entity.mapper, entity.tree))


def _attributes_of(mapper: Mapper[Any], tree: Branch) -> set[str]:
    """What of a model a branch of fields reads: its leaves, and what its relationships go by."""
    names = {resolved(mapper, name) for name in tree.leaves}
    for name in tree.branches:
        names |= _leading_attributes(mapper, name)
    return names


def settled(mapper: Mapper[Any], names: Iterable[str]) -> frozenset[str] | None:
    """The attributes to watch; None if one changes without being set: then any change of the row may change it."""
    for name in names:
        prop = mapper.attrs.get(name)
        if prop is None:  # a property of the class, made of who knows what
            return None
        if isinstance(prop, ColumnProperty):
            for column in prop.columns:
                if not isinstance(column, Column):  # an SQL expression
                    return None
                if column.onupdate is not None or column.server_onupdate is not None or column.computed is not None:
                    return None
                if column is mapper.version_id_col:
                    return None
    return frozenset(names)


def watched(mapper: Mapper[Any], names: Iterable[str], where: str) -> set[str]:
    """The attributes whose change changes these; synonyms are resolved. Raises `ConfigurationError`."""
    found: set[str] = set()
    for name in names:
        prop = mapper.attrs[resolved(mapper, name)]
        if isinstance(prop, CompositeProperty):  # what is set are its parts
            found |= {each.key for each in prop.props}
            continue
        if isinstance(prop, RelationshipProperty) and prop.direction is not RelationshipDirection.MANYTOONE:
            raise ConfigurationError(
                f"{where}: {mapper.class_.__name__}.{name} changes with other rows than those of "
                f"{mapper.class_.__name__}; name {prop.mapper.class_.__name__} in depends_on, with what leads there"
            )
        found |= _leading_attributes(mapper, prop.key)
    return found


def _leading_attributes(mapper: Mapper[Any], via: str | Sequence[str]) -> set[str]:
    """The attributes of a model that lead on: a relationship and its columns here, or the columns themselves."""
    if not isinstance(via, str):
        return {name for each in via for name in _leading_attributes(mapper, each)}
    first = via.split(".")[0]
    prop = mapper.attrs.get(first)
    if not isinstance(prop, RelationshipProperty):
        return {first}
    return {first} | _columns_of(mapper, prop)


def written_by(relationship: RelationshipProperty[Any], mapper: Mapper[Any]) -> set[str]:
    """The attributes of a model that a flush sets for a relationship: its foreign key, whichever end that is at."""
    if relationship.viewonly:
        return set()
    written = [column for _, column in relationship.synchronize_pairs]
    found = [_property(mapper, column) for column in written if isinstance(column, Column)]
    return {prop.key for prop in found if prop is not None}


def with_writers(mapper: Mapper[Any], names: frozenset[str] | None) -> frozenset[str] | None:
    """Attributes, and the relationships to one row that set them in the flush; those of subclasses, too."""
    if names is None:
        return None
    return names | {
        prop.key
        for each in mapper.self_and_descendants
        for prop in each.relationships
        if prop.direction is RelationshipDirection.MANYTOONE and not names.isdisjoint(written_by(prop, each))
    }


def _columns_of(mapper: Mapper[Any], relationship: RelationshipProperty[Any]) -> set[str]:
    """The attributes of a model that the conditions of a relationship look at."""
    conditions = [relationship.primaryjoin]
    if relationship.secondaryjoin is not None:
        conditions.append(relationship.secondaryjoin)
    return _read_by(mapper, conditions)


def _ordering(mapper: Mapper[Any], relationship: RelationshipProperty[Any]) -> set[str]:
    """The attributes of a model that the members of a relationship are ordered by."""
    return _read_by(mapper, relationship.order_by or ())


def ordered_by(relationship: RelationshipProperty[Any]) -> tuple[str, ...] | None:
    """The attributes of its members that a relationship has them ordered by, whichever way. None where it goes by more
    than columns that are loaded with them."""
    names = []
    for each in relationship.order_by or ():
        while isinstance(each, UnaryExpression):  # DESC, NULLS LAST
            each = each.element
        prop = _property(relationship.mapper, each) if isinstance(each, Column) else None
        if not isinstance(prop, ColumnProperty) or prop.deferred:
            return None
        names.append(prop.key)
    return tuple(names)


def _read_by(mapper: Mapper[Any], expressions: Iterable[ColumnElement[Any]]) -> set[str]:
    found: set[str] = set()
    for expression in expressions:
        for element in visitors.iterate(expression):
            if isinstance(element, Column) and (prop := _property(mapper, element)) is not None:
                found.add(prop.key)
    return found


def _property(mapper: Mapper[Any], column: Column[Any]) -> MapperProperty[Any] | None:
    plain = column._deannotate() if hasattr(column, "_deannotate") else column
    return next(
        (prop for prop in mapper.column_attrs if any(each.shares_lineage(plain) for each in prop.columns)), None
    )


def check(entity: Entity) -> None:
    """Raises `ConfigurationError` for a dependency that leads nowhere, or is lacking."""
    if entity.is_view and not entity.depends_on:
        raise ConfigurationError(
            f"entity {entity.name!r}: {entity.model.__name__} is mapped to a view or a SELECT, which nobody writes to; "
            "name the models that its rows are made of, each with the column that holds its key, e.g. "
            "depends_on={Page: 'id'}"
        )
    followed = [(link.path, link.target) for link in links_of(entity)]
    check_reads(entity, followed)
    check_collections(entity, followed)


def links_of(entity: Entity) -> Iterator[Link]:
    """What the documents of an entity are made of beside its own rows. Raises `ConfigurationError`."""
    hops = _Hops()
    _follow_branch(hops, entity.mapper, entity.tree, ())
    by_columns = [
        link
        for target, dependency in entity.depends_on.items()
        if (link := _explicit(hops, entity, target, dependency)) is not None
    ]
    for (path, target), counts in hops.items():
        yield _link(entity, path, target, counts)
    yield from by_columns


class _Hops(dict[tuple[_Path, Mapper[Any]], "frozenset[str] | None"]):
    """The models along the relationships, each with its attributes that count; None: all. Each of them once."""

    def add(self, path: _Path, target: Mapper[Any], counts: frozenset[str] | None) -> None:
        known = self.get((path, target), frozenset[str]())
        self[path, target] = None if counts is None or known is None else known | counts


def _follow_branch(hops: _Hops, mapper: Mapper[Any], tree: Branch, above: _Path) -> None:
    for name, branch in tree.branches.items():
        path = (*above, mapper.relationships[name])
        target = path[-1].mapper
        hops.add(path, target, settled(target, _attributes_of(target, branch)))
        _follow_branch(hops, target, branch, path)


def _explicit(hops: _Hops, entity: Entity, target: Mapper[Any], dependency: Dependency) -> Link | None:
    """A dependency: a link by columns, or further hops."""
    where = f"entity {entity.name!r}: depends_on {target.class_.__name__}"
    counts: frozenset[str] | None = None
    if dependency.watch is not None:
        for name in dependency.watch:
            if name not in target.attrs:
                raise ConfigurationError(
                    f"{where}: {target.class_.__name__} has no attribute {name!r}{nearest(name, target.attrs.keys())}"
                )
        counts = settled(target, watched(target, dependency.watch, f"{where}: watch"))
    names = [dependency.via] if isinstance(dependency.via, str) else list(dependency.via)
    if not names:
        raise ConfigurationError(f"{where}: name the column or the relationships that lead there")
    if isinstance(entity.mapper.attrs.get(names[0]), ColumnProperty):
        return _by_columns(entity, target, names, counts, where)
    for way in names:
        _follow_way(hops, entity.mapper, way, target, counts, where)
    return None


def _follow_way(
    hops: _Hops, mapper: Mapper[Any], way: str, target: Mapper[Any], counts: frozenset[str] | None, where: str
) -> None:
    path: _Path = ()
    for name in way.split("."):
        prop = mapper.attrs.get(name)
        if name in mapper.synonyms:
            meant = resolved(mapper, name)
            raise ConfigurationError(f"{where}: {mapper.class_.__name__}.{name} is a synonym; name {meant!r} itself")
        if isinstance(prop, ColumnProperty):
            raise ConfigurationError(
                f"{where}: {mapper.class_.__name__}.{name} is a column; the way {way!r} of relationships ends at the "
                f"one that leads to {target.class_.__name__}"
            )
        if not isinstance(prop, RelationshipProperty):
            raise ConfigurationError(
                f"{where}: {mapper.class_.__name__} has no column or relationship {name!r}"
                f"{nearest(name, mapper.attrs.keys())}"
            )
        if path:
            hops.add(path, mapper, settled(mapper, _leading_attributes(mapper, name)))
        path = (*path, prop)
        mapper = prop.mapper
    if not (target.isa(mapper) or mapper.isa(target)):
        raise ConfigurationError(f"{where}: {way!r} leads to {mapper.class_.__name__}")
    hops.add(path, target, counts)


def _associations(entity: Entity, ways: Iterable[Link], mappers: Iterable[Mapper[Any]]) -> Iterator[Link]:
    """Classes that are mapped to a `secondary` table: who adds such an object changes no collection."""
    paths = {link.path[: at + 1] for link in ways for at, prop in enumerate(link.path) if prop.secondary is not None}
    for path in paths:
        for mapper in mappers:
            if mapper.local_table is path[-1].secondary:
                yield _association(entity, path, mapper)


def _second_classes(entity: Entity, ways: Iterable[Link], mappers: Iterable[Mapper[Any]]) -> Iterator[Link]:
    """Further classes on the tables of an entity, or of what its documents are made of: they write the same rows."""
    for mapper in mappers:
        key = [prop.key for each in mapper.primary_key for prop in entity.mapper.column_attrs if each in prop.columns]
        shared = not set(mapper.tables).isdisjoint(entity.mapper.tables)
        if shared and not same_hierarchy(mapper, entity.mapper) and len(key) == len(mapper.primary_key):
            documents = selected(entity).where(_among([entity.column(name) for name in key]))
            yield Link(entity, mapper, key_of(mapper), None, None, documents)
    for way in ways:
        for mapper in mappers:
            if mapper.primary_key == way.target.primary_key and not same_hierarchy(mapper, way.target):
                yield replace(way, target=mapper, key=key_of(mapper), counts=None, linking=None)


def _association(entity: Entity, path: _Path, target: Mapper[Any]) -> Link:
    statement, at = joined(entity, path[:-1])
    alias = aliased(target)
    condition = ClauseAdapter(inspect(alias).selectable).traverse(path[-1].primaryjoin)
    if len(path) > 1:
        condition = ClauseAdapter(inspect(at).selectable).traverse(condition)
    key = key_of(target)
    linking = _columns_of(target, path[-1]) | set(key)
    counts = settled(target, linking | _ordering(target, path[-1]))
    documents = statement.where(condition, _among([getattr(alias, name) for name in key])).distinct()
    return Link(entity, target, key, counts, settled(target, linking), documents)


def _by_columns(
    entity: Entity, target: Mapper[Any], names: Sequence[str], counts: frozenset[str] | None, where: str
) -> Link:
    """Columns that hold the primary key of the other model. The row itself need not be there any more."""
    if len(names) != len(target.primary_key):
        raise ConfigurationError(f"{where}: its primary key has {len(target.primary_key)} columns; name as many")
    for name, own in zip(names, target.primary_key, strict=True):
        if not isinstance(entity.mapper.attrs.get(name), ColumnProperty):
            raise ConfigurationError(
                f"{where}: {entity.model.__name__} has no column {name!r}{nearest(name, entity.mapper.attrs.keys())}"
            )
        for key in entity.mapper.attrs[name].columns[0].foreign_keys:
            if key.column.table in target.tables and not key.column.primary_key:
                raise ConfigurationError(
                    f"{where}: {name!r} holds {key.column}, which is no primary key; name the relationship instead"
                )
        if not alike(type_ := entity.mapper.attrs[name].columns[0].type, own.type):
            model = target.class_.__name__
            raise ConfigurationError(
                f"{where}: {name!r} is of type {type_!r}, and {own} of type {own.type!r}; name a relationship that "
                f"converts the key, e.g. relationship({model}, primaryjoin=foreign({entity.model.__name__}.{name}) == "
                f"cast({model}.{target.get_property_by_column(own).key}, …), viewonly=True)"
            )
    documents = selected(entity).where(_among([entity.column(name) for name in names]))
    key = key_of(target)
    linking: frozenset[str] | None = frozenset(key)
    if entity.is_view or tuple(names) == entity.key:  # the other row may decide whether there is one at all
        linking = counts
    return Link(entity, target, key, counts, linking, documents, columns=tuple(names))


def _link(entity: Entity, path: _Path, target: Mapper[Any], counts: frozenset[str] | None) -> Link:
    last = path[-1]
    key = key_of(target)
    linking = _columns_of(target, last) | set(key)
    if target.inherits is not None:
        linking |= kind_attributes(target)
    counts = None if counts is None else settled(target, counts | linking | _ordering(target, last))
    alias = aliased(target)
    statement = joined(entity, path, alias)[0].where(_among([getattr(alias, name) for name in key]))
    return Link(
        entity,
        target,
        key,
        counts,
        counts if entity.is_view else settled(target, linking),
        statement.distinct(),
        path=path,
    )


def joined(entity: Entity, path: Sequence[RelationshipProperty[Any]], last: Any = None) -> tuple[Select[Any], Any]:
    """The documents of an entity, joined along relationships. `last`: an alias of the model at the end of them.

    Returns the statement and that alias; without relationships the model itself.
    """
    statement = selected(entity)
    at: Any = entity.model
    for number, prop in enumerate(path, 1):
        alias = last if last is not None and number == len(path) else aliased(prop.mapper)
        statement = statement.join(getattr(at, prop.key).of_type(alias))
        at = alias
    return statement, at


def selected(entity: Entity) -> Select[Any]:
    """Where the documents of an entity belong: index, `_id` and tenant of those that can have a place."""
    index, document_id = entity.index_sql(), entity.document_id_sql()
    tenant = entity.tenant_sql()
    columns: list[ColumnElement[Any]] = [index, document_id, null() if tenant is None else tenant]
    return (
        select(
            *(
                column.label(name)
                for column, name in zip(columns, ("index_name", "document_id", "tenant_id"), strict=True)
            )
        )
        .select_from(entity.model)
        .where(index.is_not(None), document_id.is_not(None))  # without a legal tenant there is no document either
    )


def _among(columns: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
    parameter: Any = bindparam("identities", expanding=True)
    if len(columns) == 1:
        return columns[0].in_(parameter)
    return tuple_(*columns).in_(parameter)
