"""What may be registered: models, attributes, paths and indexes; each refusal says what to write instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from functools import cached_property
from typing import Any

from sqlalchemy import JSON, PrimaryKeyConstraint, UniqueConstraint, inspect
from sqlalchemy.exc import NoInspectionAvailable, SQLAlchemyError
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import ColumnProperty, Mapper, RelationshipProperty, SynonymProperty
from sqlalchemy.sql.schema import Column, Table

from outbox import documents
from outbox.entities import keys
from outbox.entities.entity import Branch, Dependency, key_of
from outbox.entities.keys import Tenancy, TextForm
from outbox.entities.links import ordered_by, watched
from outbox.entities.mappers import registries_beside
from outbox.entities.members import order_of
from outbox.entities.paths import Field, add_keys
from outbox.entities.reads import check_relationship
from outbox.entities.refusals import check_type, is_query_expression, no_attribute, no_field
from outbox.errors import ConfigurationError, InvalidName, shortened

MOST_PREFIX_BYTES = 100
_UNIQUE = (PrimaryKeyConstraint, UniqueConstraint)


def check_lists(
    where: str,
    fields: Sequence[str] | Mapping[str, str] | None,
    to_document: object | None,
    watch: Sequence[str] | None,
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
        for each in registries_beside([mapper]):
            each.configure(cascade=True)
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


def id_key_of(mapper: Mapper[Any], name: str | None, where: str) -> tuple[str, ...]:
    """The attributes that make the `_id`: the primary key, or a column that can be it. Raises `ConfigurationError`."""
    if name is None:
        return key_of(mapper)
    prop = column_named(mapper, name, where)
    columns = [each for each in prop.columns if isinstance(each, Column) and isinstance(each.table, Table)]
    said = f"{where}: {mapper.class_.__name__}.{name}"
    if not columns:
        raise ConfigurationError(f"{said} is no column of a table; name one that is unique and not NULL")
    if columns[0].nullable:
        raise ConfigurationError(
            f"{said} may be NULL, and a document without an _id has no place; declare it nullable=False"
        )
    if not any(map(_is_unique, columns)):
        raise ConfigurationError(
            f"{said} is not unique by itself, so that two rows would have one document; declare it unique=True, or "
            "name another column"
        )
    return (prop.key,)


def _is_unique(column: Column[Any]) -> bool:
    """Whether the model says that no two rows of its table have the same value there."""
    keys_: list[list[Any]] = [list(each.columns) for each in column.table.constraints if isinstance(each, _UNIQUE)]
    keys_ += [
        list(each.expressions)
        for each in column.table.indexes
        if each.unique and not any(name.endswith("_where") for name in each.dialect_kwargs)
    ]
    return any(len(each) == 1 and each[0] is column for each in keys_)


def prefix_of(where: str, prefix: str) -> str:
    """What each `_id` begins with. Raises `ConfigurationError`."""
    try:
        if prefix:
            documents.check_document_id(prefix)
    except InvalidName as error:
        raise ConfigurationError(f"{where}: id_prefix: {error}") from None
    if len(prefix.encode()) > MOST_PREFIX_BYTES:
        raise ConfigurationError(f"{where}: id_prefix {shortened(prefix)} is longer than {MOST_PREFIX_BYTES} bytes")
    return prefix


def column_key(mapper: Mapper[Any], name: str | None, where: str) -> str | None:
    """The attribute of a column, synonyms resolved; None for none. Raises `ConfigurationError`."""
    return None if name is None else column_named(mapper, name, where).key


def tenant_key(mapper: Mapper[Any], name: str | None, where: str) -> str | None:
    """The attribute of the column that names the tenant. Raises `ConfigurationError`."""
    if name is None:
        return None
    prop = column_named(mapper, name, where)
    if not any(mapper.persist_selectable.c.contains_column(each) for each in prop.columns):
        raise ConfigurationError(
            f"{where}: {mapper.class_.__name__}.{name} is made of other columns, so that nothing says when a document "
            "moves to another tenant; name a column of its row that holds the tenant"
        )
    return prop.key


def attribute_names(mapper: Mapper[Any], names: Sequence[str] | None, where: str) -> frozenset[str] | None:
    """The mapped attributes of these names, or that they are made of. Raises `ConfigurationError`."""
    if names is None:
        return None
    return frozenset(watched(mapper, [attribute_named(mapper, each, where) for each in names], where))


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


def tree_of(mapper: Mapper[Any], fields: Sequence[str] | Mapping[str, str], where: str) -> Branch:
    """The fields of a document, as a tree of models. Raises `ConfigurationError`."""
    named: list[Field] = []
    tree = Branch(named=named if isinstance(fields, Mapping) else None)
    for name, path in fields.items() if isinstance(fields, Mapping) else ((each, each) for each in fields):
        said = f"{where}: field {path!r}"
        relations, leaf, keys_ = _led(mapper, path, said)
        at, model = tree, mapper
        for relation in relations:
            prop = model.relationships[relation]
            check_relationship(prop, said)
            if relation not in at.branches:
                at.branches[relation] = _branch_of(prop)
            at, model = at.branches[relation], prop.mapper
            tree.plain = False
        tree.plain &= _check_leaf(model, leaf, said)
        if tree.named is not None:
            named.append(Field(_field_name(name, where), relations, leaf, keys_))
        elif not _add_within(at, leaf, keys_):
            raise ConfigurationError(
                f"{said}: {leaf} is a field already, as a whole or another part of it; leave one out"
            )
        if leaf not in at.leaves:
            at.leaves.append(leaf)
    return tree


def _branch_of(prop: RelationshipProperty[Any]) -> Branch:
    if not prop.uselist:
        return Branch()
    by = () if _is_set(prop) else ordered_by(prop)
    return Branch(many=True) if by is None else Branch(many=True, order=order_of(prop.mapper), by=by)


def _led(mapper: Mapper[Any], path: str, said: str) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """Where a path leads: the relationships, the attribute at their end, and keys if that is a JSON column."""
    steps = path.split(".") if isinstance(path, str) else [""]
    if "" in steps:
        raise ConfigurationError(f"{said} is no path; write names with a dot between them, e.g. 'account.name'")
    for at, name in enumerate(steps[:-1]):
        prop = mapper.attrs.get(attribute_named(mapper, name, said))
        if isinstance(prop, ColumnProperty) and isinstance(prop.columns[0].type, JSON):
            return tuple(steps[:at]), name, tuple(steps[at + 1 :])
        if not isinstance(prop, RelationshipProperty):
            raise ConfigurationError(
                f"{said}: {mapper.class_.__name__}.{name} is no relationship and no JSON column; "
                "make the document by to_document"
            )
        if prop.key != name:
            raise ConfigurationError(f"{said}: {mapper.class_.__name__}.{name} is a synonym; name {prop.key!r} itself")
        mapper = prop.mapper
    return tuple(steps[:-1]), steps[-1], ()


def _field_name(name: object, where: str) -> str:
    if not isinstance(name, str) or not name or "." in name or name.startswith("_"):
        raise ConfigurationError(
            f"{where}: {shortened(name)} is no name for a field: use text without a dot that does not begin with '_', "
            "e.g. 'account_name'; objects in objects are made of a list of paths, or by to_document"
        )
    return name


def _add_within(branch: Branch, leaf: str, keys_: Sequence[str]) -> bool:
    """Take a part of a JSON column, or all of it. False if the other is taken already."""
    if leaf in branch.leaves and bool(keys_) != (leaf in branch.within):
        return False
    return not keys_ or add_keys(branch.within.setdefault(leaf, {}), keys_)


def _is_set(prop: RelationshipProperty[Any]) -> bool:
    """Whether the members lose the order that the database gives them."""
    return prop.collection_class is not None and isinstance(prop.collection_class(), Set)


def _check_leaf(mapper: Mapper[Any], name: str, where: str) -> bool:
    """Whether the field is a column. Raises `ConfigurationError` if it is nothing that a document can hold."""
    descriptor = mapper.all_orm_descriptors.get(name)
    of_class = isinstance(getattr(mapper.class_, name, None), (property, cached_property))
    if isinstance(descriptor, hybrid_property) or (of_class and name not in mapper.attrs):
        if isinstance(descriptor, hybrid_property):
            _check_hybrid(mapper, name, where)
        return False
    prop = mapper.attrs.get(attribute_named(mapper, name, where))
    if isinstance(prop, RelationshipProperty):
        raise ConfigurationError(f"{where} is a relationship; name fields of it, e.g. {name}.id")
    if not isinstance(prop, ColumnProperty) or is_query_expression(prop):
        raise no_field(mapper, name, where)
    check_type(prop.columns[0].type, where)
    return True


def _check_hybrid(mapper: Mapper[Any], name: str, where: str) -> None:
    """Raises `ConfigurationError` for a hybrid whose expression has a type that no document can hold."""
    try:
        type_ = getattr(mapper.class_, name).type
    except Exception:  # it makes no expression: only its values tell
        return
    check_type(type_, where)
