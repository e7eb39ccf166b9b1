"""Mappings of an index made of the types of the columns that its documents have as fields."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import JSON, Boolean, Date, DateTime, Enum, Float, Integer, Numeric, String, Time, Uuid
from sqlalchemy.orm import ColumnProperty, Mapper, SynonymProperty
from sqlalchemy.types import TypeDecorator, TypeEngine

from outbox.entities.entity import Branch, DerivedMappings, Entity
from outbox.entities.keys import Tenancy
from outbox.errors import ConfigurationError, shortened

Rule = dict[str, Any]

_KEYWORD: Final[Rule] = {"type": "keyword"}
# As Elasticsearch's own dynamic mapping has it; without a limit, a long text would have its document refused.
_TEXT: Final[Rule] = {"type": "text", "fields": {"keyword": {"type": "keyword", "ignore_above": 256}}}
_LONG: Final[Rule] = {"type": "long"}  # for all integers: SQLite keeps 64 bits, whatever the column says
_DOUBLE: Final[Rule] = {"type": "double"}  # for decimals too: so SQLite keeps them; documents have all digits
_ANYTHING: Final[Rule] = {"type": "object", "enabled": False}  # a list or a text too, which no other type takes
_DATE: Final[Rule] = {"type": "date"}
_BOOLEAN: Final[Rule] = {"type": "boolean"}

_OF_TYPES: Final[Sequence[tuple[type[TypeEngine[Any]], Rule]]] = (
    (Enum, _KEYWORD),  # before String, of which it is one
    (Uuid, _KEYWORD),
    (Boolean, _BOOLEAN),
    (Integer, _LONG),
    (Float, _DOUBLE),
    (Numeric, _DOUBLE),
    (DateTime, _DATE),
    (Date, _DATE),
    (Time, _KEYWORD),
    (JSON, _ANYTHING),
    (String, _TEXT),
)
_OF_VALUES: Final[Sequence[tuple[type, Rule]]] = (
    (enum.Enum, _KEYWORD),
    (UUID, _KEYWORD),
    (bool, _BOOLEAN),  # before int, of which it is one
    (int, _LONG),
    (float, _DOUBLE),
    (Decimal, _DOUBLE),
    (date, _DATE),
    (time, _KEYWORD),
    (str, _TEXT),
    (dict, _ANYTHING),
    (list, _ANYTHING),
)
"""Of what a type says that its values are."""


def given(mappings: object, where: str) -> Mapping[str, Any] | DerivedMappings | None:
    """What is given as `mappings`. Raises `ConfigurationError`."""
    if mappings == "derived":
        return DerivedMappings()
    if mappings is None or isinstance(mappings, (Mapping, DerivedMappings)):
        return mappings
    raise ConfigurationError(
        f"{where}: mappings must be a dict, 'derived', or DerivedMappings({{…}}), not {shortened(mappings)}"
    )


def check(entity: Entity, others: Iterable[Entity]) -> None:
    """Raises `ConfigurationError` if the mappings of an entity's index cannot be derived."""
    apart = entity.tenancy is Tenancy.INDEX
    beside = [each for each in others if each.index == entity.index and (each.tenancy is Tenancy.INDEX) == apart]
    mappings_of([*beside, entity])


def mappings_of(entities: Sequence[Entity]) -> dict[str, Any]:
    """The mappings of an index that these entities share. Raises `ConfigurationError` where they cannot be derived."""
    first, *others = entities
    if not isinstance(first.mappings, DerivedMappings):
        return dict(first.mappings or {})
    properties = _derived(first)
    for other in others:
        properties = _joined(properties, _derived(other), first, other)
    top = {name: value for name, value in first.mappings.explicit.items() if name != "properties"}
    return {"dynamic": "strict", **top, "properties": properties}


def _derived(entity: Entity) -> dict[str, Rule]:
    where = f"entity {entity.name!r}"
    if entity.fields is None:
        raise ConfigurationError(
            f"{where}: mappings are derived from fields, and to_document may make anything; give the mappings as a dict"
        )
    said = {} if not isinstance(entity.mappings, DerivedMappings) else entity.mappings.explicit
    explicit = _nested(said.get("properties") or {})
    if entity.tree.named is None:
        return _properties(entity.mapper, entity.tree, explicit, where, "")
    made: dict[str, Rule] = {}
    for name, relations, leaf, keys in entity.tree.named:
        mapper, own = entity.mapper, explicit.get(name, {})
        for relation in relations:
            mapper = mapper.relationships[relation].mapper
        if "type" not in own and keys:
            raise _unknown(where, name, "leads into a JSON column")
        made[name] = dict(own) if "type" in own else _added(_of_column(mapper, leaf, name, where), own)
    return made | {name: dict(rule) for name, rule in explicit.items() if name not in made}


def _properties(
    mapper: Mapper[Any], tree: Branch, explicit: Mapping[str, Rule], where: str, above: str
) -> dict[str, Rule]:
    made: dict[str, Rule] = {}
    for name in tree.leaves:
        own = explicit.get(name, {})
        made[name] = dict(own) if "type" in own else _added(_of_column(mapper, name, f"{above}{name}", where), own)
    for name, branch in tree.branches.items():
        own = explicit.get(name, {})
        if own.get("type", "object") not in ("object", "nested") or own.get("enabled") is False:
            made[name] = dict(own)
            continue
        related = mapper.relationships[name].mapper
        within = _properties(related, branch, own.get("properties") or {}, where, f"{above}{name}.")
        made[name] = {**own, "properties": within}
    return made | {name: dict(rule) for name, rule in explicit.items() if name not in made}


def _added(rule: Rule, own: Mapping[str, Any]) -> Rule:
    """A derived field with what is explicit about it."""
    return {
        **rule,
        **own,
        **({"fields": {**rule["fields"], **own["fields"]}} if "fields" in rule and "fields" in own else {}),
    }


def _of_column(mapper: Mapper[Any], name: str, path: str, where: str) -> Rule:
    prop = mapper.attrs.get(name)
    while isinstance(prop, SynonymProperty):
        prop = mapper.attrs.get(prop.name)
    if not isinstance(prop, ColumnProperty):
        raise _unknown(where, path, "is no column")
    type_ = prop.columns[0].type
    rule = _of_type(type_)
    if rule is None:
        raise _unknown(where, path, f"is of type {type_!r}")
    return rule


def _of_type(type_: TypeEngine[Any]) -> Rule | None:
    if isinstance(type_, TypeDecorator):
        declared = next(
            (vars(each)["python_type"] for each in type(type_).__mro__ if "python_type" in vars(each)), None
        )
        if declared is not vars(TypeEngine)["python_type"]:
            return next((rule for kind, rule in _OF_VALUES if issubclass(type_.python_type, kind)), None)
        return None if _reads_by_itself(type(type_)) else _of_type(type_.impl_instance)
    return next((rule for kind, rule in _OF_TYPES if isinstance(type_, kind)), None)


def _reads_by_itself(decorator: type[TypeDecorator[Any]]) -> bool:
    """Whether a type makes something else of what the database says: what, its columns do not tell."""
    names = ("process_result_value", "result_processor")
    return any(getattr(decorator, name) is not getattr(TypeDecorator, name) for name in names)


def _unknown(where: str, path: str, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{where}: field {path!r} {what}, so that no mapping can be derived; say which, e.g. "
        f"mappings=DerivedMappings({{'properties': {{{path!r}: {{'type': 'keyword'}}}}}})"
    )


def _nested(properties: Mapping[str, Any]) -> dict[str, Rule]:
    """Fields whose names are paths, in objects."""
    made: dict[str, Rule] = {}
    for name, rule in properties.items():
        within = {**rule, "properties": _nested(rule["properties"])} if rule.get("properties") else dict(rule)
        first, dot, rest = name.partition(".")
        if dot:
            within = {"properties": _nested({rest: within})}
        held = made.get(first, {})
        both = {**held.get("properties", {}), **within.get("properties", {})}
        made[first] = {**held, **within, **({"properties": both} if both else {})}
    return made


def _joined(
    mine: Mapping[str, Rule], its: Mapping[str, Rule], first: Entity, other: Entity, above: str = ""
) -> dict[str, Rule]:
    """The fields of two entities of one index. Raises `ConfigurationError` for one that is of two kinds."""
    made = dict(mine)
    for name, rule in its.items():
        held = made.get(name, rule)
        if "properties" in held and "properties" in rule:
            within = _joined(held["properties"], rule["properties"], first, other, f"{above}{name}.")
            held, rule = {**held, "properties": within}, {**rule, "properties": within}
        if held != rule:
            raise ConfigurationError(
                f"entities {first.name!r} and {other.name!r} share the index {first.index!r}, and derive field "
                f"'{above}{name}' as {_kind(held)} and as {_kind(rule)}; give both the same DerivedMappings({{…}})"
            )
        made[name] = held
    return made


def _kind(rule: Rule) -> str:
    return str(rule.get("type", "object"))
