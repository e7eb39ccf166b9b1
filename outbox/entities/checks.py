"""What may be registered: models, attributes, paths and indexes; each refusal says what to write instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.exc import NoInspectionAvailable, SQLAlchemyError
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import ColumnProperty, Mapper, RelationshipProperty, SynonymProperty

from outbox.entities import keys
from outbox.entities.entity import Branch, Dependency, Entity
from outbox.entities.keys import Tenancy, TextForm
from outbox.entities.members import order_of
from outbox.entities.refusals import check_type, no_attribute, no_field
from outbox.errors import ConfigurationError, shortened


def check_lists(
    where: str, fields: Sequence[str] | None, to_document: object | None, watch: Sequence[str] | None
) -> None:
    """Raises `ConfigurationError` for what a document cannot be made of."""
    if (fields is None) == (to_document is None):
        raise ConfigurationError(f"{where}: give either fields or to_document, and not both")
    if isinstance(fields, str) or (fields is not None and not fields):
        raise ConfigurationError(f"{where}: fields must be a list of names, with at least one")
    if isinstance(watch, str):
        raise ConfigurationError(f"{where}: watch must be a list of names; use [{watch!r}]")


def dependencies_of(
    where: str, depends_on: Mapping[type[Any], str | Sequence[str] | Dependency] | None
) -> dict[Mapper[Any], Dependency]:
    """What the documents depend on beside their fields. Raises `ConfigurationError`."""
    if depends_on is None:
        return {}
    if not isinstance(depends_on, Mapping):
        raise ConfigurationError(
            f"{where}: depends_on must say what leads to each model, e.g. {{Account: 'account_id'}}"
        )
    return {
        mapper_of(model): given if isinstance(given, Dependency) else Dependency(given)
        for model, given in depends_on.items()
    }


def tenancy_of(where: str, tenancy: str, tenant: str | None) -> Tenancy:
    """How documents of several tenants are kept apart. Raises `ConfigurationError`."""
    try:
        kind = Tenancy(tenancy)
    except ValueError:
        raise ConfigurationError(
            f"{where}: tenancy {shortened(tenancy)} is unknown; use {', '.join(map(repr, map(str, Tenancy)))}"
        ) from None
    if kind is not Tenancy.SHARED and tenant is None:
        raise ConfigurationError(f"{where}: tenancy {str(kind)!r} needs tenant=, the attribute that names it")
    return kind


def mapper_of(model: type[Any]) -> Mapper[Any]:
    try:
        mapper = inspect(model)
    except NoInspectionAvailable:
        mapper = None
    if not isinstance(mapper, Mapper):
        raise ConfigurationError(f"{shortened(model)} is no mapped class; register the model, not a table or an object")
    try:
        mapper.registry.configure()
    except SQLAlchemyError as error:
        raise ConfigurationError(f"{mapper.class_.__name__}: {error}; import all models before registering") from error
    return mapper


def form_of(mapper: Mapper[Any], attribute: str, where: str) -> TextForm:
    prop = column_named(mapper, attribute, where)
    return keys.text_form(prop.columns[0].type, f"{where}: {mapper.class_.__name__}.{attribute}")


def column_named(mapper: Mapper[Any], name: str, where: str) -> ColumnProperty[Any]:
    if "." in name:
        raise ConfigurationError(f"{where}: {shortened(name)} is a path; it takes a column of {mapper.class_.__name__}")
    prop = mapper.attrs.get(attribute_named(mapper, name, where))
    if not isinstance(prop, ColumnProperty):
        raise ConfigurationError(f"{where}: {mapper.class_.__name__}.{name} is no column")
    return prop


def column_key(mapper: Mapper[Any], name: str | None, where: str) -> str | None:
    """The attribute of a column, synonyms resolved; None for none. Raises `ConfigurationError`."""
    return None if name is None else column_named(mapper, name, where).key


def attribute_names(mapper: Mapper[Any], names: Sequence[str] | None, where: str) -> frozenset[str] | None:
    """The mapped attributes of these names. Raises `ConfigurationError`."""
    return None if names is None else frozenset(attribute_named(mapper, each, where) for each in names)


def attribute_named(mapper: Mapper[Any], name: str, where: str) -> str:
    """The mapped attribute of that name, synonyms resolved. Raises `ConfigurationError`."""
    prop = mapper.attrs.get(name)
    if isinstance(prop, SynonymProperty):
        return attribute_named(mapper, prop.name, where)
    if prop is None:
        raise no_attribute(mapper, name, where)
    return name


def listed(known: Iterable[str]) -> str:
    return f"; registered are {', '.join(sorted(known)) or 'none'}"


def tree_of(mapper: Mapper[Any], fields: Sequence[str], where: str) -> Branch:
    tree = Branch()
    for path in fields:
        at, model = tree, mapper
        *relations, last = path.split(".")
        for name in relations:
            prop = model.attrs.get(attribute_named(model, name, f"{where}: field {path!r}"))
            if not isinstance(prop, RelationshipProperty):
                raise ConfigurationError(
                    f"{where}: field {path!r}: {model.class_.__name__}.{name} is no relationship; "
                    "make the document by to_document"
                )
            if name not in at.branches:
                order = None if prop.order_by else order_of(prop.mapper)
                at.branches[name] = Branch(many=bool(prop.uselist), order=order)
            at, model = at.branches[name], prop.mapper
            tree.plain = False
        tree.plain &= _check_leaf(model, last, f"{where}: field {path!r}")
        if last not in at.leaves:
            at.leaves.append(last)
    return tree


def _check_leaf(mapper: Mapper[Any], name: str, where: str) -> bool:
    """Whether the field is a column. Raises `ConfigurationError` if it is nothing that a document can hold."""
    descriptor = mapper.all_orm_descriptors.get(name)
    of_class = isinstance(getattr(mapper.class_, name, None), (property, cached_property))
    if isinstance(descriptor, hybrid_property) or (of_class and name not in mapper.attrs):
        return False
    prop = mapper.attrs.get(attribute_named(mapper, name, where))
    if isinstance(prop, RelationshipProperty):
        raise ConfigurationError(f"{where} is a relationship; name fields of it, e.g. {name}.id")
    if not isinstance(prop, ColumnProperty):
        raise no_field(mapper, name, where)
    check_type(prop.columns[0].type, where)
    return True


def check_neighbours(entity: Entity, others: Iterable[Entity]) -> None:
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
