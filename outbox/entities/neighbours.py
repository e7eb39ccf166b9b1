"""Entities that share an index: which may, and which of them makes the document of a row that belongs to both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from outbox.entities import keys
from outbox.entities.entity import Entity
from outbox.entities.keys import PREFIXED, Tenancy
from outbox.errors import ConfigurationError


def check(entity: Entity, others: Iterable[Entity]) -> None:
    """Raises `ConfigurationError` if entities that are registered already leave no place for another one."""
    for other in others:
        apart = (other.tenancy is Tenancy.INDEX) != (entity.tenancy is Tenancy.INDEX)
        of_tenants, of_all = (other, entity) if other.tenancy is Tenancy.INDEX else (entity, other)
        if apart and of_tenants.index_names(of_all.index):
            raise ConfigurationError(
                f"entities {other.name!r} and {entity.name!r}: an index of one tenant is the index of the other"
            )
        if other.index != entity.index or apart:
            continue
        if (other.mappings, other.settings) != (entity.mappings, entity.settings):
            raise ConfigurationError(
                f"entities {other.name!r} and {entity.name!r} share the index {entity.index!r}, but not its "
                "mappings and settings; give both the same"
            )
        _check_ids(entity, other)


def _check_ids(entity: Entity, other: Entity) -> None:
    if not may_meet(entity, other):
        return
    if not _same_rows(entity, other):
        raise ConfigurationError(
            f"entities {other.name!r} and {entity.name!r} share the index {entity.index!r}, and an _id may be one of "
            f"both, so that one would overwrite the other's document; give each an id_prefix, e.g. "
            f"id_prefix='{entity.name}-', or an index of its own"
        )
    if entity.mapper is other.mapper and other.when is None:
        raise ConfigurationError(
            f"entities {other.name!r} and {entity.name!r} share the index {entity.index!r} and have the same rows, so "
            f"that {entity.name!r} would never make a document; give {other.name!r} a when=, or the other one an index "
            "of its own"
        )


def above(entity: Entity, of_index: Iterable[Entity]) -> list[Entity]:
    """Those entities of its index that come before it and may make the document of one of its rows."""
    found = []
    for other in of_index:
        if other is entity:
            break
        if may_meet(entity, other):
            found.append(other)
    return found


def may_meet(entity: Entity, other: Entity) -> bool:
    """Whether one `_id` may be that of documents of two entities of an index."""
    if entity.tenancy is not other.tenancy:
        return _may_begin_with_length(other if entity.tenancy is PREFIXED else entity)
    short, long = sorted((entity, other), key=lambda each: len(each.id_prefix))
    if not long.id_prefix.startswith(short.id_prefix):
        return False
    if rest := long.id_prefix[len(short.id_prefix) :]:
        return _may_hold(short, rest + _separator(long))
    kinds, others = _kinds(short), _kinds(long)
    if "" not in kinds and "" not in others:
        return kinds == others
    return _may_hold(short, _separator(long)) and _may_hold(long, _separator(short))


def _may_begin_with_length(entity: Entity) -> bool:
    """Whether an `_id` may look as if it began with the length of a tenant, as prefixed ones do: 2:t1:7."""
    digits, colon, _ = entity.id_prefix.partition(":")
    if digits and not digits.isdigit():
        return False
    return bool(colon) or _may_hold(entity, ":")


def _may_hold(entity: Entity, characters: str) -> bool:
    """Whether what follows the prefix of an `_id` may have all these characters."""
    kinds = _kinds(entity)
    return "" in kinds or set(characters) <= set(_separator(entity).join(kinds))


def _separator(entity: Entity) -> str:
    """What every `_id` of a key of several columns has."""
    return keys.SEPARATOR if len(entity.id_key) > 1 else ""


def _kinds(entity: Entity) -> list[str]:
    """The characters that each part of an `_id` may have; empty for any."""
    return [form.characters for form in entity.id_forms]


def _same_rows(entity: Entity, other: Entity) -> bool:
    """Whether an `_id` that both have is that of one row, which belongs to one table's hierarchy."""
    return _id_columns(entity) == _id_columns(other) and entity.id_prefix == other.id_prefix


def _id_columns(entity: Entity) -> list[Any]:
    if entity.id_key == entity.key:
        return [id(column) for column in entity.mapper.primary_key]
    return [id(entity.mapper.attrs[name].columns[-1]) for name in entity.id_key]
