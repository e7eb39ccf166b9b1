"""Collections that write the table between two classes, of a many-to-many relationship or of an association class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Mapper, RelationshipProperty

from outbox.entities.entity import Entity
from outbox.entities.mappers import mappers_beside
from outbox.errors import ConfigurationError

_Path = Sequence[RelationshipProperty[Any]]


def with_secondaries(mapper: Mapper[Any], names: frozenset[str] | None, path: _Path = ()) -> frozenset[str] | None:
    """Attributes, and the collections that write the tables between theirs, or those of a path, and the other rows:
    many-to-many ones, also where a class is mapped to the table; those of subclasses, too."""
    if names is None:
        return None
    led = [*path, *(each for each in mapper.relationships if each.key in names)]
    tables = {table for each in led for table in (each.secondary, each.mapper.local_table)} - {None}
    others = [prop for each in mapper.self_and_descendants if tables for prop in each.relationships]
    return names | {prop.key for prop in others if prop.secondary in tables and not prop.viewonly}


def check_collections(entity: Entity, followed: Sequence[tuple[_Path, Mapper[Any]]]) -> None:
    """Raises `ConfigurationError` for a collection that changes unseen what documents are made of. `followed`: each
    model beside their own, with the path that leads there; without one it is found by its key."""
    by_key = [entity.mapper, *(target for path, target in followed if not path)]
    crossed = list(dict.fromkeys(prop for path, _ in followed for prop in path))
    for mapper in mappers_beside([entity.mapper, *(target for _, target in followed)]):
        for prop in mapper.relationships:
            if prop.secondary is not None and not prop.viewonly:
                _check_rows(entity, prop, by_key)
                _check_ends(entity, prop, crossed)


def _check_rows(entity: Entity, prop: RelationshipProperty[Any], by_key: Sequence[Mapper[Any]]) -> None:
    """Rows of a class come and go by a collection that does not tell which."""
    for target in by_key:
        if prop.secondary in target.tables:
            model = target.class_.__name__
            raise ConfigurationError(
                f"entity {entity.name!r}: {prop} adds and removes rows of {model} past its objects, so that no "
                f"session knows of them; declare it viewonly=True, and add and delete objects of {model}"
            )


def _check_ends(entity: Entity, prop: RelationshipProperty[Any], crossed: _Path) -> None:
    """Rows of a table on a path come and go by a collection of a class that no path leads to over that table."""
    over = [
        each for each in crossed if prop.secondary in (each.secondary, each.parent.local_table, each.mapper.local_table)
    ]
    ends = {table for each in over for end in (each.parent, each.mapper) for table in end.tables}
    if over and ends.isdisjoint(prop.parent.tables):
        model, table = prop.parent.class_.__name__, prop.secondary
        raise ConfigurationError(
            f"entity {entity.name!r}: {prop} adds and removes rows of {table} that {over[0]} reads, and no session "
            f"knows of whose documents; declare it viewonly=True, and add and delete objects of a class on {table}, or "
            f"name {model} in depends_on with the relationships that lead there over {table}"
        )
