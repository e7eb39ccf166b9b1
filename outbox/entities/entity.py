"""One model that has documents: of which fields, under which index and `_id`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sqlalchemy import ColumnElement, Join, Select, Table, Text, literal
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.interfaces import ORMOption

from outbox.entities import keys
from outbox.entities.keys import DocumentKey, Tenancy, TextForm
from outbox.entities.kinds import kind_sql
from outbox.entities.members import Order, in_order
from outbox.entities.paths import Field, Keys, flat, picked, value_within
from outbox.errors import InvalidName, shortened
from outbox.settings import WriteSettings


@dataclass(frozen=True)
class Dependency:
    """How an entity's documents depend on rows of another model, see `EntityRegistry.add`."""

    via: str | Sequence[str]
    watch: Sequence[str] | None = None


@dataclass(frozen=True)
class DerivedMappings:
    """Strict mappings made of the types of the columns in `fields`, see `EntityRegistry.add`.

    `explicit`, in the form of Elasticsearch, comes first: a field with a `type` replaces the derived one, one without
    adds to it, and what is said at the top (`dynamic`, `_source` …) is taken as it is. "derived" is the same without
    anything explicit.
    """

    explicit: Mapping[str, Any] = field(default_factory=dict)


def key_of(mapper: Mapper[Any]) -> tuple[str, ...]:
    """The attributes of the primary key of a model."""
    return tuple(mapper.get_property_by_column(column).key for column in mapper.primary_key)


@dataclass(frozen=True, eq=False)
class Entity:
    """One model that has documents. Made by `EntityRegistry.add`, which says what each part means."""

    name: str
    mapper: Mapper[Any]
    index: str
    tenancy: Tenancy
    fields: tuple[str, ...] | None
    to_document: Callable[[Any], Mapping[str, Any]] | None
    when: Callable[[Any], bool] | None
    tenant: str | None
    changed_at: str | None
    watch: frozenset[str] | None
    depends_on: Mapping[Mapper[Any], Dependency]
    mappings: Mapping[str, Any] | DerivedMappings | None
    settings: Mapping[str, Any] | None
    skip_unchanged: bool
    load_options: tuple[ORMOption, ...] | None
    id_key: tuple[str, ...]  # attributes that make the _id, unique together: the primary key, or another column
    id_forms: tuple[TextForm, ...]
    id_prefix: str
    tenant_form: TextForm | None
    tree: Branch
    limits: WriteSettings | None  # None: those of the environment

    @cached_property
    def key(self) -> tuple[str, ...]:
        """The attributes of the primary key."""
        return key_of(self.mapper)

    @property
    def model(self) -> type[Any]:
        return self.mapper.class_

    @property
    def is_made_of_others(self) -> bool:
        """Whether its documents are made of rows of other models too."""
        return bool(self.depends_on or self.tree.branches)

    @cached_property
    def depth(self) -> int:
        """How many classes its model inherits from that are mapped too."""
        return len(list(self.mapper.iterate_to_root())) - 1

    @property
    def placed_by(self) -> tuple[str, ...]:
        """The attributes that say where a document is: what makes its `_id`, and the tenant."""
        return (*self.id_key, *([self.tenant] if self.tenant else []))

    def column(self, attribute: str) -> Any:
        """The mapped attribute, as statements need it."""
        return getattr(self.mapper.class_, attribute)

    @property
    def is_view(self) -> bool:
        """Whether it is mapped to a view that is marked as one, or to a SELECT: its rows come and go with others."""
        table = self.mapper.local_table
        return bool(table.info.get("is_view")) if isinstance(table, Table) else not isinstance(table, Join)

    def rows(self, statement: Select[Any]) -> Select[Any]:
        """A SELECT, of rows of this entity: in a table that it shares with its relatives, those of its kind."""
        statement, kind = statement.select_from(self.model), kind_sql(self.mapper)
        return statement if kind is None else statement.where(kind)

    @property
    def id_columns(self) -> list[Any]:
        """The columns that make the `_id`, as statements need them."""
        return [self.column(name) for name in self.id_key]

    def key_of(self, identity: Sequence[Any], tenant: Any = None) -> DocumentKey:
        """Where the document of a row belongs, by what makes its `_id`, and tenant. Raises `InvalidName` for illegal
        ones."""
        return self.place_of(identity, self.tenant_text(tenant))

    def tenant_text(self, tenant: Any) -> str | None:
        """A tenant as text."""
        return None if self.tenant_form is None or tenant is None else self.tenant_form.to_text(tenant)

    def tenant_meant(self, tenant: object) -> str | None:
        """The text of what is meant by a tenant, however it is spelled; None if the column has no such value."""
        return None if self.tenant_form is None else keys.text_meant(self.tenant_form, tenant)

    def place_of(self, identity: Sequence[Any], tenant_id: str | None) -> DocumentKey:
        """The same, of a tenant that is text already."""
        if len(identity) == len(self.id_forms) == 1:
            form = self.id_forms[0]
            text = self.id_prefix + form.to_text(identity[0])
            return keys.place(self.index, self.tenancy, tenant_id, text, short=form.short)
        return keys.place(self.index, self.tenancy, tenant_id, self.id_prefix + keys.join(self.key_text(identity)))

    def key_text(self, identity: Sequence[Any]) -> list[str]:
        """What makes an `_id`, as text, each part by itself."""
        return [form.to_text(value) for form, value in zip(self.id_forms, identity, strict=True)]

    def key_of_object(self, instance: Any) -> DocumentKey:
        """The same, of an object that has what makes its `_id`."""
        tenant = None if self.tenant is None else getattr(instance, self.tenant)
        identity = [getattr(instance, name) for name in self.id_key]
        if None in identity:
            raise InvalidName(f"{shortened(instance)} has no {self.id_said} yet; add it to the session first")
        return self.key_of(identity, tenant)

    @property
    def id_said(self) -> str:
        """What makes the `_id`, as an error says it."""
        return "primary key" if self.id_key == self.key else "id"

    def has(self, mapper: object) -> bool:
        """Whether objects of a mapped class are of this entity."""
        return isinstance(mapper, Mapper) and mapper.isa(self.mapper)

    def identity_of(self, document_id: str) -> tuple[Any, ...] | None:
        """What the row that an `_id` belongs to has in `id_key`; None if it is no `_id` of this entity."""
        text = keys.id_text_of(self.tenancy, document_id)
        if text is None or not text.startswith(self.id_prefix):
            return None
        parts = keys.split(text[len(self.id_prefix) :], len(self.id_key))
        if parts is None:
            return None
        try:
            identity = tuple([form.from_text(part) for form, part in zip(self.id_forms, parts, strict=True)])
            return identity if self.key_text(identity) == parts else None  # 007 is no text of 7
        except ValueError:
            return None

    def index_names(self, name: str) -> bool:
        """Whether the index `name` holds documents of this entity."""
        if self.tenancy is Tenancy.INDEX:
            return keys.is_tenant_index(name, self.index)
        return name == self.index

    # The same places in SQL, of the mapped columns; `tests/entities/test_places.py` holds both against each other.

    def index_sql(self) -> ColumnElement[str]:
        """The index name, made by the database. NULL for a tenant that must not become part of one."""
        return keys.index_sql(self.index, self.tenancy, self.tenant_sql())

    def document_id_sql(self) -> ColumnElement[str]:
        """The `_id`, made by the database."""
        parts = [form.sql(self.column(name)) for form, name in zip(self.id_forms, self.id_key, strict=True)]
        text = keys.join_sql(parts)
        if self.id_prefix:
            text = literal(self.id_prefix, Text).concat(text)
        return keys.document_id_sql(self.tenancy, self.tenant_sql(), text)

    def refused_sql(self) -> ColumnElement[bool]:
        """Whether a row can have no place, so that it must not be written, asked of the database."""
        return keys.refused_sql(
            self.tenancy,
            self.index_sql(),
            self.document_id_sql(),
            self.tenant_sql(),
            short_key=all(form.short for form in self.id_forms),
            short_tenant=self.tenant_form is None or self.tenant_form.short,
        )

    def tenant_sql(self) -> ColumnElement[str] | None:
        """The tenant as text, made by the database."""
        if self.tenant is None or self.tenant_form is None:
            return None
        return self.tenant_form.sql(self.column(self.tenant))


@dataclass(slots=True)
class Branch:
    """Fields of one model: its own attributes, and relationships with fields of theirs."""

    leaves: list[str] = field(default_factory=list)
    branches: dict[str, Branch] = field(default_factory=dict)
    many: bool = False
    plain: bool = True  # nothing but columns, which need no objects
    order: Order | None = None  # of the members that are equal by the attributes `by`; None: as they come
    by: tuple[str, ...] = ()
    within: dict[str, Keys] = field(default_factory=dict)  # what is taken of leaves that are JSON columns
    named: list[Field] | None = None  # of the whole document, if its fields have names of their own

    @property
    def is_row(self) -> bool:
        """Whether the document is the leaves as they are."""
        return self.named is None and not self.within

    def document(self, row: Any) -> dict[str, Any]:
        if self.named is not None:
            return {each.name: self._value(row, each.relations, each) for each in self.named}
        made = {name: getattr(row, name) for name in self.leaves}
        for name, keys_ in self.within.items():
            made[name] = picked(made[name], keys_)
        for name, branch in self.branches.items():
            related = getattr(row, name)
            if not branch.many:
                made[name] = None if related is None else branch.document(related)
                continue
            made[name] = [branch.document(member) for member in branch.members(related)]
        return made

    def members(self, related: Any) -> list[Any]:
        """Those of a collection, in their order."""
        members = related.values() if isinstance(related, Mapping) else related
        return list(members) if self.order is None else in_order(members, self.by, self.order)

    def _value(self, row: Any, relations: Sequence[str], leading: Field) -> Any:
        """The value of a field that has a name of its own; through a to-many relationship a list."""
        if not relations:
            return value_within(getattr(row, leading.leaf), leading.keys)
        branch, related, rest = self.branches[relations[0]], getattr(row, relations[0]), relations[1:]
        if branch.many:
            return flat(branch._value(member, rest, leading) for member in branch.members(related))
        return None if related is None else branch._value(related, rest, leading)
