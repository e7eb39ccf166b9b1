"""What of a model can be no field, told from the model alone, with what to write instead."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from difflib import get_close_matches
from typing import Any, Final

from sqlalchemy import Enum, Interval, Table
from sqlalchemy.ext.associationproxy import AssociationProxy
from sqlalchemy.orm import ColumnProperty, CompositeProperty, Mapper
from sqlalchemy.types import TypeDecorator, TypeEngine

from outbox import documents
from outbox.errors import ConfigurationError, InvalidDocument, shortened

_NO_JSON: Final = (bytes, timedelta, complex)
_MAX_ENUM_BYTES: Final = 1_000_000
_INSTEAD: Final = (
    "make the document by to_document, or name a property of the model that converts it, e.g. to text or to seconds"
)


def nearest(name: str, known: Iterable[str]) -> str:
    """A name that is nearly the same, as the end of a message."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def no_attribute(mapper: Mapper[Any], name: str, where: str) -> ConfigurationError:
    """Why a name that is none of a mapped attribute cannot be used."""
    model = mapper.class_.__name__
    descriptor = mapper.all_orm_descriptors.get(name)
    if isinstance(descriptor, AssociationProxy):
        path = f"{descriptor.target_collection}.{descriptor.value_attr}"
        return ConfigurationError(
            f"{where}: {model}.{name} is an association proxy; name the path that it leads along, {path!r}, if this is "
            f"a field; anything else is an attribute of {model} itself"
        )
    if "." in name:
        return ConfigurationError(
            f"{where}: {shortened(name)} is a path; it takes attributes of {model}, and depends_on says what else "
            "documents are made of"
        )
    if callable(getattr(mapper.class_, name, None)):
        return ConfigurationError(f"{where}: {model}.{name} is a method; make the document by to_document")
    names = [str(each) for each in mapper.all_orm_descriptors.keys()]  # noqa: SIM118  (no plain mapping)
    return ConfigurationError(f"{where}: {model} has no attribute {shortened(name)}{nearest(name, names)}")


def no_field(mapper: Mapper[Any], name: str, where: str) -> ConfigurationError:
    """Why a mapped attribute that is no column can be no field."""
    prop = mapper.attrs.get(name)
    if isinstance(prop, CompositeProperty):
        parts = ", ".join(repr(each.key) for each in prop.props)
        return ConfigurationError(
            f"{where} is a composite; name its parts, {parts}, or make the document by to_document"
        )
    if isinstance(prop, ColumnProperty):
        return ConfigurationError(f"{where} is filled by the options of a query; make the document by to_document")
    return ConfigurationError(f"{where} is no column; make the document by to_document")


def check_mapper(mapper: Mapper[Any], where: str) -> None:
    """Raises `ConfigurationError` for a class that selects from the tables of several."""
    selects = mapper.with_polymorphic is not None and mapper.with_polymorphic[1] is not None
    if (selects or not isinstance(mapper.local_table, Table)) and any(
        each.concrete for each in mapper.self_and_descendants if each is not mapper
    ):
        raise ConfigurationError(
            f"{where}: {mapper.class_.__name__} selects from the tables of its subclasses, whose keys may be equal; "
            "register each of them instead"
        )


def is_query_expression(prop: ColumnProperty[Any]) -> bool:
    """Whether an attribute has a value only in queries that give it one."""
    return dict(prop.strategy_key).get("query_expression") is True


def check_type(type_: TypeEngine[Any], where: str) -> None:
    """Raises `ConfigurationError` for a column whose values no document can hold."""
    if isinstance(type_, Enum) and type_.enum_class is not None:
        for member in type_.enum_class:
            try:
                documents.serialise({"value": member}, max_bytes=_MAX_ENUM_BYTES)
            except InvalidDocument:
                raise ConfigurationError(
                    f"{where}: {member} has the value {shortened(member.value)}, which has no JSON form; {_INSTEAD}"
                ) from None
    elif isinstance(type_, Interval) or not isinstance(type_, TypeDecorator):  # of those, only the values tell
        try:
            python_type = type_.python_type
        except NotImplementedError:
            return
        if issubclass(python_type, _NO_JSON):
            raise ConfigurationError(
                f"{where} has values of type {python_type.__name__}, which have no JSON form; {_INSTEAD}"
            )
